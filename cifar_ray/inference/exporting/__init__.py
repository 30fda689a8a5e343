"""Export models to files for other programs, and import the weights of other programs."""
