"""`Predictor` runs the network of a bundle; servers and scripts use it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cifar_ray.config import EngineName, PrecisionName
from cifar_ray.errors import BundleError, ConfigError
from cifar_ray.inference.engines.choice import choose
from cifar_ray.inference.engines.engine import Engine, TorchEngine
from cifar_ray.inference.halving import Halving
from cifar_ray.metrics.familiarity import unit
from cifar_ray.models import create_model
from cifar_ray.models.precision import Precision
from cifar_ray.store import Bundle
from cifar_ray.store.trust_file import FAMILIARITY_FILE, read_trust


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predictions for N images.

    Attributes:
        logits: float32 `[N, C]`, the output of the network.
        probabilities: float32 `[N, C]`, softmax of logits ÷ temperature, each row sums to 1; for a multi-label model one
            independent probability per label, see `LabelRules`.
        labels: bool `[N, C]`, the labels that are given: exactly the most likely class, or for a multi-label model any number of labels.
        abstains: bool `[N]`, whether the model abstains because the image is unlike the images it was validated on.
        features: float32 `[N, D]`, the input of the last linear layer; D is 0 if the network, or its int8 form, has no features.
    """

    logits: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    labels: npt.NDArray[np.bool_]
    abstains: npt.NDArray[np.bool_]
    features: npt.NDArray[np.float32]


class Predictor:
    """Rebuilds and runs the network of a bundle.

    Safe to call from several threads.

    Args:
        bundle: a bundle from `ModelStore.load`.
        device: device of the network.
        precision: `auto` is the same as `auto` for training on this device; with it, OpenVINO may also compute in fp32 or int8.
        engine: `auto` is the fastest engine on this machine whose logits match those of plain torch; `torch` is plain torch.

    Attributes:
        manifest: manifest of the bundle.
        network: the network in evaluation mode, on the precision's device; `explain` needs its gradients.
        precision: the chosen number format; with an int8 engine, the format of the other operations.
        engine: name of the chosen engine.
        engine_reason: reason for the choice, as a clause for a log.

    Raises:
        BundleError: if architecture, weights and manifest do not match, or the logits are not finite.
        ConfigError: if the device does not support the requested precision or engine.
        MissingDependencyError: if the requested engine is not installed.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str | torch.device = "cpu",
        precision: PrecisionName = "auto",
        engine: EngineName = "auto",
    ) -> None:
        self.manifest = bundle.manifest
        self._trust = read_trust(bundle)
        wanted = Precision.resolve(precision, torch.device(device))
        self.network = _rebuild(bundle).to(wanted.device).to(memory_format=torch.channels_last).eval()
        self._engine: Engine = TorchEngine(self.network, self.manifest, wanted)
        self._outputs = Halving(self._engine.outputs)
        self._check(bundle.reference)
        # an explicit precision excludes int8, unless the engine is explicit as well
        attachments = bundle.attachments if precision == "auto" or engine != "auto" else None
        self._engine, self.engine_reason = choose(self._engine, engine, attachments, may_be_exact=precision == "auto")
        self._outputs = Halving(self._engine.outputs)
        self.engine, self.precision = self._engine.name, self._engine.precision

    def predict(self, images: npt.NDArray[np.uint8]) -> Prediction:
        """Run the network on all images: at once, or in parts if memory runs out.

        Args:
            images: uint8 `[N, S, S, 3]` with S = `manifest.image_size_px`, RGB.

        Raises:
            ValueError: for another dtype or shape.
            ResourceError: if there is not enough memory for one image.
        """
        size = self.manifest.image_size_px
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(f"images must be uint8 [N, {size}, {size}, 3], got {images.dtype} {list(images.shape)}")
        logits, features = self._outputs(images)
        if self._trust.rules is None:  # torch's softmax is faster
            probabilities = torch.softmax(torch.from_numpy(logits) / self.manifest.temperature, dim=1).numpy()
        else:
            probabilities = self._trust.probabilities(logits)
        return Prediction(logits, probabilities, self._trust.labels(probabilities), self._trust.abstains(logits, features), features)

    def embed(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embeddings: features of length 1, float32 `[N, D]`. Similar pictures have similar embeddings.

        Raises:
            ConfigError: if the network does not end in a linear layer, or its int8 form has no features.
            ValueError, ResourceError: see `predict`.
        """
        features = self.predict(images).features
        if not features.shape[1]:
            raise ConfigError(f"{self.engine}: this network gives no features; choose another model or --engine torch")
        return unit(features)

    def warm_up(self, batch_size: int) -> None:
        """Prepare batches of up to `batch_size` images, so that the first real one does not wait for kernels and memory."""
        size = self.manifest.image_size_px
        self._engine.warm_up(batch_size)
        self.predict(np.zeros((batch_size, size, size, 3), np.uint8))

    def _check(self, where: str) -> None:
        size, num_classes = self.manifest.image_size_px, len(self.manifest.class_names)
        try:
            logits, features = self._outputs(np.zeros((1, size, size, 3), np.uint8))
        except RuntimeError as error:
            raise BundleError(f"{where}: the network does not accept images of {size} px: {_one_line(error)}") from None
        if logits.shape != (1, num_classes):
            raise BundleError(f"{where}: the network has {logits.shape[1]} outputs, but the manifest has {num_classes} class names")
        if not np.isfinite(logits).all():
            raise BundleError(f"{where}: the logits are not finite; train the model again")
        known = self._trust.familiarity
        if known is not None and features.shape[1] != known.known.shape[1]:
            raise BundleError(f"{where}: {FAMILIARITY_FILE} is of another network; calibrate the model again")


def _rebuild(bundle: Bundle) -> torch.nn.Module:
    architecture, where = bundle.manifest.architecture, bundle.reference
    try:
        model = create_model(architecture.name, **architecture.arguments)
    except (ConfigError, TypeError) as error:
        raise BundleError(f"{where}: cannot create its network: {_one_line(error)}") from None
    try:
        model.load_state_dict(bundle.weights, strict=True)
    except RuntimeError as error:
        raise BundleError(f"{where}: the weights do not match {architecture.name}: {_one_line(error)}") from None
    return model


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
