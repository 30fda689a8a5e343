"""Versions on trial: who answers a request, how the versions are compared, and the rules that end a trial."""
