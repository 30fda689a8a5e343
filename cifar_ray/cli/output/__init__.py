"""What commands print: progress, tables, signs of life."""
