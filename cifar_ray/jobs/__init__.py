"""Prediction jobs of a server's clients: the queue in the storage, and the pictures that a job may read."""
