"""Evaluate a model with several labels per picture: mAP, F1, each class, calibration, mistakes, leakage and cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar_ray.evaluation.figure_parts import (
    cost_rows,
    describe_calibration,
    describe_duplicates,
    describe_subject,
    images_row,
    percent,
    without_nan,
)
from cifar_ray.evaluation.measures.cost import Cost, measure_cost
from cifar_ray.evaluation.model_evaluation import Leakage, Progress, collect_scores, find_leakage
from cifar_ray.evaluation.scoring import BlockScores
from cifar_ray.evaluation.selection import Selected
from cifar_ray.inference.predictor import Predictor
from cifar_ray.metrics.calibration import Calibration
from cifar_ray.metrics.label_rules import LabelRules
from cifar_ray.metrics.label_sets import LabelSetFigures, calibrate_labels, evaluate_label_sets, map_spread
from cifar_ray.metrics.score import Score
from cifar_ray.store import Manifest


@dataclass(frozen=True, eq=False)
class LabelSetEvaluation:
    """Everything measured about a multi-label model on a split of N images.

    Attributes:
        reference: `name@version`.
        manifest: manifest of the model.
        data: the images.
        probabilities: float32 `[N, C]`, 0–1.
        given: bool `[N, C]`, the labels that the model gives.
        figures: figures with the model's rules.
        spread: standard error of the mAP.
        calibration: probability against frequency, over all pairs of image and label.
        uncalibrated: the same for probabilities without calibration (sigmoid of the logits).
        abstained: fraction of the images from which the model abstains, 0–1.
        cost: cost of a prediction on this machine.
        leakage: near-duplicates of training images; `None` if not requested, or without training images to search.
        figures_without_duplicates: figures without near-duplicates of training images; `None` if they were not searched.
    """

    reference: str
    manifest: Manifest
    data: Selected
    probabilities: npt.NDArray[np.float32]
    given: npt.NDArray[np.bool_]
    figures: LabelSetFigures
    spread: float
    calibration: Calibration
    uncalibrated: Calibration
    abstained: float
    cost: Cost
    leakage: Leakage | None
    figures_without_duplicates: LabelSetFigures | None

    @property
    def rules(self) -> LabelRules:
        """The rules of the model; plain rules if its manifest has none."""
        return self.manifest.rules or LabelRules.plain(len(self.manifest.class_names))

    def mistakes(self, label: int, count: int, *, given: bool) -> npt.NDArray[np.int64]:
        """Rows of images to which the model wrongly gives a label, or wrongly does not (`given=False`): int64, most confident first."""
        wrong = np.flatnonzero((self.given[:, label] == given) & (self.data.images.labels[:, label] != given))
        confidence = self.probabilities[wrong, label]
        return wrong[np.argsort(-confidence if given else confidence, kind="stable")[:count]]


def evaluate_label_set_model(
    predictor: Predictor,
    reference: str,
    data: Selected,
    scores: Iterable[tuple[int, BlockScores]],
    progress: Progress,
    *,
    look_for_leakage: bool = True,
) -> LabelSetEvaluation:
    """Collect the scores of all blocks, and compute everything else from them; arguments as for `evaluate_model`."""
    images, manifest = data.images, predictor.manifest
    blocks = collect_scores(scores)
    logits = np.concatenate([block.logits for block in blocks])
    plain = LabelRules.plain(len(manifest.class_names))
    rules = manifest.rules or plain
    probabilities = rules.probabilities(logits)
    leakage = find_leakage(predictor, images, data.train, progress) if look_for_leakage and data.train is not None else None
    progress("measuring speed and memory", 0)
    cost = measure_cost(predictor)
    return LabelSetEvaluation(
        reference=reference,
        manifest=manifest,
        data=data,
        probabilities=probabilities,
        given=rules.labels(probabilities),
        figures=evaluate_label_sets(logits, images.labels, rules),
        spread=map_spread(logits, images.labels),
        calibration=calibrate_labels(probabilities, images.labels),
        uncalibrated=calibrate_labels(plain.probabilities(logits), images.labels),
        abstained=float(np.concatenate([block.abstains for block in blocks]).mean()),
        cost=cost,
        leakage=leakage,
        figures_without_duplicates=(
            None if leakage is None else evaluate_label_sets(logits[leakage.kept], images.labels[leakage.kept], rules)
        ),
    )


def to_json(evaluation: LabelSetEvaluation) -> dict[str, Any]:
    """All figures by name; fractions are 0–1, unknown values are `None`."""
    figures = evaluation.figures
    score = Score("map", figures.score, figures.count, evaluation.spread)
    found = describe_subject(evaluation.reference, evaluation.manifest, evaluation.data) | {
        "task": "multi-label",
        "map": figures.score,
        "map_interval": score.interval(figures.count),
        "micro_f1": figures.micro_f1,
        "macro_f1": figures.macro_f1,
        "coverage": figures.coverage,
        "labels_per_image": figures.labels_per_picture,
        "labels_given_per_image": float(evaluation.given.sum(axis=1).mean()),
        "loss": figures.loss,
        "calibration": describe_calibration(evaluation.calibration, evaluation.uncalibrated),
        "abstained": evaluation.abstained,
        "classes": _classes(evaluation),
        "co_occurrence": figures.co_occurrence.tolist(),
        "cost": asdict(evaluation.cost),
        "leakage": _leakage(evaluation),
    }
    result: dict[str, Any] = without_nan(found)
    return result


def summarize(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the summary table, each as `(name, text)`.

    Args:
        figures: result of `to_json`.
    """
    low, high = figures["map_interval"]
    known = [one for one in figures["classes"] if one["average_precision"] is not None]
    calibration, leakage = figures["calibration"], figures["leakage"]
    rows = [
        images_row(figures),
        (
            "mAP",
            f"{percent(figures['map'])} (95 % interval {100 * low:.2f}–{100 * high:.2f} %), "
            f"mean over {len(known)} of {len(figures['classes'])} classes",
        ),
        ("F1", f"micro {100 * figures['micro_f1']:.2f} %, macro {100 * figures['macro_f1']:.2f} %"),
        ("labels", f"{figures['labels_per_image']:.2f} per image, {figures['labels_given_per_image']:.2f} given"),
        ("coverage", f"the {figures['coverage']:.2f} most probable labels contain all true ones on average"),
        ("loss", f"{figures['loss']:.4f}"),
    ]
    if known:
        worst = min(known, key=lambda one: one["average_precision"])
        parts = f"precision {percent(worst['precision'])}, recall {percent(worst['recall'])}"
        rows.append(("worst class", f"{worst['name']}: average precision {percent(worst['average_precision'])}, {parts}"))
    rows += [
        (
            "calibration",
            f"expected calibration error {100 * calibration['expected_calibration_error']:.2f} %, "
            f"{100 * calibration['expected_calibration_error_without_it']:.2f} % without calibration",
        ),
        ("abstains", f"on {100 * figures['abstained']:.2f} % of the images"),
    ]
    if leakage is not None:
        duplicates = f"{leakage['duplicates']:,} ({100 * leakage['share']:.2f} %) of the images are near-duplicates of a training image"
        rows.append(("leakage", f"{duplicates}; mAP without them {100 * leakage['without_duplicates']['map']:.2f} %"))
    return rows + cost_rows(figures)


def _classes(evaluation: LabelSetEvaluation) -> list[dict[str, Any]]:
    figures, rules = evaluation.figures, evaluation.rules
    columns = {
        "average_precision": figures.average_precision,
        "precision": figures.per_class_precision(),
        "recall": figures.per_class_recall(),
        "f1": figures.per_class_f1(),
    }
    return [
        {"name": name, "images": int(figures.occurs[label]), "given": int(figures.given[label]), "threshold": rules.thresholds[label]}
        | {key: float(values[label]) for key, values in columns.items()}
        for label, name in enumerate(evaluation.manifest.class_names)
    ]


def _leakage(evaluation: LabelSetEvaluation) -> dict[str, Any] | None:
    leakage, rest = evaluation.leakage, evaluation.figures_without_duplicates
    if leakage is None or rest is None:
        return None
    without = {"map": rest.score, "micro_f1": rest.micro_f1, "macro_f1": rest.macro_f1}
    return describe_duplicates(leakage, evaluation.data) | {"without_duplicates": without}
