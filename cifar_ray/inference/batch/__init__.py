"""Batch prediction: many pictures to one table, here, on a cluster or behind a server."""
