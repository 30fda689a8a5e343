"""Named, complete training configs. Flags and files change what a recipe sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cifar_ray.config import AugmentationConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from cifar_ray.errors import ConfigError


def airbench94() -> TrainConfig:
    """AirNet with Muon in 8 epochs, the default for 32-px images.

    The recipe of airbench94_muon (Jordan 2024): 94.0 % on CIFAR-10 as published, mirror-and-shift views averaged.
    """
    return TrainConfig(recipe="airbench94")


def resnet18() -> TrainConfig:
    """ResNet-18 with SGD and a cosine schedule in 30 epochs, the usual baseline; meant for a GPU."""
    return TrainConfig(
        recipe="resnet18",
        model="resnet18",
        epochs=30,
        batch_size=512,
        label_smoothing=0.1,
        optimizer=OptimizerConfig(name="sgd", lr=0.4, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=2),
        augmentation=AugmentationConfig(flip="random", translate_px=4),
    )


def small_cnn() -> TrainConfig:
    """A small plain network with AdamW in 10 epochs: a minute an epoch on an old laptop."""
    return TrainConfig(
        recipe="small_cnn",
        model="small_cnn",
        epochs=10,
        batch_size=256,
        label_smoothing=0.05,
        optimizer=OptimizerConfig(name="adamw", lr=3e-3, weight_decay=0.01),
        schedule=ScheduleConfig(name="one_cycle"),
        augmentation=AugmentationConfig(flip="random", translate_px=2),
    )


def digits() -> TrainConfig:
    """The small network on the built-in handwritten digits: seconds, no network."""
    return small_cnn().model_copy(
        update={
            "recipe": "digits",
            "dataset": "digits",
            "epochs": 12,
            "batch_size": 64,
            "test_time_augmentation": "none",
            "augmentation": AugmentationConfig(flip="none", translate_px=2),
        }
    )


_RECIPES: dict[str, Callable[[], TrainConfig]] = {recipe.__name__: recipe for recipe in (airbench94, resnet18, small_cnn, digits)}
_DEFAULT_FOR_MODEL = {"airnet": "airbench94", "resnet18": "resnet18", "small_cnn": "small_cnn"}

_COMMON_SPACE = {"label_smoothing": {"uniform": [0.0, 0.3]}, "augmentation.translate_px": {"randint": [0, 4]}}
_SPACES: dict[str, dict[str, Any]] = {
    "airbench94": {
        "optimizer.lr": {"loguniform": [0.024, 2.4]},
        "optimizer.head_lr": {"loguniform": [0.067, 6.7]},
        "optimizer.bias_lr": {"loguniform": [0.0053, 0.53]},
        "augmentation.cutout_px": {"choice": [0, 4, 8, 12]},
    }
    | _COMMON_SPACE,
    "resnet18": {
        "optimizer.lr": {"loguniform": [0.04, 4.0]},
        "optimizer.weight_decay": {"loguniform": [5e-5, 5e-3]},
        "augmentation.cutout_px": {"choice": [0, 4, 8, 12]},
    }
    | _COMMON_SPACE,
    "small_cnn": {
        "optimizer.lr": {"loguniform": [3e-4, 3e-2]},
        "optimizer.weight_decay": {"loguniform": [1e-3, 0.3]},
        "augmentation.flip": {"choice": ["random", "alternating"]},
    }
    | _COMMON_SPACE,
    "digits": {
        "optimizer.lr": {"loguniform": [3e-4, 3e-2]},
        "optimizer.weight_decay": {"loguniform": [1e-3, 0.3]},
    }
    | _COMMON_SPACE,
}


def list_recipes() -> dict[str, str]:
    """Names and first docstring lines of all recipes."""
    return {name: (recipe.__doc__ or "").partition("\n")[0] for name, recipe in _RECIPES.items()}


def get_recipe(name: str) -> TrainConfig:
    """The config of a recipe.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in _RECIPES:
        raise ConfigError(f"--recipe {name}: unknown; there are {', '.join(_RECIPES)}")
    return _RECIPES[name]()


def recipe_search_space(name: str) -> dict[str, Any]:
    """What `tune` searches around a recipe: field → {kind: bounds or values}, as `tuning.space` reads it.

    Rates range over a decade to either side of the recipe's.
    """
    get_recipe(name)
    return _SPACES[name]


def default_recipe(dataset: str | None, model: str | None) -> str:
    """The recipe that is meant where none is named: the architecture decides, else the data set."""
    if model in _DEFAULT_FOR_MODEL and not (dataset == "digits" and model == "small_cnn"):
        return _DEFAULT_FOR_MODEL[model]
    return "digits" if dataset == "digits" else "airbench94"
