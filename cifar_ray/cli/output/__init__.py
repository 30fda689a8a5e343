"""Terminal output of commands: progress, tables, status lines."""
