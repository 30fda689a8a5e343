"""Find labels that are probably wrong by cross-validation, let a person decide, and write the corrected table."""
