"""The training loop, its optimizers, and what runs them on Ray."""
