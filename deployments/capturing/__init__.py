"""Capture pictures of requests, if the operator enables it."""
