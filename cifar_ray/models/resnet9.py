"""ResNet-9, the DAWNBench network (Page 2018, "How to Train Your ResNet")."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cifar_ray.errors import ConfigError

_MIN_IMAGE_SIZE_PX = 8
_LOGIT_SCALE = 0.125  # prevents overconfidence early in the training of a max-pooled network


class ResNet9(nn.Module):
    """Four convolutions, three of them pooled, with a residual block after the second and the fourth; 6.6 M parameters.

    Args:
        num_classes: width of the logits.
        image_size: side of the images, px; the published network has 32.
        widths: channels of the four convolutions.

    Raises:
        ConfigError: if the image is too small for three poolings.
    """

    def __init__(self, num_classes: int, image_size: int, widths: tuple[int, int, int, int] = (64, 128, 256, 512)) -> None:
        super().__init__()
        if image_size < _MIN_IMAGE_SIZE_PX:
            raise ConfigError(f"image_size: resnet9 needs at least {_MIN_IMAGE_SIZE_PX} px, got {image_size}")
        first, second, third, fourth = widths
        self.blocks = nn.Sequential(
            _Convolution(3, first),
            _Convolution(first, second, pool=True),
            _Residual(second),
            _Convolution(second, third, pool=True),
            _Convolution(third, fourth, pool=True),
            _Residual(fourth),
        )
        self.head = nn.Linear(fourth, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, `[N, num_classes]`, of normalised images, `[N, 3, H, W]`."""
        pooled = F.adaptive_max_pool2d(self.blocks(images), 1).flatten(1)
        logits: Tensor = self.head(pooled)
        return logits * _LOGIT_SCALE


class _Convolution(nn.Module):
    """conv – norm – ReLU, with an optional max-pool."""

    def __init__(self, channels_in: int, channels_out: int, pool: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return F.max_pool2d(x, 2) if self.pool else x


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _Convolution(channels, channels)
        self.second = _Convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return x + y
