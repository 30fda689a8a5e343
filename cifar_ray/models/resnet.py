"""ResNets (He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv 1512.03385), from torchvision."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_SMALL_IMAGE_PX = 64


def resnet18(num_classes: int, image_size: int) -> nn.Module:
    """ResNet-18; up to 64 px with the stem for small images (section 4.2 of the paper): 3×3, stride 1, no pooling.

    Blocks start as identities (last norm at zero), which allows higher learning rates in the first steps (Goyal et al. 2017,
    arXiv 1706.02677, section 5.1).
    """
    from torchvision.models import resnet  # the import takes seconds, and other architectures do not need it

    model: nn.Module = resnet.resnet18(weights=None, num_classes=num_classes, zero_init_residual=True)
    if image_size <= _SMALL_IMAGE_PX:
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


def resnet50(num_classes: int, image_size: int, least_px: int = 128) -> nn.Module:
    """ResNet-50 for ImageNet weights; its stem needs large images, so smaller ones are enlarged to `least_px` first."""
    from torchvision.models import resnet

    model: nn.Module = resnet.resnet50(weights=None, num_classes=num_classes)
    if image_size < least_px:
        model.conv1 = _EnlargingConv2d(3, 64, 7, stride=2, padding=3, bias=False)
        model.conv1.side_px = least_px
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


class _EnlargingConv2d(nn.Conv2d):
    """First convolution, which also enlarges its images; a separate layer would change the names of the weights."""

    side_px: int

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(F.interpolate(images, size=(self.side_px, self.side_px), mode="bilinear", align_corners=False))
