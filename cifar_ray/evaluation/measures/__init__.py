"""What is measured beside the predictions: corruptions, cost, near-duplicates, slices."""
