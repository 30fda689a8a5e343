"""A model in a notebook: train, load, predict, evaluate."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, get_args

import numpy as np

from cifar_ray.client import Picture, Prediction
from cifar_ray.config import DatasetName, default_storage, resolve_storage
from cifar_ray.errors import ImageError
from cifar_ray.inference.preprocess import preprocess
from cifar_ray.store import Bundle, ModelStore, load_model
from cifar_ray.store.gallery import GALLERY_FILE

_TOP_K = 5
_BATCH = 64
_SHOWN_CLASSES = 20
_SHOWN_PICTURES = 8


class Model:
    """A model of the store.

    Args:
        bundle: weights and manifest of the model.
        storage: path or URI of the store.
    """

    def __init__(self, bundle: Bundle, storage: str) -> None:
        self._bundle = bundle
        self.storage = storage

    @property
    def reference(self) -> str:
        """Name and version: `name@version`."""
        return self._bundle.reference

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of `class_id`."""
        return self._bundle.manifest.class_names

    @property
    def metrics(self) -> dict[str, float]:
        """Figures of the model from its training, for example `test_accuracy`, 0–1."""
        return dict(self._bundle.manifest.metrics)

    def predict(self, picture: Picture) -> Prediction:
        """Classify one picture.

        Args:
            picture: a path or the content of a picture file.

        Returns:
            The same as `cifar_ray.client.Client.predict`; only `answer` is empty.

        Raises:
            ImageError: if the picture cannot be read or decoded.
        """
        return self.predict_all([picture])[0]

    def predict_all(self, pictures: Sequence[Picture]) -> list[Prediction]:
        """Classify several pictures. Arguments and errors are those of `predict`.

        For many files `cifar-ray predict` is better: it reads pictures while it predicts, and continues after a broken picture.
        """
        manifest, found = self._bundle.manifest, list[Prediction]()
        for start in range(0, len(pictures), _BATCH):
            part = pictures[start : start + _BATCH]
            pixels = np.stack([preprocess(_content(one), manifest.image_size_px, manifest.resize_policy) for one in part])
            answer = self._predictor.predict(pixels)
            found += map(self._prediction, answer.probabilities.tolist(), answer.labels, answer.abstains.tolist())
        return found

    def score(self, data: str | os.PathLike[str] | None = None, *, split: str = "test", columns: str | None = None) -> dict[str, Any]:
        """Evaluate the model like `cifar-ray evaluate`, but without the tests for robustness and leakage.

        Args:
            data: a data set, or the path of a folder or table; default: the data of the training.
            split: `test`, `val`, or `all` for data that the model was not trained on.
            columns: columns of a table, as in `--columns`.

        Returns:
            The figures by name, as in evaluation.json: `accuracy` (0–1), `accuracy_interval`, `classes`, `confusion` and others; for
            several labels per picture `map` and others.

        Raises:
            DataError: if the data are missing, or have classes that the model lacks.
        """
        from cifar_ray.config import parse_config
        from cifar_ray.config.data_choice import DataChoice
        from cifar_ray.data.task_progress import no_progress
        from cifar_ray.evaluation.examinations import evaluate_stored
        from cifar_ray.evaluation.figures import to_json

        choice = parse_config(DataChoice, _source(data) | {"split": split, "columns": columns})
        examined = evaluate_stored(self.reference, self.storage, choice, no_progress, robustness_images=0, look_for_leakage=False)
        return to_json(examined.evaluation)

    def _prediction(self, probabilities: list[float], labels: Any, abstains: bool) -> Prediction:
        names = self.class_names
        order = sorted(range(len(names)), key=lambda i: -probabilities[i])
        given = [names[i] for i in order if labels[i]]
        top_k = [(names[i], probabilities[i]) for i in order[:_TOP_K]]
        best = order[0]
        return Prediction(
            model=self._bundle.name,
            version=self._bundle.version,
            class_id=best,
            class_name=names[best],
            confidence=probabilities[best],
            abstain=abstains,
            probabilities=dict(zip(names, probabilities, strict=True)),
            top_k=top_k,
            labels=given,
            answer={},
        )

    @cached_property
    def _predictor(self) -> Any:
        from cifar_ray.evaluation.scoring import device_here
        from cifar_ray.inference.predictor import Predictor

        return Predictor(self._bundle, device_here())

    def __repr__(self) -> str:
        return f"<Model {self.reference}: {', '.join(self._facts())}>"

    def _repr_html_(self) -> str:
        """HTML in a notebook: the model's classes and figures, and some of its mistakes."""
        names = ", ".join(self.class_names[:_SHOWN_CLASSES]) + (" …" if len(self.class_names) > _SHOWN_CLASSES else "")
        return (
            f"<div><b>{escape(self.reference)}</b>: {escape(', '.join(self._facts()))}<br><small>{escape(names)}</small>"
            f"{self._mistakes()}</div>"
        )

    def _facts(self) -> list[str]:
        manifest = self._bundle.manifest
        figures = {
            "test_accuracy": "test accuracy",
            "test_map": "test mAP",
            "val_accuracy": "validation accuracy",
            "cv_accuracy": "accuracy",
        }
        known = [f"{text} {100 * manifest.metrics[key]:.1f} %" for key, text in figures.items() if key in manifest.metrics]
        return [manifest.architecture.name, f"{len(self.class_names)} classes", f"{manifest.image_size_px} px", *known[:1]]

    def _mistakes(self) -> str:
        content = self._bundle.attachments.get(GALLERY_FILE)
        shown = json.loads(content).get("mistakes", [])[:_SHOWN_PICTURES] if content else []
        if not shown:
            return ""
        pictures = "".join(
            f'<figure style="margin:0"><img src="{escape(one["picture"])}" width="72" height="72" style="object-fit:contain" alt="">'
            f"<figcaption><small>{escape(self.class_names[one['true']])}<br>→ {escape(self.class_names[one['predicted']])}</small>"
            "</figcaption></figure>"
            for one in shown
        )
        return f'<div style="display:flex;flex-wrap:wrap;gap:8px;margin-top:8px">{pictures}</div>'


def fit(data: str | os.PathLike[str], *, storage: str | os.PathLike[str] | None = None, **settings: Any) -> Model:
    """Train a model and save it to the store, like `cifar-ray train`.

    Args:
        data: a data set (`cifar10`, `digits`, …), or the path of a folder or table of pictures.
        storage: path or URI of the store; default `$CIFAR_RAY_STORAGE`, else `./storage`.
        settings: flags of `train`, with `_` for `-`: `epochs=3`, `save_as="pets"`, `with_reviews=True`; `**{"optimizer.lr": 0.1}`.

    Returns:
        The saved model.

    Raises:
        ConfigError: for an unknown or invalid setting.
        DataError: if the data are unusable.
        TrainingError: if the training fails.
    """
    from cifar_ray.cli.output.terminal import ProgressDisplay
    from cifar_ray.cli.output.training_progress import train_with_progress
    from cifar_ray.cli.training_flags import parse_train_command
    from cifar_ray.training import job

    place = resolve_storage(os.fspath(storage) if storage is not None else default_storage())
    command = parse_train_command(_flags(_source(data) | {"storage": place} | settings), "cifar_ray.fit")
    with ProgressDisplay() as display:
        config, splits = job.load_data(command, display.start, display.write)
    result = train_with_progress(job.with_name(config, splits), splits, command.track, command.resume)
    return Model(result.saved.bundle, place)


def load(reference: str, storage: str | os.PathLike[str] | None = None) -> Model:
    """Load a model: `photos` (its production version), `photos@3`, a run, or a path.

    Raises:
        StoreError: if there is no such model.
        BundleError: if the model is damaged.
    """
    place = resolve_storage(os.fspath(storage) if storage is not None else default_storage())
    return Model(load_model(reference, place), place)


def list_models(storage: str | os.PathLike[str] | None = None) -> list[str]:
    """References to all models in the store, `name@version`."""
    store = ModelStore(os.fspath(storage) if storage is not None else default_storage())
    return [f"{name}@{version}" for name in store.names() for version in store.versions(name)]


def _source(data: str | os.PathLike[str] | None) -> dict[str, str]:
    if data is None:
        return {}
    text = os.fspath(data)
    return {"dataset": text} if text in get_args(DatasetName) else {"data_dir": text}


def _flags(settings: dict[str, Any]) -> list[str]:
    """Convert settings to command-line flags."""
    flags: list[str] = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if value is True or value is False:
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, (list, tuple)):
            flags += [flag, *map(str, value)]
        elif value is not None:
            flags += [flag, os.fspath(value) if isinstance(value, os.PathLike) else str(value)]
    return flags


def _content(picture: Picture) -> bytes:
    if isinstance(picture, bytes):
        return picture
    try:
        return Path(picture).read_bytes()
    except (OSError, ValueError) as error:
        raise ImageError(f"{os.fspath(picture)}: {getattr(error, 'strerror', None) or error}") from None
