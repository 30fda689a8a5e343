"""Features of a pretrained network for all pictures of a split, read from the cache or computed by the fastest engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cifar_ray.data.statistics import ChannelValues
from cifar_ray.data.task_progress import StartTask, no_progress
from cifar_ray.inference.engines.choice import choose
from cifar_ray.inference.engines.conversion import NetworkInput
from cifar_ray.inference.engines.engine import TorchEngine
from cifar_ray.inference.halving import Halving
from cifar_ray.models.precision import Precision
from cifar_ray.models.stages import head_name
from cifar_ray.models.views import check_views, view
from cifar_ray.training.probe.feature_cache import FeatureCache, digest

BATCH_SIZE = 16  # small, so that activations stay in the cache of a CPU core
GPU_BATCH_SIZE = 256
ROWS_PER_FILE = 4096  # also the maximum number of pictures whose features an interrupted run loses

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Backbone:
    """A pretrained network without its head.

    Attributes:
        network: maps normalised images, `[N, 3, H, W]`, to features, `[N, D]`; in evaluation mode.
        model: name of the network.
        sha256: sha256 of the weights without the head.
        image_size_px: side of the images.
        mean: mean of the channels for the normalisation.
        std: standard deviation of the channels for the normalisation.
        mirror: whether every second view is mirrored.
    """

    network: nn.Module
    model: str
    sha256: str
    image_size_px: int
    mean: ChannelValues
    std: ChannelValues
    mirror: bool = True

    @classmethod
    def of(
        cls, network: nn.Module, model: str, image_size_px: int, mean: ChannelValues, std: ChannelValues, mirror: bool = True
    ) -> Backbone:
        """Create a backbone from a network; the head of this network is replaced in place by `nn.Identity`."""
        head = head_name(network)
        sha256 = hash_weights({name: tensor for name, tensor in network.state_dict().items() if not name.startswith(f"{head}.")})
        network.set_submodule(head, nn.Identity())
        return cls(network.eval(), model, sha256, image_size_px, mean, std, mirror)

    def key(self, number: int, precision: str) -> str:
        """Cache key of the features of view `number`: equal keys mean equal features, within the rounding of the number format."""
        shown = number if self.mirror or number == 0 else f"{number}-unmirrored"
        text = repr((self.model, self.sha256, self.image_size_px, self.mean, self.std, shown, precision))
        return f"{self.model.rpartition(':')[2]}-{self.image_size_px}px-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """sha256 of the names and values of a state dict, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode() + b"\0")
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Images(Protocol):
    """Images of a split, in memory or in files."""

    def __len__(self) -> int: ...

    def read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The images at `rows`, uint8 `[n, S, S, 3]`."""


class _OneView(nn.Module):
    def __init__(self, network: nn.Module, number: int, mirror: bool) -> None:
        super().__init__()
        self.network, self.number, self.mirror = network, number, mirror

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(view(images, self.number, self.mirror))
        return features


class Computing(Protocol):
    """Computes features of one view.

    Attributes:
        precision: name of the number format.
    """

    precision: str

    def __call__(self, images: npt.NDArray[np.uint8]) -> Iterator[Floats]:
        """Yield the features of images, uint8 `[N, S, S, 3]`, in their order, one batch, float32 `[n, D]`, at a time."""


class ComputeHere:
    """Computes features in this process with the fastest engine; it halves the batches if memory runs out.

    Args:
        backbone: the network.
        number: number of the view.
    """

    def __init__(self, backbone: Backbone, number: int) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = Precision.resolve("auto", device)
        network = _OneView(backbone.network, number, backbone.mirror).to(device).to(memory_format=torch.channels_last).eval()
        about = NetworkInput(backbone.image_size_px, backbone.mean, backbone.std)
        self.precision = precision.name
        self._reference = TorchEngine(network, about, precision)
        self._run: Halving | None = None  # created on first use: choosing an engine takes seconds, and cached features need none
        self._batch_size = GPU_BATCH_SIZE if device.type == "cuda" else BATCH_SIZE

    def __call__(self, images: npt.NDArray[np.uint8]) -> Iterator[Floats]:
        """Implements `Computing`."""
        if self._run is None:
            engine = choose(self._reference, "auto", may_be_exact=True)[0]
            self._run = Halving(lambda images: (engine.logits(images),))
        for start in range(0, len(images), self._batch_size):
            yield np.array(self._run(images[start : start + self._batch_size])[0])


Opener = Callable[[Backbone, int], Computing]


class Extractor:
    """Reads features of one view from the cache and computes the missing ones; one extractor serves several splits.

    Args:
        backbone: the network.
        number: number of the view.
        open_view: creates the `Computing` for the missing features.
    """

    def __init__(self, backbone: Backbone, number: int, open_view: Opener = ComputeHere) -> None:
        self._compute = open_view(backbone, number)
        self._cache = FeatureCache(backbone.key(number, self._compute.precision))

    def __call__(self, images: Images, on_done: Callable[[int], None]) -> Floats:
        """Features, float32 `[N, D]`, of a split; it reads `ROWS_PER_FILE` pictures at a time.

        Args:
            images: the split, with at least one image.
            on_done: receives the number of newly finished pictures.
        """
        features: Floats | None = None
        for start in range(0, len(images), ROWS_PER_FILE):
            block = images.read(np.arange(start, min(start + ROWS_PER_FILE, len(images))))
            values = self._block(block, on_done)
            features = np.empty((len(images), values.shape[1]), np.float32) if features is None else features
            features[start : start + len(values)] = values
        assert features is not None, "a split has images"  # noqa: S101
        return features

    def _block(self, images: npt.NDArray[np.uint8], on_done: Callable[[int], None]) -> Floats:
        digests = [digest(image) for image in images]
        found = [self._cache.find(one) for one in digests]
        missing = [row for row, values in enumerate(found) if values is None]
        on_done(len(images) - len(missing))
        if missing:
            computed: list[Floats] = []
            for values in self._compute(images[missing] if len(missing) < len(images) else images):
                computed.append(values)
                on_done(len(values))
            new = np.concatenate(computed)
            self._cache.add([digests[row] for row in missing], new)
            for row, values in zip(missing, new, strict=True):
                found[row] = values
        return np.stack([values for values in found if values is not None])


def extract(
    backbone: Backbone, views: int, splits: Mapping[str, Images], progress: StartTask = no_progress, open_view: Opener = ComputeHere
) -> dict[str, Floats]:
    """Mean of the features over the views, float32 `[N, D]`, by split.

    Args:
        backbone: the network.
        views: number of views.
        splits: images by split.
        progress: receives the progress.
        open_view: creates the `Computing` of each view.

    Raises:
        ConfigError: if `views` is out of range, see `check_views`.
    """
    check_views(views, backbone.mirror)
    sums: dict[str, Floats] = {}
    on_done = progress("computing features", views * sum(map(len, splits.values())))
    for number in range(views):
        extractor = Extractor(backbone, number, open_view)
        for split, images in splits.items():
            features = extractor(images, on_done)
            sums[split] = features if number == 0 else np.add(sums[split], features, out=sums[split])
    return {split: np.divide(total, views, out=total) for split, total in sums.items()} if views > 1 else sums


def extract_view(
    backbone: Backbone, number: int, images: Images, progress: StartTask = no_progress, open_view: Opener = ComputeHere
) -> Floats:
    """Features of one view, float32 `[N, D]`."""
    return Extractor(backbone, number, open_view)(images, progress("computing features", len(images)))
