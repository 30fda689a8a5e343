"""Drift detection: whether the pictures in requests to a model have changed."""
