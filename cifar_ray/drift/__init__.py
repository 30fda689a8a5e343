"""Drift: whether the pictures that a model is asked about have changed."""
