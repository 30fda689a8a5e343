"""Batch prediction: many pictures to one table, in this process, on a cluster or with a server."""
