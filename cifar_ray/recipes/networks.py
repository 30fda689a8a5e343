"""Descriptions of the project's own networks, for lists that do not import torch; a test compares the names with the code."""

from __future__ import annotations

NETWORKS = {
    "airnet": "small images: the network of airbench94, 94 % on CIFAR-10 in 8 epochs",
    "airnet96": "small images: wider and deeper, with residuals; the network of airbench96",
    "cnn3": "small images: three convolutions",
    "cnn6": "small images: six convolutions",
    "resnet18": "small images or photographs: residual network of 18 layers",
    "resnet50": "photographs: residual network of 50 layers; --pretrained hub takes torchvision's ImageNet weights",
    "resnet9": "small images: residual network of 9 layers",
    "small_cnn": "small images: three convolutions with few channels, for tests and laptops",
    "vgg3": "small images: three VGG blocks",
    "wide_resnet28_10": "small images: wide residual network of 28 layers; slow without a GPU",
}


def describe_networks() -> str:
    """Table of the project's own networks, and one line for timm."""
    rows = [f"{name:18}{text}" for name, text in NETWORKS.items()]
    return "\n".join([*rows, f"{'timm:NAME':18}any network of timm; --list-models timm:PATTERN lists them, for example timm:convnext*"])
