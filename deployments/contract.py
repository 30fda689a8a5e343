"""What the ingress and the classifier say to each other. Light: the ingress needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cifar_ray.config import ResizePolicy
from cifar_ray.errors import CifarRayError


class UnavailableError(CifarRayError):
    """No answer is possible now, but later one may be. The message says why and what to do."""


@dataclass(frozen=True)
class ModelInfo:
    """What is needed to decode for a model and to name its answers; fields as in the manifest."""

    name: str
    version: int
    class_names: tuple[str, ...]
    image_size_px: int
    resize_policy: ResizePolicy


@dataclass(frozen=True)
class Status:
    """The model that answers now.

    Attributes:
        model: `None` while there is none.
        problem: what is wrong and what to do; empty if nothing is.
    """

    model: ModelInfo | None
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Classified:
    """What a model says of N images.

    Attributes:
        model: the one that answered.
        probabilities: float32 `[N, C]`.
        batch_size: images in the forward pass, those of other requests too.
        inference_s: its time.
    """

    model: ModelInfo
    probabilities: npt.NDArray[np.float32]
    batch_size: int
    inference_s: float


@dataclass(frozen=True)
class StoredModel:
    """One name in the model store.

    Attributes:
        name: of the model.
        versions: ascending.
        aliases: versions by alias.
        loaded: the version in memory; `None` if none is.
    """

    name: str
    versions: tuple[int, ...]
    aliases: dict[str, int]
    loaded: int | None


class Classifier(Protocol):
    """What the ingress asks for. Every method raises `UnavailableError` when nobody can answer."""

    async def status(self) -> Status:
        """The model that answers now."""

    async def models(self) -> list[StoredModel]:
        """All models in the store."""

    async def classify(self, images: npt.NDArray[np.uint8], resize_policy: ResizePolicy) -> Classified | Status:
        """Classifies images.

        Args:
            images: uint8 `[N, S, S, 3]`; 1 ≤ N ≤ `max_batch_size`.
            resize_policy: how they became square.

        Returns:
            A `Status` where nothing was computed: there is no model, or it takes another size or policy; decode again as it says.
        """
