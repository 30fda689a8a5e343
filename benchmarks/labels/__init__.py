"""Benchmarks of labelled data: its sources, several labels per picture, and wrong labels."""
