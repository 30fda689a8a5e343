"""The search space: reading, checking, and putting drawn values into a config."""

import pytest
import yaml

from cifar_ray.config import TrainConfig
from cifar_ray.errors import ConfigError
from cifar_ray.recipes import get_recipe, list_recipes, recipe_search_space
from cifar_ray.tuning.space import parse_space, present_values, to_mapping, trial_config


@pytest.mark.parametrize("recipe", list_recipes())
def test_each_recipe_has_a_space_that_holds_the_recipe_itself(recipe: str) -> None:
    fixed = get_recipe(recipe)
    space = parse_space(recipe_search_space(recipe), fixed)
    own = present_values(fixed, space)
    assert own is not None
    assert trial_config(fixed, own) == fixed


def test_a_space_reads_nested_and_dotted_and_comes_back_from_its_own_yaml() -> None:
    text = """
    optimizer: {lr: {loguniform: [1e-3, 1]}, name: {choice: [sgd, muon]}}
    augmentation.translate_px: {randint: [0, 4]}
    label_smoothing: {uniform: [0, 0.3]}
    """
    space = parse_space(yaml.safe_load(text), TrainConfig())
    assert [parameter.path for parameter in space] == ["optimizer.lr", "optimizer.name", "augmentation.translate_px", "label_smoothing"]
    assert space[0].values == (0.001, 1)
    assert parse_space(yaml.safe_load(yaml.safe_dump(to_mapping(space), sort_keys=False)), TrainConfig()) == space


def test_every_mistake_in_a_space_gets_its_line() -> None:
    mistakes = {
        "optimizer.lr": ({"loguniform": [0, 1]}, "loguniform needs low > 0"),
        "label_smoothing": ({"uniform": [0, 2]}, "Input should be less than 1 (got 2)"),
        "epochs": ({"choice": [1, 2]}, "must be the same for all trials"),
        "split_seed": ({"choice": [1, 2]}, "must be the same for all trials"),
        "with_reviews": ({"choice": [True, False]}, "must be the same for all trials"),
        "optimizer.speed": ({"choice": [1, 2]}, "no such field"),
        "batch_size": ({"choice": [100]}, "at least two values"),
        "augmentation.cutout_px": ({"randint": [0.5, 2]}, "two whole numbers"),
        "optimizer.momentum": ({"normal": [0, 1]}, "unknown kind 'normal'"),
        "schedule.final_factor": (0.5, "expected one of"),
        "patience": ({"randint": [3, 3]}, "low < high"),
    }
    with pytest.raises(ConfigError) as caught:
        parse_space({path: domain for path, (domain, _) in mistakes.items()}, TrainConfig())
    lines = str(caught.value).splitlines()
    assert len(lines) == len(mistakes)
    for line, (path, (_, message)) in zip(lines, mistakes.items(), strict=True):
        assert line.startswith(f"search space: {path}: ") or path in line
        assert message in line


def test_a_value_that_is_impossible_beside_the_fixed_part_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup_epochs .* must be less than epochs"):
        parse_space({"schedule.warmup_epochs": {"randint": [0, 9]}}, TrainConfig(epochs=8))


def test_a_start_outside_the_space_is_no_start() -> None:
    space = parse_space({"optimizer.lr": {"loguniform": [0.3, 1.0]}}, TrainConfig())
    assert present_values(TrainConfig(), space) is None


def test_a_grid_has_all_values_or_both_ends_and_the_middle() -> None:
    domains = {
        "optimizer.lr": {"loguniform": [0.01, 1.0]},
        "label_smoothing": {"uniform": [0.0, 0.2]},
        "augmentation.translate_px": {"randint": [0, 4]},
        "batch_size": {"choice": [500, 1000]},
    }
    grids = [list(parameter.grid()) for parameter in parse_space(domains, TrainConfig())]
    assert grids == [[0.01, pytest.approx(0.1), 1.0], [0.0, 0.1, 0.2], [0, 2, 4], [500, 1000]]
