"""Fast training steps: CUDA graphs, copies without waiting, updates in few operations, and the micro-batch size."""
