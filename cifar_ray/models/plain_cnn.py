"""Plain networks as in tutorials: blocks of 3×3 convolutions with batch norm, pooling and dropout, then a linear head."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cifar_ray.errors import ConfigError

_GRID = 2  # features are pooled to a 2×2 grid, which keeps more than their mean, and works for any image size


class PlainCNN(nn.Module):
    """Blocks of one or more conv – norm – ReLU, then max-pool and dropout (VGG: Simonyan & Zisserman 2014, arXiv 1409.1556).

    Args:
        num_classes: width of the logits.
        image_size: side of the images, px.
        widths: channels of the convolutions of each block.
        dropout: dropout probability of each block.

    Raises:
        ConfigError: if the image is too small for the poolings.
    """

    def __init__(self, num_classes: int, image_size: int, widths: Sequence[Sequence[int]], dropout: Sequence[float]) -> None:
        super().__init__()
        if image_size < 2 ** len(widths):
            raise ConfigError(f"image_size: {len(widths)} poolings need at least {2 ** len(widths)} px, got {image_size}")
        ins = (3, *(block[-1] for block in widths[:-1]))
        self.blocks = nn.Sequential(*(_Block(*sizes) for sizes in zip(ins, widths, dropout, strict=True)))
        self.head = nn.Linear(widths[-1][-1] * _GRID**2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, `[N, num_classes]`, of normalised images, `[N, 3, H, W]`."""
        features = F.adaptive_avg_pool2d(self.blocks(images), _GRID).flatten(1)
        logits: Tensor = self.head(features)
        return logits


class _Block(nn.Module):
    def __init__(self, channels_in: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        ins = (channels_in, *widths[:-1])
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in zip(ins, widths, strict=True))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.dropout = nn.Dropout(dropout)
        for convolution in self.convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x)))
        kept: Tensor = self.dropout(F.max_pool2d(x, 2))
        return kept
