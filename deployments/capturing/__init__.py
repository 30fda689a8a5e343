"""Keeps pictures that the server was asked about, if the operator wants it."""
