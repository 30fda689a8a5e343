"""Figures of how well predictions fit labels: numpy only."""
