"""What commands print: progress, tables, status lines."""
