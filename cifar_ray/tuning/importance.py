"""Importance of the parameters of a search: permutation importance in a random forest that predicts the metric."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cifar_ray.tuning.record import OUT_OF_TIME, Record, Trial
from cifar_ray.tuning.space import SearchSpace

MIN_TRIALS = 8


@dataclass(frozen=True)
class Importance:
    """Share of the explained metric that each parameter accounts for.

    Attributes:
        epoch: epoch at which trials are compared: the last epoch that all compared trials reached.
        count: number of trials compared.
        mean: by path, increase of the forest's squared error when the parameter is shuffled, as a fraction of the sum, 0–1.
        std: by path, standard deviation over shuffles.
    """

    epoch: int
    count: int
    mean: dict[str, float]
    std: dict[str, float]


def parameter_importance(record: Record, space: SearchSpace) -> Importance | None:
    """Permutation importance (Breiman 2001, "Random forests", section 10) of a forest that predicts the metric at one epoch.

    Trials are compared after the same number of epochs, because stopped trials have fewer. If at least `MIN_TRIALS` trials remain, trials
    that the time budget cut off do not count for the choice of this epoch, and are left out if they did not reach it.

    Returns:
        `None` with fewer than `MIN_TRIALS` trials, or if all trials have the same metric.
    """
    settled = [trial for trial in record.ranked() if trial.status in ("finished", "stopped")]
    whole = [trial for trial in settled if trial.reason != OUT_OF_TIME]
    epoch = min((trial.epochs_done for trial in (whole if len(whole) >= MIN_TRIALS else settled)), default=0)
    trials = [trial for trial in settled if trial.epochs_done >= epoch]
    if len(trials) < MIN_TRIALS:
        return None
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    inputs = np.array([[parameter.position(trial.parameters[parameter.path]) for parameter in space] for trial in trials])
    targets = np.array([_metric_at(trial, epoch, record.metric) for trial in trials])
    if not np.ptp(targets):
        return None
    forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=0).fit(inputs, targets)
    shuffled = permutation_importance(forest, inputs, targets, n_repeats=20, random_state=0)
    total = float(np.clip(shuffled.importances_mean, 0, None).sum()) or 1.0
    paths = [parameter.path for parameter in space]
    mean = dict(zip(paths, np.clip(shuffled.importances_mean / total, 0, 1).tolist(), strict=True))
    return Importance(epoch, len(trials), mean, dict(zip(paths, (shuffled.importances_std / total).tolist(), strict=True)))


def _metric_at(trial: Trial, epoch: int, metric: str) -> float:
    return next(float(report[metric]) for report in reversed(trial.epochs) if report["epoch"] <= epoch)
