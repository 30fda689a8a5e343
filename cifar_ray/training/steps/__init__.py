"""What keeps a training step from waiting for the host: updates in few operations, late reads, captured steps."""
