"""From images in memory to augmented batches of tensors."""
