"""Searchers, which suggest parameters, and schedulers, which stop weak trials, for Ray Tune."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cifar_ray.config import TrainConfig
from cifar_ray.config.search_config import SearchConfig
from cifar_ray.errors import ConfigError, MissingDependencyError
from cifar_ray.tuning.record import AGAIN, Record, Trial
from cifar_ray.tuning.space import Parameter, SearchSpace, Value, present_values
from cifar_ray.tuning.trial import config_key

_HYPERBAND_BRACKETS = 3


def create_scheduler(search: SearchConfig, epochs: int, record: Record) -> TrialScheduler:
    """Create Tune's scheduler, and give it the results of all completed trials.

    ASHA (Li et al. 2020, arXiv 1810.05934): at each rung a trial continues if it is among the best 1/`reduction_factor`
    of the trials that reached it before. `hyperband` runs several grace periods in parallel (section 3.3 of the paper).
    """
    if search.scheduler == "none":
        return FIFOScheduler()
    scheduler = AsyncHyperBandScheduler(
        time_attr="epoch",
        metric=search.metric,
        mode=_mode(search),
        max_t=epochs,
        grace_period=min(search.grace_period, epochs),
        reduction_factor=search.reduction_factor,
        brackets=_HYPERBAND_BRACKETS if search.scheduler == "hyperband" else 1,
        stop_last_trials=False,  # a trial ends itself after its last epoch
    )
    for trial in record.settled():
        known = SimpleNamespace(trial_id=trial.trial_id)
        scheduler.on_trial_add(None, known)
        for report in trial.epochs:
            scheduler.on_trial_result(None, known, report)
    return scheduler


class PlannedSearcher(Searcher):  # type: ignore[misc]
    """Suggests points in a given order: the points of a grid, of a random search, or of trials to repeat."""

    def __init__(self, points: list[dict[str, Value]], metric: str, mode: str) -> None:
        super().__init__(metric=metric, mode=mode)
        self._points = points

    def suggest(self, trial_id: str) -> Any:
        """The next point."""
        del trial_id
        return self._points.pop(0) if self._points else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Ignored: the points do not depend on results."""

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: a search resumes from its record."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, see `save`."""


def create_searcher(fixed: TrainConfig, search: SearchConfig, space: SearchSpace, record: Record) -> Searcher:
    """Create the searcher. It suggests interrupted trials first, and in a new search the values of the fixed config.

    Raises:
        ConfigError: if a grid has more points than `num_samples`.
        MissingDependencyError: if Optuna is requested and not installed.
    """
    first = [trial.parameters for trial in record.interrupted()]
    start = present_values(fixed, space)
    if search.search == "grid" or not uses_optuna(search):
        planned = plan_points(fixed, search, space)
        known = [config_key(trial.parameters) for trial in record.trials]
        return PlannedSearcher(first + [point for point in planned if config_key(point) not in known], search.metric, _mode(search))
    from ray.tune.search.optuna import OptunaSearch

    searcher = OptunaSearch(
        {parameter.path: _optuna_distribution(parameter) for parameter in space},
        metric=search.metric,
        mode=_mode(search),
        seed=fixed.seed + len(record.trials),
        points_to_evaluate=first + ([start] if start and not record.trials else []),
    )
    for trial in record.settled():
        best = trial.epochs[-1][search.metric] if trial.epochs and trial.status in ("finished", "stopped") else None
        if best is not None:
            searcher.add_evaluated_point(trial.parameters, best)
    return searcher


def create_repeater(leaders: Sequence[Trial], search: SearchConfig) -> Searcher:
    """Create the searcher that repeats trials with another seed."""
    return PlannedSearcher([trial.parameters | {AGAIN: True} for trial in leaders], search.metric, _mode(search))


def plan_points(fixed: TrainConfig, search: SearchConfig, space: SearchSpace) -> list[dict[str, Value]]:
    """All points of a grid or of a random search; each call returns the same points.

    Raises:
        ConfigError: if a grid has more points than `num_samples`.
    """
    if search.search == "grid":
        grids = [parameter.grid() for parameter in space]
        points = [dict(zip((parameter.path for parameter in space), values, strict=True)) for values in itertools.product(*grids)]
        if len(points) > search.num_samples:
            raise ConfigError(f"--search grid: the space has {len(points)} points; pass --num-samples {len(points)} or search fewer fields")
        return points
    domains = {parameter.path: _tune_domain(parameter) for parameter in space}
    rng = random.Random(fixed.seed)  # noqa: S311  (a search needs no secure random numbers)
    start = present_values(fixed, space)
    drawn = [
        {path: domain.sample(random_state=rng.randrange(2**31)) for path, domain in domains.items()} for _ in range(search.num_samples)
    ]
    return ([start] if start else []) + drawn[: search.num_samples - bool(start)]


def uses_optuna(search: SearchConfig) -> bool:
    """Whether the searcher is Optuna's TPE.

    Raises:
        MissingDependencyError: if Optuna is requested and not installed.
    """
    if search.search not in ("auto", "optuna"):
        return False
    try:
        import optuna
    except ImportError:
        if search.search == "optuna":
            raise MissingDependencyError("--search optuna needs Optuna: pip install 'cifar-ray[tune]'") from None
        return False
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return True


def _optuna_distribution(parameter: Parameter) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.kind == "choice":
        return CategoricalDistribution(parameter.values)
    low, high = parameter.bounds
    if parameter.kind == "randint":
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=parameter.kind == "loguniform")


def _tune_domain(parameter: Parameter) -> Any:
    if parameter.kind == "choice":
        return tune.choice(list(parameter.values))
    low, high = parameter.bounds
    if parameter.kind == "randint":
        return tune.randint(int(low), int(high) + 1)
    return tune.loguniform(low, high) if parameter.kind == "loguniform" else tune.uniform(low, high)


def _mode(search: SearchConfig) -> str:
    return "min" if search.metric == "val_loss" else "max"
