"""`Predictor`: a bundle made ready to answer. Plain torch; servers and scripts share it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cifar_ray.config import PrecisionName
from cifar_ray.data.transforms import normalize
from cifar_ray.errors import BundleError, ConfigError
from cifar_ray.models import create_model
from cifar_ray.models.precision import Precision
from cifar_ray.store import Bundle


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the network says of N images.

    Attributes:
        logits: float32 `[N, C]`, as they leave the network.
        probabilities: float32 `[N, C]`, softmax of logits ÷ temperature; each row sums to 1.
    """

    logits: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]


class Predictor:
    """Rebuilds the network of a bundle and runs it.

    Safe to call from several threads.

    Args:
        bundle: as `ModelStore.load` gives it.
        device: where to run.
        precision: `auto` is what training uses on this device.

    Attributes:
        manifest: the bundle's.
        precision: the format chosen.

    Raises:
        BundleError: if architecture, weights and manifest do not fit together, or the weights give no finite logits.
        ConfigError: if the device cannot compute in the precision asked for.
    """

    def __init__(self, bundle: Bundle, device: str | torch.device = "cpu", precision: PrecisionName = "auto") -> None:
        self.manifest = bundle.manifest
        self.precision = Precision.resolve(precision, torch.device(device))
        self._model = _rebuild(bundle).to(self.precision.device).to(memory_format=torch.channels_last).eval()
        self._check(bundle.reference)

    @torch.inference_mode()
    def predict(self, images: npt.NDArray[np.uint8]) -> Prediction:
        """Runs the network once over all images.

        Args:
            images: uint8 `[N, S, S, 3]` with S = `manifest.image_size_px`, RGB.

        Raises:
            ValueError: for another dtype or shape.
        """
        size = self.manifest.image_size_px
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(f"images must be uint8 [N, {size}, {size}, 3], got {images.dtype} {list(images.shape)}")
        # Ray hands out read-only arrays, which torch does not wrap
        pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.precision.device)
        inputs = normalize(pixels, self.manifest.channel_mean, self.manifest.channel_std, self.precision.dtype)
        with self.precision.autocast():
            logits = self._model(inputs)
        logits = logits.float()
        probabilities = torch.softmax(logits / self.manifest.temperature, dim=1)
        return Prediction(logits.cpu().numpy(), probabilities.cpu().numpy())

    def warm_up(self, batch_size: int) -> None:
        """Runs one batch of black images, so that the first real one need not wait for kernels and memory."""
        size = self.manifest.image_size_px
        self.predict(np.zeros((batch_size, size, size, 3), np.uint8))

    def _check(self, where: str) -> None:
        size, num_classes = self.manifest.image_size_px, len(self.manifest.class_names)
        try:
            logits = self.predict(np.zeros((1, size, size, 3), np.uint8)).logits
        except RuntimeError as error:
            raise BundleError(f"{where}: the network does not take images of {size} px: {_one_line(error)}") from None
        if logits.shape != (1, num_classes):
            raise BundleError(f"{where}: the network gives {logits.shape[1]} logits for {num_classes} class names")
        if not np.isfinite(logits).all():
            raise BundleError(f"{where}: the weights give logits that are not finite; train again")


def _rebuild(bundle: Bundle) -> torch.nn.Module:
    architecture, where = bundle.manifest.architecture, bundle.reference
    try:
        model = create_model(architecture.name, **architecture.arguments)
    except (ConfigError, TypeError) as error:
        raise BundleError(f"{where}: cannot build its network: {_one_line(error)}") from None
    try:
        model.load_state_dict(bundle.weights, strict=True)
    except RuntimeError as error:
        raise BundleError(f"{where}: weights do not fit {architecture.name}: {_one_line(error)}") from None
    return model


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
