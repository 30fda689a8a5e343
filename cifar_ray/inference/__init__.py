"""From a bundle and a picture to probabilities: no Ray, no HTTP."""
