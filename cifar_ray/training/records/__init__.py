"""Records of a run: its folder, checkpoints, history, curves and trackers."""
