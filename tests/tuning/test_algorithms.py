"""Who suggests and who stops, without a cluster."""

from types import SimpleNamespace

import pytest
from ray.tune.search import Searcher

from cifar_ray.cli.output.search_table import LiveTable
from cifar_ray.cluster.plan import Cluster
from cifar_ray.config import TrainConfig
from cifar_ray.config.search_config import SearchConfig
from cifar_ray.errors import ConfigError, ResourceError
from cifar_ray.storage import FileTree
from cifar_ray.tuning.algorithms import create_scheduler, create_searcher, plan_points
from cifar_ray.tuning.record import Record
from cifar_ray.tuning.search import plan_trials, run_search
from cifar_ray.tuning.space import SearchSpace
from tests.tuning.conftest import report


def empty(num_samples: int = 8) -> Record:
    return Record("val_accuracy", max_epochs=6, num_samples=num_samples)


@pytest.mark.parametrize("search", ["optuna", "random"])
def test_a_search_starts_with_the_recipe_itself(search: str, fixed: TrainConfig, space: SearchSpace) -> None:
    searcher = create_searcher(fixed, SearchConfig(search=search, num_samples=8), space, empty())
    first = searcher.suggest("a")
    assert first["optimizer.lr"] == fixed.optimizer.lr
    assert first["augmentation.translate_px"] == fixed.augmentation.translate_px
    assert searcher.suggest("b") != first


@pytest.mark.parametrize("search", ["optuna", "random"])
def test_a_search_that_goes_on_starts_with_what_was_interrupted(
    search: str, fixed: TrainConfig, space: SearchSpace, record: Record
) -> None:
    record.trials[4].status = "interrupted"
    searcher = create_searcher(fixed, SearchConfig(search=search, num_samples=20), space, record)
    assert searcher.suggest("a") == pytest.approx(record.trials[4].parameters)
    assert searcher.suggest("b") != pytest.approx(record.trials[4].parameters)


def test_a_random_search_that_goes_on_tries_exactly_what_was_left(fixed: TrainConfig, space: SearchSpace) -> None:
    search = SearchConfig(search="random", num_samples=8)
    planned = plan_points(fixed, search, space)
    record = empty()
    for number, point in enumerate(planned[:5]):
        record.trial(f"id{number}", point).status = "finished"
    searcher = create_searcher(fixed, search, space, record)
    assert [searcher.suggest(str(number)) for number in range(3)] == planned[5:]
    assert searcher.suggest("end") == Searcher.FINISHED


def test_tpe_learns_from_the_trials_of_before(fixed: TrainConfig, space: SearchSpace, record: Record) -> None:
    searcher = create_searcher(fixed, SearchConfig(search="optuna"), space, record)
    suggested = [searcher.suggest(str(number))["optimizer.lr"] for number in range(8)]
    tried = sorted(trial.parameters["optimizer.lr"] for trial in record.trials)
    assert sum(lr > tried[len(tried) // 2] for lr in suggested) >= 6, "the best learning rates were the highest"


def test_a_grid_larger_than_the_search_is_refused(fixed: TrainConfig, space: SearchSpace) -> None:
    with pytest.raises(ConfigError, match="27 points; pass --num-samples 27"):
        plan_points(fixed, SearchConfig(search="grid", num_samples=20), space)
    assert len(plan_points(fixed, SearchConfig(search="grid", num_samples=27), space)) == 27


def test_asha_judges_a_new_trial_by_those_of_before(record: Record) -> None:
    def verdict(accuracy: float) -> str:
        scheduler = create_scheduler(SearchConfig(grace_period=2), 6, record)
        scheduler.on_trial_add(None, SimpleNamespace(trial_id="new"))
        return scheduler.on_trial_result(None, SimpleNamespace(trial_id="new"), report(2, accuracy))

    assert verdict(0.01) == "STOP"
    assert verdict(0.95) == "CONTINUE"


def test_asha_lets_the_last_epoch_end_a_trial(record: Record) -> None:
    scheduler = create_scheduler(SearchConfig(grace_period=2), 6, empty())
    scheduler.on_trial_add(None, SimpleNamespace(trial_id="new"))
    assert scheduler.on_trial_result(None, SimpleNamespace(trial_id="new"), report(6, 0.9)) == "CONTINUE"


@pytest.mark.parametrize("epochs", [2, 6, 60])
def test_hyperband_takes_any_number_of_epochs(epochs: int, record: Record) -> None:
    scheduler = create_scheduler(SearchConfig(scheduler="hyperband"), epochs, record)
    scheduler.on_trial_add(None, SimpleNamespace(trial_id="new"))
    assert scheduler.on_trial_result(None, SimpleNamespace(trial_id="new"), report(1, 0.01)) == "CONTINUE"


def test_a_search_whose_trials_are_all_done_ends_at_once(fixed: TrainConfig, space: SearchSpace, record: Record, tmp_path) -> None:
    record.num_samples, record.ended = 10, False
    search = SearchConfig(num_samples=10, confirm=0)
    run_search(
        fixed, search, space, record=record, files=FileTree(str(tmp_path), "tunings/one"), folder="tunings/one", listener=LiveTable()
    )
    assert record.ended


@pytest.mark.parametrize(
    ("options", "nodes", "resources", "concurrent", "workers", "cpus"),
    [
        ({}, 1, {"CPU": 2.0}, 2, 1, 1.0),
        ({"num_samples": 1}, 1, {"CPU": 2.0}, 1, 1, 2.0),
        ({"max_concurrent": 4}, 1, {"CPU": 2.0}, 4, 1, 0.5),
        ({"workers_per_trial": 2}, 1, {"CPU": 2.0}, 1, 2, 0.99),
        ({"workers_per_trial": 4}, 1, {"CPU": 2.0}, 1, 4, 0.49),
        ({}, 1, {"CPU": 16.0, "GPU": 4.0}, 4, 1, 4.0),
        ({"workers_per_trial": 2}, 1, {"CPU": 16.0, "GPU": 4.0}, 2, 2, 3.0),
        ({"workers_per_trial": 4}, 3, {"CPU": 12.0}, 2, 4, 1.0),
    ],
)
def test_trials_and_their_drivers_always_fit_the_cluster(
    options: dict, nodes: int, resources: dict, concurrent: int, workers: int, cpus: float
) -> None:
    hosts = tuple({name: amount / nodes for name, amount in resources.items()} for _ in range(nodes))
    count, plan = plan_trials(SearchConfig(**options), Cluster(hosts, resources))
    assert (count, plan.num_workers, plan.cpus) == (concurrent, workers, cpus)
    assert count * plan.num_workers * plan.cpus + (0.01 * count if workers > 1 else 0) <= resources["CPU"]


def test_more_than_the_cluster_holds_is_refused() -> None:
    with pytest.raises(ResourceError, match="3 trials at a time of 2 workers: the cluster has 4 GPUs"):
        plan_trials(SearchConfig(max_concurrent=3, workers_per_trial=2), Cluster(({"CPU": 8.0, "GPU": 4.0},), {"CPU": 8.0, "GPU": 4.0}))
