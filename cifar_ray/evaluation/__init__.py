"""Evaluate models and examine data sets: figures, comparisons, and checks of labels."""
