"""Wide ResNets (Zagoruyko & Komodakis 2016, "Wide Residual Networks", arXiv 1605.07146)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cifar_ray.errors import ConfigError

_MIN_IMAGE_SIZE_PX = 8


class WideResNet(nn.Module):
    """WRN-`depth`-`widen`: three groups of pre-activation blocks at full, half and quarter resolution (table 1 of the paper).

    Args:
        num_classes: width of the logits.
        image_size: side of the images, px; the published network has 32.
        depth: convolutions on the longest path, 6·n + 4.
        widen: channels as a multiple of 16, 32 and 64.

    Raises:
        ConfigError: if the image is too small, or the depth is invalid.
    """

    def __init__(self, num_classes: int, image_size: int, depth: int = 28, widen: int = 10) -> None:
        super().__init__()
        if image_size < _MIN_IMAGE_SIZE_PX:
            raise ConfigError(f"image_size: a wide ResNet needs at least {_MIN_IMAGE_SIZE_PX} px, got {image_size}")
        if depth % 6 != 4:
            raise ConfigError(f"depth: a wide ResNet needs 6·n + 4 layers, got {depth}")
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        blocks, channels = [], 16
        for width, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            for number in range(depth // 6):
                blocks.append(_Block(channels, width, stride if number == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits, `[N, num_classes]`, of normalised images, `[N, 3, H, W]`."""
        features = F.relu(self.norm(self.blocks(self.stem(images))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class _Block(nn.Module):
    """norm – ReLU – conv – norm – ReLU – conv with a residual connection; a block that changes the shape projects the activated input."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        changes = stride > 1 or channels_in != channels_out
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        beside = x if self.shortcut is None else self.shortcut(activated)
        y: Tensor = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        return beside + y
