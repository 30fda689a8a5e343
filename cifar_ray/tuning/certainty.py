"""Certainty of a search about its best trial: comparisons with the defaults and the second best, at equal budgets, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

from cifar_ray.config import TrainConfig
from cifar_ray.metrics.intervals import difference_interval
from cifar_ray.metrics.score import Score
from cifar_ray.tuning.record import Record, Trial
from cifar_ray.tuning.space import SearchSpace, present_values


@dataclass(frozen=True)
class Comparison:
    """Two trials after the same number of epochs.

    Attributes:
        epoch: number of epochs of both; `None` if both had the full budget.
        score: name of the compared score: accuracy or mAP.
        difference: score of the first trial minus score of the second, from -1 to 1; a trial with two seeds has the mean of both scores.
        interval: 95 % interval of the difference; `None` for mAP, or if the number of validation images is unknown.
    """

    epoch: int | None
    score: str
    difference: float
    interval: tuple[float, float] | None

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def compare(record: Record, first: Trial, second: Trial) -> Comparison | None:
    """Compare two trials at the largest budget that both had; `None` if one has no result at that budget.

    The interval treats the images of both trials as independent samples. Because both are evaluated on the same images, it is too wide
    rather than too narrow. It does not take into account that the best of many trials was chosen.
    """
    both = record.full_runs(first), record.full_runs(second)
    epoch = None if all(both) else min(first.epochs_done, second.epochs_done)
    scores: list[Score] = []
    for trial, full in zip((first, second), both, strict=True):
        best = [run.best(record.metric, epoch) for run in (full if epoch is None else [trial])]
        found = [score for report in best if report and (score := Score.find(report, "val"))]
        if not found:
            return None
        scores.append(Score(found[0].key, sum(score.value for score in found) / len(found)))
    one, other = (score.value for score in scores)
    knows = record.val_images and scores[0].key == "accuracy"
    interval = difference_interval(one, other, record.val_images) if knows and record.val_images else None
    return Comparison(epoch, scores[0].name, one - other, interval)


def describe_certainty(record: Record, fixed: TrainConfig, space: SearchSpace) -> list[str]:
    """Sentences about the number of trials with the full budget, and about the lead of the best trial; empty before the first result.

    Args:
        record: record of the search.
        fixed: config of the search, with the default settings.
        space: the search space.
    """
    ranked = record.ranked()
    if not ranked:
        return []
    best, *others = ranked
    full = sum(bool(record.full_runs(trial)) for trial in record.trials)
    sentences = [f"{full} of {len(record.trials)} trials had the full budget of {record.max_epochs} epochs"]
    if not full:
        sentences[0] += f": the best leads after {best.epochs_done} only"
    if not others:
        return [*sentences, "no other trial has a result: nothing was compared"]
    start = present_values(fixed, space)
    defaults = next((trial for trial in record.trials if trial.parameters == start), None)
    if defaults is best:
        sentences.append("the best trial has the default settings")
    elif defaults is not None and defaults in ranked:
        sentences += _describe(record, best, defaults, "the defaults")
    elif defaults is not None:
        sentences.append(f"the defaults (trial {defaults.number}) have no result: {defaults.reason or defaults.status}")
    if others[0] is not defaults:
        sentences += _describe(record, best, others[0], "the second best")
    return sentences


def _describe(record: Record, best: Trial, other: Trial, name: str) -> list[str]:
    found = compare(record, best, other)
    if found is None:
        return []
    when = "" if found.epoch is None else f" after {found.epoch} epoch{'s' * (found.epoch != 1)}, the most that both had"
    text = f"{_points(found.difference)} points of validation {found.score} against {name} (trial {other.number}){when}"
    if found.interval is None:
        return [text]
    low, high = map(_points, found.interval)
    verdict = "" if found.distinguishable else f"; not distinguishable from {name}"
    return [f"{text}; 95 % interval {low} to {high} on {record.val_images:,} images{verdict}"]


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")
