"""Two models on the same images: is one better, where, and on which pictures do they differ."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar_ray.errors import ConfigError, DataError
from cifar_ray.evaluation.model_evaluation import Progress, score_here
from cifar_ray.evaluation.selection import Selected
from cifar_ray.inference.predictor import Predictor
from cifar_ray.metrics.accuracy import softmax
from cifar_ray.metrics.intervals import SIGNIFICANT, PairedComparison, accuracy_interval, holm
from cifar_ray.reports import plots
from cifar_ray.reports.contact_sheet import Cell, sheet
from cifar_ray.reports.renderer import Picture, Section, Table, render

_SHOWN = 20
_SMALLEST_TOLD = 0.0001


@dataclass(frozen=True, eq=False)
class Contender:
    """One of the two models.

    Attributes:
        reference: `name@version`.
        predictor: the model.
        data: the images, at the size that it takes.
    """

    reference: str
    predictor: Predictor
    data: Selected


@dataclass(frozen=True, eq=False)
class ModelComparison:
    """What two models say of the same N images, classes in the order of the first model.

    Attributes:
        a: the first.
        b: the second.
        probabilities: float32 `[2, N, C]`.
        overall: all images.
        by_class: images of each class, with the p-value adjusted for the number of classes.
    """

    a: Contender
    b: Contender
    probabilities: npt.NDArray[np.float32]
    overall: PairedComparison
    by_class: list[tuple[PairedComparison, float]]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """True classes, int64 `[N]`."""
        return self.a.data.images.labels

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """The most probable classes, int64 `[2, N]`."""
        predicted: npt.NDArray[np.int64] = self.probabilities.argmax(axis=2)
        return predicted

    @property
    def verdict(self) -> str:
        """Whether one is better, in words."""
        if self.overall.p_value >= SIGNIFICANT:
            return "no difference that chance does not explain"
        better, worse = (self.b, self.a) if self.overall.difference > 0 else (self.a, self.b)
        return f"{better.reference} is better than {worse.reference}"


def compare_models(a: Contender, b: Contender, progress: Progress) -> ModelComparison:
    """Runs both over all images and pairs their answers.

    Raises:
        ConfigError: if the models do not tell the same classes apart.
        DataError: if the two did not get the same images, because some became unreadable in between.
    """
    names = a.predictor.manifest.class_names
    if set(names) != set(b.predictor.manifest.class_names):
        raise ConfigError(f"{a.reference} and {b.reference} tell different classes apart, so they do not compare")
    column_of = [b.predictor.manifest.class_names.index(name) for name in names]
    labels = a.data.images.labels
    if not np.array_equal(labels, [names.index(b.data.images.class_names[label]) for label in b.data.images.labels]):
        raise DataError(f"{a.reference} and {b.reference} got different images of {a.data.name}; look for broken pictures in it")
    probabilities = np.stack([_probabilities(a, progress), _probabilities(b, progress)[:, column_of]])
    right_a, right_b = probabilities.argmax(axis=2) == labels
    by_class = [_paired(right_a[labels == label], right_b[labels == label]) for label in range(len(names))]
    adjusted = holm([one.p_value for one in by_class])
    return ModelComparison(a, b, probabilities, _paired(right_a, right_b), list(zip(by_class, adjusted, strict=True)))


def to_json(comparison: ModelComparison) -> dict[str, Any]:
    """Every figure, by name; shares are 0…1."""
    overall, names = comparison.overall, comparison.a.predictor.manifest.class_names
    right = (comparison.predicted == comparison.labels).sum(axis=1).tolist()
    return {
        "format_version": 1,
        "data": {"name": comparison.a.data.name, "split": comparison.a.data.split, "images": overall.count},
        "models": [
            {
                "model": one.reference,
                "accuracy": correct / max(1, overall.count),
                "accuracy_interval": accuracy_interval(correct, overall.count),
                "tested_on_these_images_after_training": one.data.as_trained,
            }
            for one, correct in zip((comparison.a, comparison.b), right, strict=True)
        ],
        "verdict": comparison.verdict,
        "difference": overall.difference,
        "difference_interval": overall.interval,
        "p_value": overall.p_value,
        "only_first_right": overall.only_a,
        "only_second_right": overall.only_b,
        "agreement": float((comparison.predicted[0] == comparison.predicted[1]).mean()),
        "classes": [
            {"name": name, "images": one.count, "difference": one.difference, "p_value": p_value}
            for name, (one, p_value) in zip(names, comparison.by_class, strict=True)
        ],
    }


def summarize(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The short table, from what `to_json` gave."""
    data, (low, high) = figures["data"], figures["difference_interval"]
    rows = [("images", f"{data['images']:,} {data['split']} images of {data['name']}")]
    rows += [(one["model"], f"accuracy {one['accuracy']:.2%}") for one in figures["models"]]
    for one in figures["models"]:
        if one["tested_on_these_images_after_training"] is False:
            rows.append(("note", f"{one['model']} was tested on other images after its training; it may have learnt some of these"))
    changed = sorted((one for one in figures["classes"] if one["p_value"] < SIGNIFICANT), key=lambda one: -abs(one["difference"]))
    told = ", ".join(f"{one['name']} {100 * one['difference']:+.1f}" for one in changed) or "none differs more than by chance"
    return [
        *rows,
        ("difference", f"{100 * figures['difference']:+.2f} points (95 % interval {100 * low:+.2f}…{100 * high:+.2f})"),
        (
            "McNemar",
            f"only the first right {figures['only_first_right']:,}, only the second {figures['only_second_right']:,}: "
            f"{_chance(figures['p_value'])}",
        ),
        ("verdict", figures["verdict"]),
        ("classes", told),
        ("agreement", f"{figures['agreement']:.2%} of the images get the same answer"),
    ]


def to_files(comparison: ModelComparison) -> dict[str, bytes]:
    """`comparison.json`, the pictures, and `comparison.html` with all of them inside, by file name."""
    figures, names = to_json(comparison), comparison.a.predictor.manifest.class_names
    differences = [(one.difference, p_value < SIGNIFICANT) for one, p_value in comparison.by_class]
    pictures = {
        "classes": Picture(
            plots.class_differences(differences, names, comparison.b.reference),
            "Orange: chance does not explain it (McNemar's test, Holm-adjusted p < 0.05).",
        )
    }
    for winner, file in enumerate(("only_first_right", "only_second_right")):
        if (picture := _disagreements(comparison, winner)) is not None:
            pictures[file] = Picture(picture, "True class, then what the first and what the second says; the loser's surest first.")
    rows = [(one["name"], f"{one['images']:,}", f"{100 * one['difference']:+.2f}", _chance(one["p_value"])) for one in figures["classes"]]
    sections = [
        Section("In short", [Table(("", ""), summarize(figures))]),
        Section("Classes", [pictures["classes"], Table(("class", "images", "points", "by chance"), rows)]),
        *(
            Section(title, [pictures[file]] if file in pictures else ["There is none."])
            for file, title in (
                ("only_first_right", f"Only {comparison.a.reference} is right"),
                ("only_second_right", f"Only {comparison.b.reference} is right"),
            )
        ),
    ]
    page = render(
        f"{comparison.a.reference} and {comparison.b.reference}", f"on {comparison.a.data.name} ({comparison.a.data.split})", sections
    )
    files = {f"{name}.png": picture.png for name, picture in pictures.items()}
    return {"comparison.json": json.dumps(figures, indent=1, ensure_ascii=False).encode(), **files, "comparison.html": page}


def _chance(p_value: float) -> str:
    return f"p = {p_value:.3g}" if p_value >= _SMALLEST_TOLD else f"p < {_SMALLEST_TOLD}"


def _probabilities(one: Contender, progress: Progress) -> npt.NDArray[np.float32]:
    advance = progress(one.reference, len(one.data.images))
    parts = []
    for _, block in score_here(one.predictor, one.data.images, None):
        parts.append(block.logits)
        advance(len(block.logits))
    return softmax(np.concatenate(parts), one.predictor.manifest.temperature)


def _paired(right_a: npt.NDArray[np.bool_], right_b: npt.NDArray[np.bool_]) -> PairedComparison:
    return PairedComparison(len(right_a), int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum()))


def _disagreements(comparison: ModelComparison, winner: int) -> bytes | None:
    images, names = comparison.a.data.images, comparison.a.predictor.manifest.class_names
    right = comparison.predicted == comparison.labels
    rows = np.flatnonzero(right[winner] & ~right[1 - winner])
    rows = rows[np.argsort(-comparison.probabilities[1 - winner, rows].max(axis=1), kind="stable")[:_SHOWN]]
    if not len(rows):
        return None
    return sheet([Cell((images.images[row],), _answers(comparison, int(row), names)) for row in rows], columns=5, side_px=150)


def _answers(comparison: ModelComparison, row: int, names: tuple[str, ...]) -> tuple[str, ...]:
    images, both = comparison.a.data.images, comparison.probabilities[:, row]
    return (names[images.labels[row]], *(f"{names[one.argmax()]} {one.max():.1%}" for one in both), images.name_of(row))
