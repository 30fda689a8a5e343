"""Versions on trial beside the production version: which, what was observed, and the rules that end a trial."""
