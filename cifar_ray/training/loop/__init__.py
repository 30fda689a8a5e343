"""The training loop: steps, optimizers, averages of weights, snapshots. No Ray."""
