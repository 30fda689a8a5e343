"""Training: jobs, the training loop, and its execution on Ray."""
