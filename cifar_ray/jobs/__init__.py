"""Prediction jobs that clients give to a server: the queue in the storage, and the pictures that a job may read."""
