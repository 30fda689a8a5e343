"""What recipes say of themselves."""

import pytest
import torch

from cifar_ray.models import count_flops, create_model, list_models
from cifar_ray.recipes import default_recipe, get_recipe, list_recipes


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipes_parameters_and_flops_are_those_of_its_network(name: str) -> None:
    recipe, config = list_recipes()[name], get_recipe(name)
    assert config.recipe == name
    with torch.device("meta"):
        model = create_model(config.model, num_classes=10, image_size=32).eval()
    assert recipe.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert recipe.flops == count_flops(model, 32)
    assert recipe.summary.endswith(".")


def test_every_architecture_has_a_recipe_of_its_own() -> None:
    assert [get_recipe(default_recipe(None, model)).model for model in list_models()] == list_models()
