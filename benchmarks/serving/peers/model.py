"""Code that all peers share: decode a picture, and run the bundle's network in eager torch (channels last) or in our engine."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cifar_ray.data.decode import decode_square
from cifar_ray.inference.predictor import Predictor
from cifar_ray.models import create_model
from cifar_ray.store import ModelStore
from cifar_ray.store.default_model import last_promoted_first

Pixels = npt.NDArray[np.uint8]


class Model:
    """The model that was promoted last, with all weights in bf16, which is faster than autocast.

    Environment variables: PEER_PRECISION is `bf16` or `fp32`. With PEER_ENGINE, this engine of ours computes instead of torch, and our
    decoder prepares the pictures.
    """

    def __init__(self) -> None:
        if threads := os.environ.get("PEER_TORCH_THREADS"):
            torch.set_num_threads(int(threads))
        store = ModelStore(os.environ["CIFAR_RAY_STORAGE"])
        bundle = store.load(last_promoted_first(store)[0])
        self.manifest = bundle.manifest
        self._predictor = Predictor(bundle, engine=os.environ["PEER_ENGINE"]) if "PEER_ENGINE" in os.environ else None
        self._dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[os.environ.get("PEER_PRECISION", "bf16")]
        network = create_model(bundle.manifest.architecture.name, **bundle.manifest.architecture.arguments)
        network.load_state_dict(bundle.weights)
        self._network = network.eval().to(self._dtype).to(memory_format=torch.channels_last)
        self._mean = 255 * torch.tensor(self.manifest.channel_mean)
        self._std = 255 * torch.tensor(self.manifest.channel_std)

    def decode(self, file: BinaryIO) -> Pixels:
        """An upload as uint8 `[S, S, 3]`."""
        size = self.manifest.image_size_px
        if self._predictor:
            return decode_square(file.read(), size, self.manifest.resize_policy)
        picture = Image.open(file).convert("RGB")
        return np.asarray(picture if picture.size == (size, size) else picture.resize((size, size)))

    @torch.inference_mode()
    def predict(self, images: list[Pixels]) -> list[list[float]]:
        """Probabilities of each image."""
        if self._predictor:
            return self._predictor.predict(np.stack(images)).probabilities.tolist()
        pixels = torch.from_numpy(np.stack(images))
        inputs = ((pixels - self._mean) / self._std).to(self._dtype).permute(0, 3, 1, 2)
        return torch.softmax(self._network(inputs).float(), 1).tolist()

    def answer(self, probabilities: list[float]) -> dict[str, object]:
        """The response to the client, as JSON values."""
        names = self.manifest.class_names
        best = max(range(len(names)), key=probabilities.__getitem__)
        return {
            "class_name": names[best],
            "confidence": probabilities[best],
            "probabilities": dict(zip(names, probabilities, strict=True)),
        }
