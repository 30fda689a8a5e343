"""A recipe: a function that returns a complete training config, with known figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cifar_ray.config import TrainConfig

SearchSpace = dict[str, dict[str, list[Any]]]

AUGMENTATION_SPACE: SearchSpace = {"label_smoothing": {"uniform": [0.0, 0.3]}, "augmentation.translate_px": {"randint": [0, 4]}}


@dataclass(frozen=True)
class Recipe:
    """A recipe and its figures; a test compares the figures with the network.

    Attributes:
        make: returns the config.
        parameters: number of parameters of the network for 10 classes.
        flops: FLOPs of a forward pass for one image; a multiply-add counts as two.
        accuracy: test accuracy and its source.
        space: search space of `tune`, as in `tuning.space`.
    """

    make: Callable[[], TrainConfig]
    parameters: int
    flops: int
    accuracy: str
    space: SearchSpace

    @property
    def summary(self) -> str:
        """The first line of the docstring of `make`, for lists of recipes."""
        return (self.make.__doc__ or "").partition("\n")[0]


RECIPES: dict[str, Recipe] = {}


def recipe(
    *, parameters: int, flops: int, accuracy: str, space: SearchSpace
) -> Callable[[Callable[[], TrainConfig]], Callable[[], TrainConfig]]:
    """Register a function as a recipe under its name; the arguments are those of `Recipe`."""

    def register(make: Callable[[], TrainConfig]) -> Callable[[], TrainConfig]:
        RECIPES[make.__name__] = Recipe(make, parameters, flops, accuracy, space)
        return make

    return register


def around(lr: float, weight_decay: float | None = None) -> SearchSpace:
    """Search space in which learning rate and weight decay range from a tenth of the given value to ten times the value."""
    space: SearchSpace = {"optimizer.lr": {"loguniform": [lr / 10, lr * 10]}}
    if weight_decay is not None:
        space["optimizer.weight_decay"] = {"loguniform": [weight_decay / 10, weight_decay * 10]}
    return space
