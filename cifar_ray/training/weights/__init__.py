"""Initial weights of training: fresh, pretrained, or from a saved model."""
