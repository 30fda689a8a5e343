"""The search for a better recipe: its space, its trials on Ray Tune, its results."""
