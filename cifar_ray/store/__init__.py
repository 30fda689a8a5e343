"""Model bundles, and the store that holds them by name and version."""

from cifar_ray.metrics.label_rules import LabelRules
from cifar_ray.store.aliases import PREVIOUS, PRODUCTION
from cifar_ray.store.bundle import Bundle
from cifar_ray.store.locate import load_model
from cifar_ray.store.manifest import Architecture, Manifest, PretrainedOrigin, Quantization
from cifar_ray.store.promotion import should_promote
from cifar_ray.store.registry import LATEST, ModelStore

__all__ = [
    "LATEST",
    "PREVIOUS",
    "PRODUCTION",
    "Architecture",
    "Bundle",
    "LabelRules",
    "Manifest",
    "ModelStore",
    "PretrainedOrigin",
    "Quantization",
    "load_model",
    "should_promote",
]
