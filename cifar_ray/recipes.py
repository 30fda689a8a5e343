"""Named, complete training configs. Flags and files change what a recipe sets."""

from __future__ import annotations

from collections.abc import Callable

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


def default_recipe(dataset: str | None, model: str | None) -> str:
    """The recipe that is meant where none is named: the architecture decides, else the data set."""
    if model in _DEFAULT_FOR_MODEL and not (dataset == "digits" and model == "small_cnn"):
        return _DEFAULT_FOR_MODEL[model]
    return "digits" if dataset == "digits" else "airbench94"
