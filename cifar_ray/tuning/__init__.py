"""Hyperparameter search: the search space, the trials on Ray Tune, and the results."""
