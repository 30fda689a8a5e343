"""Files of a model for other programs, and models from the weights of other programs."""
