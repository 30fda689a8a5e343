"""The training loop on Ray Train: trainer, worker function, controller callbacks, channel to the driver."""
