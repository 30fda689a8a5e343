"""The interface between ingress and classifier. This module does not import torch, because the ingress does not need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from cifar_ray.config import ResizePolicy, TaskName
from cifar_ray.errors import CifarRayError, ImageError, UnknownModelError
from cifar_ray.metrics.label_rules import LabelRules
from deployments.predicting.schemas import Timings

# Events of a trial: the version on trial answered a request, classified it as a shadow, or failed; for a picture, both versions agreed, or
# their answers differed; a comparison was dropped, because the server was busy.
TrialEvent = Literal["answered", "shadowed", "failed", "agreed", "differed", "dropped"]
Pixels = npt.NDArray[np.uint8]
# A picture of a request: an image file, unchecked, or ready pixels, RGB uint8 `[H, W, 3]`
Picture = bytes | Pixels

_LISTED_CLASSES = 200


class UnavailableError(CifarRayError):
    """No prediction is possible now, but may be possible later. The message says why and what to do."""


class LoadingError(UnavailableError):
    """The replica is loading the model at this moment."""


class ModelFailedError(CifarRayError):
    """The model gave no usable answer for a picture. Another version may give one."""


class ReplicaLostError(UnavailableError):
    """A replica died during the call. The call has no side effects, so it can be retried on another replica."""


class DeadlineError(CifarRayError):
    """The request took longer than `request_timeout_s`."""


class UnknownClassError(CifarRayError):
    """The model has no such class. The message lists its classes."""


class PixelSizeError(ImageError):
    """The size of ready pixels is not the input size of the model; it may fit another model or version."""


@dataclass(frozen=True)
class ModelInfo:
    """The part of a model's manifest that the ingress needs.

    Attributes:
        name: name of the model.
        version: version of the model.
        class_names: one name per class, in the order of the probabilities.
        image_size_px: height and width of the network's input.
        resize_policy: policy for other aspect ratios.
        rules: with several labels per picture, the threshold of each label; `None` if a picture has exactly one class.
    """

    name: str
    version: int
    class_names: tuple[str, ...]
    image_size_px: int
    resize_policy: ResizePolicy
    rules: LabelRules | None = None

    @property
    def reference(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def task(self) -> TaskName:
        """Whether each picture has exactly one class, or any number of labels."""
        return "multi-label" if self.rules else "single-label"

    def class_id(self, name_or_id: str) -> int:
        """Find a class by its name, else by its id in digits.

        Raises:
            UnknownClassError: if it is neither.
        """
        if name_or_id in self.class_names:
            return self.class_names.index(name_or_id)
        if name_or_id in map(str, range(len(self.class_names))):
            return int(name_or_id)
        available = ", ".join(self.class_names[:_LISTED_CLASSES]) + (", …" if len(self.class_names) > _LISTED_CLASSES else "")
        raise UnknownClassError(
            f"class {name_or_id[:100]!r} of {self.reference} not found. Available: {available}, or class_id 0–{len(self.class_names) - 1}"
        )


@dataclass(frozen=True)
class Status:
    """State of a model on the server.

    Attributes:
        model: the model that predicts; `None` if none is available.
        problem: what is wrong and what to do; empty if the model is fine.
        is_known: whether the store contains the model.
        is_loading: whether the replica is loading the model at this moment.
    """

    model: ModelInfo | None
    problem: str = ""
    is_known: bool = True
    is_loading: bool = False

    def require(self) -> ModelInfo:
        """Return the model.

        Raises:
            UnknownModelError: if the store does not contain it.
            UnavailableError: if no model is available.
        """
        if self.model is None:
            raise (LoadingError if self.is_loading else UnavailableError if self.is_known else UnknownModelError)(self.problem)
        return self.model


@dataclass(frozen=True, eq=False)
class Classified:
    """Predictions for N images.

    Attributes:
        model: the model that made the predictions.
        probabilities: float32 `[N, C]`.
        abstains: bool `[N]`, images that are unlike the training images.
        batch_size: images in the forward pass, including those of other requests.
        inference_s: time of the forward pass, in seconds.
    """

    model: ModelInfo
    probabilities: npt.NDArray[np.float32]
    abstains: npt.NDArray[np.bool_]
    batch_size: int
    inference_s: float


@dataclass(frozen=True, eq=False)
class Explained:
    """Grad-CAM heatmap of a class in one image.

    Attributes:
        model: the explained model.
        class_id: the explained class.
        heatmap: float32 `[S, S]`, 0–1.
    """

    model: ModelInfo
    class_id: int
    heatmap: npt.NDArray[np.float32]


@dataclass(frozen=True, order=True)
class LoadedVersion:
    """A version in memory with its engine and precision: `engine` is `torch` or `openvino`, `precision` is `bf16`, `fp16` or `fp32`."""

    version: int
    engine: str
    precision: str


@dataclass(frozen=True)
class StoredModel:
    """One name in the model store.

    Attributes:
        name: name of the model.
        versions: all versions, ascending.
        aliases: versions by alias.
        loaded: versions in memory, ascending.
        class_names: classes of the version that the bare name refers to; empty if its manifest cannot be read.
        class_descriptions: descriptions of the same version, by class name.
        test_accuracy: accuracy of the same version, 0–1; `None` if not measured.
        task: whether the same version gives each picture exactly one class, or any number of labels.
        test_map: mean average precision of the same version, 0–1, with several labels per picture; `None` if not measured.
        problem: what is wrong with the model; empty if it is fine.
    """

    name: str
    versions: tuple[int, ...]
    aliases: dict[str, int]
    loaded: tuple[LoadedVersion, ...] = ()
    class_names: tuple[str, ...] = ()
    test_accuracy: float | None = None
    task: TaskName = "single-label"
    test_map: float | None = None
    problem: str = ""
    class_descriptions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredGallery:
    """A model's mistakes on images that were not in its training set.

    Attributes:
        name: name of the model.
        version: version of the model.
        content: `gallery.json` of the bundle; `None` if the bundle has none.
    """

    name: str
    version: int
    content: bytes | None


class Classifier(Protocol):
    """The calls of the ingress. A reference is as in the model store: `name`, `name@version`; `None` is the default model.

    Every method raises `UnavailableError` if no replica is available, and `DeadlineError` if none answers in time.
    """

    async def status(self, reference: str | None = None) -> Status:
        """State of a model; loads the model if `reference` is not `None` and the model is not in memory."""

    async def models(self) -> list[StoredModel]:
        """All models in the store."""

    async def gallery(self, reference: str | None) -> StoredGallery | Status:
        """A model's mistakes, read from the store; a `Status` if the model does not exist."""

    async def classify(self, images: Pixels, reference: str | None, resize_policy: ResizePolicy) -> Classified | Status:
        """Classify images.

        Args:
            images: uint8 `[N, S, S, 3]`; 1 ≤ N ≤ `max_batch_size`.
            reference: the model.
            resize_policy: the policy that made the images square.

        Returns:
            The predictions; or a `Status` if the model does not exist, or needs another size or policy: then decode again.
        """

    async def explain(self, image: Pixels, reference: str | None, expected: ModelInfo, class_id: int | None) -> Explained | Status:
        """Compute the heatmap of a class in an image (Grad-CAM).

        Args:
            image: uint8 `[S, S, 3]`.
            reference: the model.
            expected: the model for which the image was decoded.
            class_id: the class; `None` is the predicted class.

        Returns:
            The heatmap; or a `Status` if the model does not exist, or was replaced: then decode again.
        """


class Observer(Protocol):
    """Receives request events, for metrics."""

    def answered(self, timings_ms: Timings) -> None:
        """A request succeeded."""

    def refused(self, reason: str) -> None:
        """A request failed; the reason is one of a few, for example `Unprocessable Entity`."""

    def pending(self, images: int) -> None:
        """Number of images that are being decoded, waiting, or being classified."""

    def trial_event(self, name: str, version: int, event: TrialEvent, problem: str = "") -> None:
        """An event of a version on trial; `problem` says why it failed."""
