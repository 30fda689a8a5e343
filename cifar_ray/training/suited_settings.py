"""Choose settings that suit a user's data: data set, recipe, image size, split and batch size, by the number and size of the pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from cifar_ray.config import PRETRAINED_MODEL, TaskChoice, local_path, resolve_storage
from cifar_ray.config.base import MAX_IMAGE_SIZE_PX
from cifar_ray.errors import DataError
from cifar_ray.recipes import default_recipe, get_recipe

if TYPE_CHECKING:
    from cifar_ray.data.listing.layouts import Listing

SMALL_PX = 64  # pictures with at most this longer side get a network for small images
FEW_PER_CLASS = 5
FEW_PICTURES = 2000

_CIFAR_FILES = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1"),
    "cifar100": ("cifar-100-python", "cifar-100-python.tar.gz"),
}
_HEADERS = 400  # approximate number of pictures whose size is read
_FAR_FROM_SQUARE, _MANY = 1.6, 0.2  # longer ÷ shorter side, and the fraction of such pictures above which resize policies are compared
_USUAL_COUNT = 2500  # photographs for which the recipe's number of epochs is right
_STEPS = 300  # desired number of steps of a training on few small images


@dataclass(frozen=True)
class ChosenSettings:
    """Settings for some data.

    Attributes:
        settings: fields of `TrainConfig`, including the recipe's; flags override them.
        why: one line for the user: the pictures found, and the chosen settings with reasons; empty if there was nothing to choose.
    """

    settings: dict[str, Any]
    why: str = ""


def find_dataset(data_dir: str) -> str:
    """Data set of a folder: `cifar10` or `cifar100` if it has their files, else `folder`."""
    root = local_path(data_dir)
    names = {root.name} | ({path.name for path in root.iterdir()} if root.is_dir() else set())
    return next((name for name, files in _CIFAR_FILES.items() if names & set(files)), "folder")


def choose_settings(chosen: Mapping[str, Any]) -> ChosenSettings:
    """Choose the settings that the user has not set.

    Args:
        chosen: fields of `TrainConfig` that the user has set, as far as they are known before the other flags are parsed.

    Raises:
        DataError: if `data_dir` does not fit the data set, or has no known layout.
    """
    data_dir, dataset = chosen.get("data_dir"), chosen.get("dataset")
    if data_dir is not None and dataset is None:
        dataset = find_dataset(data_dir)
    elif data_dir is not None and dataset in _CIFAR_FILES:
        _check_is_cifar(data_dir, dataset)
    settings: dict[str, Any] = {} if dataset is None else {"dataset": dataset}
    named = chosen.get("recipe")
    if dataset == "folder" and data_dir is not None and named is None:
        # imported here, because numpy and Pillow would slow down --help
        from cifar_ray.data.listing.tables import list_pictures
        from cifar_ray.data.reading.picture_source import parse_location

        return _suit_folder(
            list_pictures(parse_location(resolve_storage(data_dir)), chosen.get("columns"), _task(chosen)), chosen, settings
        )
    recipe = get_recipe(named or default_recipe(dataset, chosen.get("model")))
    return ChosenSettings(recipe.model_dump() | settings)


def _task(chosen: Mapping[str, Any]) -> TaskChoice:
    """The chosen task, or `auto`; an unknown value raises an error later, when the flags are parsed."""
    return next((task for task in get_args(TaskChoice) if task == chosen.get("task")), "auto")


def _check_is_cifar(data_dir: str, dataset: str) -> None:
    root = local_path(data_dir)
    if root.is_dir() and any(root.iterdir()) and find_dataset(data_dir) != dataset:
        files = " or ".join(_CIFAR_FILES[dataset][:2])
        raise DataError(f"--data-dir {data_dir}: found no files of {dataset} ({files}); to train on your own pictures, leave out --dataset")


def _suit_folder(listing: Listing, chosen: Mapping[str, Any], settings: dict[str, Any]) -> ChosenSettings:
    from statistics import median

    from cifar_ray.data.survey.picture_facts import read_headers

    pictures = listing.parts["train"].pictures
    count = len(pictures)
    facts = [fact for fact in read_headers(pictures.take(slice(None, None, max(1, count // _HEADERS)))) if fact.width_px]
    longer = median(max(fact.width_px, fact.height_px) for fact in facts) if facts else SMALL_PX + 1
    kind = "classes" if listing.parts["train"].labels.ndim == 1 else "labels, any number for each picture"
    found = f"{count:,} pictures of {len(listing.class_names)} {kind}, typically {longer:,.0f} px"
    model = chosen.get("model")
    if model is None and longer <= SMALL_PX:
        return _suit_small(count, found, settings)
    if model is not None and not model.startswith("timm:"):
        recipe = get_recipe(default_recipe("folder", model))
        return ChosenSettings(recipe.model_dump() | settings)
    flat = sum(max(fact.width_px, fact.height_px) > _FAR_FROM_SQUARE * min(fact.width_px, fact.height_px) for fact in facts)
    recipe = get_recipe("photos")
    by_count = {"batch_size": max(2, min(recipe.batch_size, count // 2)), "epochs": _finetuning_epochs(count, recipe.epochs)}
    values = recipe.model_dump() | settings | _split_of(listing) | by_count
    compares = flat > _MANY * len(facts)
    if compares:
        values["resize_policy"] = "auto"
    if model is not None:
        values |= _of_timm(model)
    why = [f"{found}: a pretrained network ({values['model']}, {values['image_size']} px), because it needs few pictures"]
    why.append(_describe_split(listing, values))
    why += ["pad, crop and squash are compared, because many are far from square"] if compares else []
    return ChosenSettings(values, "; ".join(why))


def _suit_small(count: int, found: str, settings: dict[str, Any]) -> ChosenSettings:
    recipe = get_recipe(default_recipe("folder", None))
    # batch norm over two pictures diverges, and a quarter of the pictures may be held out
    batch_size = min(recipe.batch_size, max(2, count // 2), 1 << max(2, (count // 8).bit_length() - 1))
    epochs = max(recipe.epochs, min(60, -(-_STEPS * batch_size // count)))
    why = f"{found}: recipe {recipe.recipe} for small images, {epochs} epochs, batch size {batch_size}"
    if count < FEW_PICTURES:
        why += f"; if they show things as photographs do, --model {PRETRAINED_MODEL} needs fewer of them"
    return ChosenSettings(recipe.model_dump() | settings | {"batch_size": batch_size, "epochs": epochs}, why)


def _finetuning_epochs(count: int, default: int) -> int:
    """Epochs of fine-tuning: up to twice the default for few pictures, down to a third of the default for many."""
    return max(default // 3, min(2 * default, round(default * _USUAL_COUNT / count)))


def _split_of(listing: Listing) -> dict[str, float]:
    """Fractions of the splits that a data set lacks. The head needs no validation images, so a small data set gets one held-out split."""
    train = listing.parts["train"]
    if len(listing.parts) > 1:
        return {"val_fraction": 0.1 if "val" in listing.parts else 0.2, "test_fraction": 0.0}
    if train.labels.ndim == 1 and min(Counter(train.labels.tolist()).values()) < FEW_PER_CLASS:
        return {"val_fraction": 0.0, "test_fraction": 0.0}
    if len(train) < FEW_PICTURES:
        return {"val_fraction": 0.2, "test_fraction": 0.0}
    return {"val_fraction": 0.1, "test_fraction": 0.1}


def _describe_split(listing: Listing, values: Mapping[str, Any]) -> str:
    if len(listing.parts) > 1:
        return f"judged on your {' and '.join(name for name in listing.parts if name != 'train')}"
    if not values["val_fraction"]:
        return f"a class has fewer than {FEW_PER_CLASS} pictures, so cross-validation judges instead of one small split"
    parts = [f"{100 * values[f'{name}_fraction']:.0f} % for {name}" for name in ("val", "test") if values[f"{name}_fraction"]]
    return "held out: " + ", ".join(parts)


def _of_timm(model: str) -> dict[str, Any]:
    """Settings for a network of timm: model, weights and image size; empty for the recipe's own network."""
    if model == PRETRAINED_MODEL:
        return {}
    from cifar_ray.models.timm_networks import pretrained_config

    size_px = min(int(pretrained_config(model).input_size[-1]), MAX_IMAGE_SIZE_PX)
    return {"model": model, "pretrained": "hub", "image_size": size_px}
