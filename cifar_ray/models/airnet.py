"""AirNet, the speed network of the airbench papers (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv 2404.00498)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_ray.errors import ConfigError

_WHITENING_KERNEL_PX = 2
_MIN_IMAGE_SIZE_PX = 9  # three poolings must leave one pixel


class AirNet(nn.Module):
    """Whitening convolution, three groups of convolutions, scaled linear head (section 3.1 of the paper).

    Args:
        num_classes: width of the logits.
        image_size: side of the images, px; the published network has 32.
        widths: channels of the three groups.
        convolutions: convolutions per group: 2, or 3 with a residual connection over the last two (the paper's airbench96).

    Raises:
        ConfigError: if the image is too small for three poolings.
    """

    def __init__(self, num_classes: int, image_size: int, widths: tuple[int, int, int] = (64, 256, 256), convolutions: int = 2) -> None:
        super().__init__()
        if image_size < _MIN_IMAGE_SIZE_PX:
            raise ConfigError(f"image_size: airnet needs at least {_MIN_IMAGE_SIZE_PX} px, got {image_size}")
        whitening_width = 2 * 3 * _WHITENING_KERNEL_PX**2  # the filters are the eigenvectors and their negatives
        self.whitening = nn.Conv2d(3, whitening_width, _WHITENING_KERNEL_PX)
        self.whitening.weight.requires_grad_(False)
        ins = (whitening_width, *widths[:-1])
        group = _Group if convolutions == 2 else _ResidualGroup
        self.groups = nn.Sequential(*(group(channels_in, channels_out) for channels_in, channels_out in zip(ins, widths, strict=True)))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        with torch.no_grad():
            self.head.weight.div_(self.head.weight.std())

    def forward(self, images: Tensor) -> Tensor:
        """Logits, `[N, num_classes]`, of normalised images, `[N, 3, H, W]`."""
        features = self.groups(F.gelu(self.whitening(images)))
        pooled = F.adaptive_max_pool2d(features, 1).flatten(1)
        logits: Tensor = self.head(pooled)
        return logits / self.head.in_features

    @torch.no_grad()
    def initialize_from(self, images: Tensor) -> None:
        """Initialise the whitening filters from data (section 3.2): eigenvectors of the 2×2 patch covariance, scaled to unit variance.

        Args:
            images: normalised, float `[N, 3, H, W]`; a few thousand are enough.
        """
        patches = F.unfold(images.float(), _WHITENING_KERNEL_PX).transpose(1, 2).flatten(0, 1)
        eigenvalues, eigenvectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (eigenvectors / (eigenvalues + 5e-4).sqrt()).T.view(-1, *self.whitening.weight.shape[1:])
        self.whitening.weight.copy_(torch.cat((filters, -filters)))

    def freeze_stem(self) -> None:
        """Freeze the whitening bias, the stem's only trainable weights; saves the backward pass below the first group."""
        if self.whitening.bias is not None:
            self.whitening.bias.requires_grad_(False)


class _Group(nn.Module):
    """conv – max-pool – norm – GELU – conv – norm – GELU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = _identity_convolution(channels_in, channels_out)
        self.norm1 = _norm(channels_out)
        self.conv2 = _identity_convolution(channels_out, channels_out)
        self.norm2 = _norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class _ResidualGroup(_Group):
    """A group with a third convolution and norm; the input of the second is added before the last GELU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out)
        self.conv3 = _identity_convolution(channels_out, channels_out)
        self.norm3 = _norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        y = F.gelu(self.norm2(self.conv2(x)))
        return F.gelu(x + self.norm3(self.conv3(y)))


def _identity_convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3×3 convolution whose first filters are identities (section 3.3)."""
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(convolution.weight[:channels_in])
    return convolution


def _norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with high momentum, because training takes only a few hundred steps; its bias is trained, its scale is not."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm
