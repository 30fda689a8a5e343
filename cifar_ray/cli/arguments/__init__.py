"""From a command line to a command: parsing, help pages, and mistakes in one line."""
