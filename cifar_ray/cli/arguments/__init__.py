"""Command lines: parsing, help pages, and error messages of one line."""
