"""Recipes: named, complete training configs, which flags and config files override."""

from __future__ import annotations

from typing import Any

from cifar_ray.config import TrainConfig
from cifar_ray.errors import ConfigError
from cifar_ray.recipes.airbench import airbench94, airbench96
from cifar_ray.recipes.photographs import lite0_finetune, photos
from cifar_ray.recipes.recipe import RECIPES, Recipe
from cifar_ray.recipes.resnets import resnet9_onecycle, resnet18, resnet50_finetune, wide_resnet28_10
from cifar_ray.recipes.small_networks import cnn6, cnn_steplr, digits, small_cnn, vgg3

__all__ = [
    "Recipe",
    "airbench94",
    "airbench96",
    "cnn6",
    "cnn_steplr",
    "default_recipe",
    "describe_recipes",
    "digits",
    "get_recipe",
    "list_recipes",
    "lite0_finetune",
    "photos",
    "recipe_search_space",
    "resnet9_onecycle",
    "resnet18",
    "resnet50_finetune",
    "small_cnn",
    "vgg3",
    "wide_resnet28_10",
]

_DEFAULT_FOR_MODEL = {
    "airnet": "airbench94",
    "airnet96": "airbench96",
    "cnn3": "cnn_steplr",
    "resnet9": "resnet9_onecycle",
    "resnet50": "resnet50_finetune",
}


def list_recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    return dict(RECIPES)


def describe_recipes() -> str:
    """Table of all recipes, with the cost of their networks and the expected accuracy."""
    rows = [f"{'recipe':18}{'parameters':>11}{'MFLOPs':>8}{'epochs':>8}  test accuracy"]
    for name, recipe in RECIPES.items():
        cost = f"{recipe.parameters / 1e6:>9.2f} M{recipe.flops / 1e6:>8,.0f}{recipe.make().epochs:>8}"
        rows += [f"{name:18}{cost}  {recipe.accuracy}", f"{'':4}{recipe.summary}"]
    return "\n".join([*rows, "MFLOPs: forward pass of one image of 32 px"])


def get_recipe(name: str) -> TrainConfig:
    """The config of a recipe.

    Raises:
        ConfigError: for an unknown name.
    """
    return _find(name).make()


def recipe_search_space(name: str) -> dict[str, Any]:
    """Search space of `tune` for a recipe: field → {kind: bounds or values}, as in `tuning.space`.

    Raises:
        ConfigError: for an unknown name.
    """
    return dict(_find(name).space)


def default_recipe(dataset: str | None, model: str | None) -> str:
    """Default recipe for an architecture, else for a data set."""
    if dataset == "digits" and model in (None, "small_cnn"):
        return "digits"
    if model is not None and model.startswith("timm:"):
        return "photos"
    named = _DEFAULT_FOR_MODEL.get(model or "airnet", model)
    return named if named in RECIPES else "airbench94"


def _find(name: str) -> Recipe:
    if name not in RECIPES:
        raise ConfigError(f"--recipe {name}: unknown recipe. Available: {', '.join(RECIPES)}")
    return RECIPES[name]
