"""What a recipe is: a function that gives a whole training config, and what is known of it before it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cifar_ray.config import TrainConfig

SearchSpace = dict[str, dict[str, list[Any]]]

AUGMENTATION_SPACE: SearchSpace = {"label_smoothing": {"uniform": [0.0, 0.3]}, "augmentation.translate_px": {"randint": [0, 4]}}


@dataclass(frozen=True)
class Recipe:
    """A recipe and its figures, which a test holds against the network.

    Attributes:
        make: gives the config.
        parameters: of its network for 10 classes.
        flops: of one image in a forward pass, two for each multiplication with addition.
        accuracy: on the test images of its data set, and where the figure comes from.
        space: what `tune` searches around it, as `tuning.space` reads it.
    """

    make: Callable[[], TrainConfig]
    parameters: int
    flops: int
    accuracy: str
    space: SearchSpace

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.make.__doc__ or "").partition("\n")[0]


RECIPES: dict[str, Recipe] = {}


def recipe(
    *, parameters: int, flops: int, accuracy: str, space: SearchSpace
) -> Callable[[Callable[[], TrainConfig]], Callable[[], TrainConfig]]:
    """Lists a function as the recipe of its name; the arguments are those of `Recipe`."""

    def listed(make: Callable[[], TrainConfig]) -> Callable[[], TrainConfig]:
        RECIPES[make.__name__] = Recipe(make, parameters, flops, accuracy, space)
        return make

    return listed


def around(lr: float, weight_decay: float | None = None) -> SearchSpace:
    """Rates over a decade to either side."""
    space: SearchSpace = {"optimizer.lr": {"loguniform": [lr / 10, lr * 10]}}
    if weight_decay is not None:
        space["optimizer.weight_decay"] = {"loguniform": [weight_decay / 10, weight_decay * 10]}
    return space
