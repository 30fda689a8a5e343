"""Train, tune, keep and serve image classifiers on Ray."""
