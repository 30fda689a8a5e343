"""What every peer shares: the bundle's network in eager bf16, channels last, and a picture made ready for it."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cifar_ray.models import create_model
from cifar_ray.store import ModelStore

Pixels = npt.NDArray[np.uint8]


class Model:
    """Loads the benchmark's bundle. All weights are bf16, which is quicker than autocast."""

    def __init__(self) -> None:
        if threads := os.environ.get("PEER_TORCH_THREADS"):
            torch.set_num_threads(int(threads))
        bundle = ModelStore(os.environ["CIFAR_RAY_STORAGE"]).load("cifar10")
        self.manifest = bundle.manifest
        network = create_model(bundle.manifest.architecture.name, **bundle.manifest.architecture.arguments)
        network.load_state_dict(bundle.weights)
        self._network = network.eval().to(torch.bfloat16).to(memory_format=torch.channels_last)
        self._mean = 255 * torch.tensor(self.manifest.channel_mean)
        self._std = 255 * torch.tensor(self.manifest.channel_std)

    def decode(self, file: BinaryIO) -> Pixels:
        """An upload as uint8 `[S, S, 3]`."""
        size = self.manifest.image_size_px
        picture = Image.open(file).convert("RGB")
        return np.asarray(picture if picture.size == (size, size) else picture.resize((size, size)))

    @torch.inference_mode()
    def predict(self, images: list[Pixels]) -> list[list[float]]:
        """Probabilities of each image."""
        pixels = torch.from_numpy(np.stack(images))
        inputs = ((pixels - self._mean) / self._std).to(torch.bfloat16).permute(0, 3, 1, 2)
        return torch.softmax(self._network(inputs).float(), 1).tolist()

    def answer(self, probabilities: list[float]) -> dict[str, object]:
        """What the client gets."""
        names = self.manifest.class_names
        best = max(range(len(names)), key=probabilities.__getitem__)
        return {
            "class_name": names[best],
            "confidence": probabilities[best],
            "probabilities": dict(zip(names, probabilities, strict=True)),
        }
