"""The weights that training starts from: fresh, pretrained, or those of a saved model."""
