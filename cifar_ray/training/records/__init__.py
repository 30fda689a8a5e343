"""What a run leaves behind: its folder, checkpoints, history, curves and trackers."""
