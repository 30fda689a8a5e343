"""Labels that are probably wrong: found by cross-validation, shown for a decision, corrected in a new table."""
