"""Trials: versions that run beside the production version, the observations, and the rules that end a trial."""
