"""Augmented batches of tensors from data sets."""
