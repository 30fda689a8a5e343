"""Trials: which version answers a request, how versions are compared, and the rules that end a trial."""
