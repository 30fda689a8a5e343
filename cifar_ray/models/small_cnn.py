"""A small plain network without batch norm: fast on a laptop, and exactly reproducible with any number of workers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cifar_ray.errors import ConfigError

_MIN_IMAGE_SIZE_PX = 8


class SmallCNN(nn.Module):
    """Three 3×3 convolutions with ReLU and pooling, then a linear head on the mean over the image.

    Args:
        num_classes: width of the logits.
        image_size: side of the images, px.
        widths: channels of the three convolutions.

    Raises:
        ConfigError: if the image is too small for three poolings.
    """

    def __init__(self, num_classes: int, image_size: int, widths: tuple[int, int, int] = (32, 64, 128)) -> None:
        super().__init__()
        if image_size < _MIN_IMAGE_SIZE_PX:
            raise ConfigError(f"image_size: small_cnn needs at least {_MIN_IMAGE_SIZE_PX} px, got {image_size}")
        ins = (3, *widths[:-1])
        convolutions = [nn.Conv2d(a, b, 3, padding=1) for a, b in zip(ins, widths, strict=True)]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        self.convolutions = nn.ModuleList(convolutions)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, `[N, num_classes]`, of normalised images, `[N, 3, H, W]`."""
        x = images
        for convolution in self.convolutions:
            x = F.max_pool2d(F.relu(convolution(x)), 2)
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits
