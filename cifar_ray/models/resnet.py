"""ResNets (He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv 1512.03385), from torchvision."""

from __future__ import annotations

from torch import nn

_SMALL_IMAGE_PX = 64


def resnet18(num_classes: int, image_size: int) -> nn.Module:
    """ResNet-18; up to 64 px with the stem for small images (section 4.2 of the paper): 3×3, stride 1, no pooling."""
    from torchvision.models import resnet  # seconds that other architectures do without

    model: nn.Module = resnet.resnet18(weights=None, num_classes=num_classes)
    if image_size <= _SMALL_IMAGE_PX:
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model
