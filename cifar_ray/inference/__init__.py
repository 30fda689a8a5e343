"""Inference: predictions for pictures from a bundle, in this process, in batches, or in other programs."""
