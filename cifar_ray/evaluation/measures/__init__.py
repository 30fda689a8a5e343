"""Measurements beyond accuracy: robustness to corruptions, cost, near-duplicates, slices."""
