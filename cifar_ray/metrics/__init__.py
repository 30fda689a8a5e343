"""Metrics of predictions: accuracy, calibration, intervals and trust, with numpy only."""
