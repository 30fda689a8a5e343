"""Benchmarks of sources of labelled pictures."""
