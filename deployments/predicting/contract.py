"""What the ingress and the classifier say to each other. Light: the ingress needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cifar_ray.config import ResizePolicy
from cifar_ray.errors import CifarRayError, UnknownModelError
from deployments.predicting.schemas import Timings

Pixels = npt.NDArray[np.uint8]

_LISTED_CLASSES = 200


class UnavailableError(CifarRayError):
    """No answer is possible now, but later one may be. The message says why and what to do."""


class ReplicaLostError(UnavailableError):
    """A replica died with the call in its hands. Nothing was changed by it, so another replica can be asked."""


class DeadlineError(CifarRayError):
    """The answer took longer than `request_timeout_s`."""


class UnknownClassError(CifarRayError):
    """The model has no such class. The message lists those it has."""


@dataclass(frozen=True)
class ModelInfo:
    """What is needed to decode for a model and to name its answers; fields as in the manifest."""

    name: str
    version: int
    class_names: tuple[str, ...]
    image_size_px: int
    resize_policy: ResizePolicy

    @property
    def reference(self) -> str:
        """`name@version`: this model and no other."""
        return f"{self.name}@{self.version}"

    def class_id(self, asked_for: str) -> int:
        """The class of a name, else of an id in digits.

        Raises:
            UnknownClassError: if it is neither.
        """
        if asked_for in self.class_names:
            return self.class_names.index(asked_for)
        if asked_for in map(str, range(len(self.class_names))):
            return int(asked_for)
        there_is = ", ".join(self.class_names[:_LISTED_CLASSES]) + (", …" if len(self.class_names) > _LISTED_CLASSES else "")
        raise UnknownClassError(
            f"{self.reference} has no class {asked_for[:100]!r}; it has: {there_is}, or 0…{len(self.class_names) - 1} by class_id"
        )


@dataclass(frozen=True)
class Status:
    """The model that answers now.

    Attributes:
        model: `None` while there is none.
        problem: what is wrong and what to do; empty if nothing is.
        is_known: whether the store holds the model at all.
    """

    model: ModelInfo | None
    problem: str = ""
    is_known: bool = True

    def require(self) -> ModelInfo:
        """The model that answers.

        Raises:
            UnknownModelError: if the store does not hold it.
            UnavailableError: if there is none now.
        """
        if self.model is None:
            raise (UnavailableError if self.is_known else UnknownModelError)(self.problem)
        return self.model


@dataclass(frozen=True, eq=False)
class Classified:
    """What a model says of N images.

    Attributes:
        model: the one that answered.
        probabilities: float32 `[N, C]`.
        abstains: bool `[N]`, images unlike those that the model knows.
        batch_size: images in the forward pass, those of other requests too.
        inference_s: its time.
    """

    model: ModelInfo
    probabilities: npt.NDArray[np.float32]
    abstains: npt.NDArray[np.bool_]
    batch_size: int
    inference_s: float


@dataclass(frozen=True, eq=False)
class Explained:
    """Where a model saw a class in one image.

    Attributes:
        model: the one that was asked.
        class_id: the class.
        heatmap: float32 `[S, S]`, 0…1.
    """

    model: ModelInfo
    class_id: int
    heatmap: npt.NDArray[np.float32]


@dataclass(frozen=True, order=True)
class LoadedVersion:
    """A version in memory, and how it computes: `engine` is `torch` or `openvino`, `precision` is `bf16`, `fp16` or `fp32`."""

    version: int
    engine: str
    precision: str


@dataclass(frozen=True)
class StoredModel:
    """One name in the model store.

    Attributes:
        name: of the model.
        versions: ascending.
        aliases: versions by alias.
        loaded: what is in memory, by ascending version.
        class_names: of the version that the bare name means; empty if its manifest cannot be read.
        test_accuracy: of the same version, in 0…1; `None` where it was not measured.
        problem: what is wrong with it; empty if nothing is.
    """

    name: str
    versions: tuple[int, ...]
    aliases: dict[str, int]
    loaded: tuple[LoadedVersion, ...] = ()
    class_names: tuple[str, ...] = ()
    test_accuracy: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class StoredGallery:
    """Where a model is wrong on images it did not learn from.

    Attributes:
        name: of the model.
        version: of the model.
        content: `gallery.json` of its bundle; `None` where it has none.
    """

    name: str
    version: int
    content: bytes | None


class Classifier(Protocol):
    """What the ingress asks for. A reference is as in the model store: `name`, `name@version`; `None` is the server's own model.

    Every method raises `UnavailableError` when nobody can answer, and `DeadlineError` when nobody does.
    """

    async def status(self, reference: str | None = None) -> Status:
        """The model that answers now; one that was named is loaded first."""

    async def models(self) -> list[StoredModel]:
        """All models in the store."""

    async def gallery(self, reference: str | None) -> StoredGallery | Status:
        """What a model gets wrong, read from the store; a `Status` where there is no such model."""

    async def classify(self, images: Pixels, reference: str | None, resize_policy: ResizePolicy) -> Classified | Status:
        """Classifies images.

        Args:
            images: uint8 `[N, S, S, 3]`; 1 ≤ N ≤ `max_batch_size`.
            reference: which model.
            resize_policy: how they became square.

        Returns:
            A `Status` where nothing was computed: there is no model, or it takes another size or policy; decode again as it says.
        """

    async def explain(self, image: Pixels, reference: str | None, expected: ModelInfo, class_id: int | None) -> Explained | Status:
        """Shows where a class was seen in an image (Grad-CAM).

        Args:
            image: uint8 `[S, S, 3]`.
            reference: which model.
            expected: what it was when the image was decoded for it.
            class_id: the class; `None` is the one predicted.

        Returns:
            A `Status` where nothing was computed: there is no model, or it is another one by now; decode again as it says.
        """


class Observer(Protocol):
    """Who counts what the ingress does."""

    def answered(self, timings_ms: Timings) -> None:
        """A request was answered."""

    def refused(self, reason: str) -> None:
        """A request was not answered; the reason is one of a few, such as `Unprocessable Entity`."""

    def pending(self, images: int) -> None:
        """How many images are being decoded, wait, or are with a model."""
