"""Trials are compared at equal budgets only, and a search says how sure it is of its best trial."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar_ray.config import TrainConfig
from cifar_ray.config.search_config import SearchConfig
from cifar_ray.metrics.intervals import difference_interval
from cifar_ray.reports.search_report import write_results
from cifar_ray.tuning.certainty import compare, describe_certainty
from cifar_ray.tuning.importance import parameter_importance
from cifar_ray.tuning.record import AGAIN, OUT_OF_TIME, Record, Trial
from cifar_ray.tuning.search_job import best_config, prepare
from cifar_ray.tuning.space import SearchSpace, present_values
from cifar_ray.tuning.standings import describe_figure, describe_result
from tests.tuning.conftest import SPACE, report


def record_of(*trials: list[float], val_images: int | None = 1000, epochs: int = 6) -> Record:
    """A search whose trials have these accuracies after each epoch; the longest are finished, the others stopped."""
    record = Record("val_accuracy", max_epochs=epochs, num_samples=len(trials), val_images=val_images)
    for number, accuracies in enumerate(trials, start=1):
        status: Any = "finished" if len(accuracies) == epochs else "stopped"
        record.trials.append(Trial(number, f"id{number}", f"id{number}", {"optimizer.lr": number / 10}, status))
        for epoch, accuracy in enumerate(accuracies, start=1):
            record.trials[-1].add(report(epoch, accuracy))
    return record


def repeat(record: Record, trial: Trial, accuracy: float) -> None:
    again = record.trial(f"{trial.trial_id} again", trial.parameters | {AGAIN: True})
    for epoch in range(1, record.max_epochs + 1):
        again.add(report(epoch, accuracy * epoch / record.max_epochs))
    again.status = "finished"


def order(record: Record) -> list[int]:
    return [trial.number for trial in record.ranked()]


def test_a_trial_with_the_full_budget_comes_before_one_that_was_stopped_with_a_higher_accuracy() -> None:
    assert order(record_of([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.7, 0.9], [0.1, 0.2, 0.3, 0.4, 0.5, 0.7])) == [3, 1, 2]


def test_a_short_run_is_never_averaged_with_a_full_one() -> None:
    record = record_of([0.3, 0.5], [0.2, 0.4])
    assert order(record) == [1, 2]
    assert describe_figure(record, record.trials[0]) == "50.00 % (after 2 of 6 epochs)"
    repeat(record, record.trials[1], 0.8)
    assert record.figure(record.trials[1]) == pytest.approx(0.8)
    assert order(record) == [2, 1], "the repeat is the only run with the full budget"
    full = record_of([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    repeat(full, full.trials[0], 0.8)
    assert full.figure(full.trials[0]) == pytest.approx(0.7)
    assert describe_figure(full, full.trials[0]) == "70.00 % (mean of 2 seeds)"


def test_trials_that_the_time_budget_cut_off_are_compared_at_an_epoch_that_both_reached() -> None:
    assert order(record_of([0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.2, 0.3, 0.45])) == [2, 1]
    assert order(record_of([0.1, 0.2, 0.3, 0.4, 0.5], [0.9])) == [1, 2], "one that has just started does not lead"
    assert order(record_of([0.3], [0.4], [0.35])) == [2, 3, 1]


def test_a_comparison_with_a_stopped_trial_is_made_after_its_epochs() -> None:
    record = record_of([0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [0.2, 0.35], [0.1, 0.2, 0.3, 0.4, 0.5, 0.75])
    best, stopped, full = record.trials
    found = compare(record, best, stopped)
    assert found is not None
    assert (found.epoch, found.difference) == (2, pytest.approx(0.05))
    assert found.interval == pytest.approx(difference_interval(0.4, 0.35, 1000))
    found = compare(record, best, full)
    assert found is not None
    assert (found.epoch, found.difference) == (None, pytest.approx(0.05))
    repeat(record, best, 0.7)
    found = compare(record, best, full)
    assert found is not None
    assert found.difference == pytest.approx(0.0), "the mean of both seeds"


def test_the_interval_of_a_difference_is_the_published_one() -> None:
    """Newcombe 1998, table II, contrast of 9/10 and 3/10."""
    assert difference_interval(0.9, 0.3, 10) == pytest.approx((0.1705, 0.8090), abs=1e-4)
    low, high = difference_interval(1.0, 1.0, 50)
    assert low == -high != 0


@pytest.fixture
def searched(fixed: TrainConfig, space: SearchSpace) -> Record:
    """The defaults, then two others, all with the full budget."""
    record = record_of([0.1, 0.2, 0.3, 0.4, 0.5, 0.88], [0.1, 0.2, 0.3, 0.4, 0.5, 0.9], [0.1, 0.2, 0.3, 0.4, 0.5, 0.7], [0.1, 0.2])
    start = present_values(fixed, space)
    assert start is not None
    for trial in record.trials:
        trial.parameters = start | {"label_smoothing": start["label_smoothing"] if trial.number == 1 else 0.1 * trial.number}
    return record


def test_the_last_lines_say_how_sure_the_search_is(searched: Record, fixed: TrainConfig, space: SearchSpace, tmp_path: Path) -> None:
    low, high = (f"{100 * bound:+.1f}".replace("-", "−") for bound in difference_interval(0.9, 0.88, 1000))
    assert (low, high) == ("−0.7", "+4.8")
    expected = [
        "3 of 4 trials had the full budget of 6 epochs",
        f"+2.0 points of validation accuracy against the defaults (trial 1); 95 % interval {low} to {high} on 1,000 images; "
        "not distinguishable from the defaults",
    ]
    assert describe_certainty(searched, fixed, space) == expected
    job = prepare(fixed, SearchConfig(), SPACE)
    lines = describe_result(searched, job, best_config(searched, fixed), "cifar-ray tune").splitlines()
    assert lines[1:3] == [f"sure    {expected[0]}", f"        {expected[1]}"]
    write_results(searched, fixed, space, job.files, "one")
    assert "not distinguishable from the defaults" in (job.files.read("report.html") or b"").decode()
    searched.val_images = 10_000
    assert "not distinguishable" not in describe_certainty(searched, fixed, space)[1]
    searched.val_images = None
    assert describe_certainty(searched, fixed, space)[1].endswith("(trial 1)"), "an interval needs the number of images"


def test_where_the_defaults_are_best_the_second_best_is_named(searched: Record, fixed: TrainConfig, space: SearchSpace) -> None:
    for epoch in searched.trials[0].epochs:
        epoch["val_accuracy"] += 0.1
    assert describe_certainty(searched, fixed, space)[1:] == [
        "the best trial has the default settings",
        "+8.0 points of validation accuracy against the second best (trial 2); 95 % interval +6.0 to +10.1 on 1,000 images",
    ]


def test_defaults_that_were_stopped_are_compared_after_the_epochs_that_they_had(
    searched: Record, fixed: TrainConfig, space: SearchSpace
) -> None:
    searched.trials[0].epochs, searched.trials[0].status = searched.trials[0].epochs[:2], "stopped"
    full, against, second = describe_certainty(searched, fixed, space)
    assert full.startswith("2 of 4 trials")
    assert against.startswith("+0.0 points of validation accuracy against the defaults (trial 1) after 2 epochs, the most that both had; ")
    assert against.endswith("not distinguishable from the defaults")
    assert "against the second best (trial 3); 95 %" in second
    searched.trials[0].status, searched.trials[0].reason = "diverged", "the loss became nan in epoch 3"
    assert describe_certainty(searched, fixed, space)[1] == "the defaults (trial 1) have no result: the loss became nan in epoch 3"


def test_a_single_trial_is_called_best_of_nothing(fixed: TrainConfig, space: SearchSpace) -> None:
    assert describe_certainty(record_of([0.5]), fixed, space) == [
        "0 of 1 trials had the full budget of 6 epochs: the best leads after 1 only",
        "no other trial has a result: nothing was compared",
    ]
    assert describe_certainty(Record("val_accuracy", 6, 4), fixed, space) == []


def test_importance_does_not_shrink_to_the_epochs_of_a_trial_that_the_time_budget_cut_off(record: Record, space: SearchSpace) -> None:
    cut = record.trials[11]
    cut.epochs, cut.status, cut.reason = cut.epochs[:1], "stopped", OUT_OF_TIME
    importance = parameter_importance(record, space)
    assert importance is not None
    assert (importance.epoch, importance.count) == (2, 11)


@pytest.mark.parametrize(("patience", "over"), [(None, False), (3, False), (2, True)])
def test_a_trial_that_its_patience_ends_had_its_full_budget(patience: int | None, over: bool) -> None:
    (trial,) = record_of([0.1, 0.2, 0.1, 0.1]).trials
    for epoch in trial.epochs[2:]:
        epoch["improved"] = False
    assert trial.is_over(6, patience) == over
    assert trial.is_over(4, None)


def test_a_search_on_several_labels_goes_by_map(tmp_path: Path) -> None:
    fixed = TrainConfig(dataset="folder", data_dir=str(tmp_path), storage=str(tmp_path), name="sets")
    job, record = prepare(fixed, SearchConfig(), SPACE).open_for(np.zeros((3, 2), np.uint8), 100)
    assert (job.search.metric, job.fixed.task, record.metric) == ("val_map", "multi-label", "val_map")
    assert prepare(fixed, SearchConfig(), SPACE).open_for(np.zeros((3, 2), np.uint8), 100)[1].metric == "val_map", (
        "the same command resumes"
    )
    again, plain = prepare(fixed.model_copy(update={"name": "plain"}), SearchConfig(), SPACE).open_for(np.zeros(3, np.int64), 100)
    assert (again.search.metric, again.fixed.task, plain.metric) == ("val_accuracy", "auto", "val_accuracy")
    for number, score in enumerate((0.5, 0.7), start=1):
        record.trials.append(Trial(number, f"id{number}", f"id{number}", {"optimizer.lr": number / 10}, "finished"))
        for epoch in range(1, record.max_epochs + 1):
            record.trials[-1].add({key: value for key, value in report(epoch, score).items() if "accuracy" not in key} | {"val_map": score})
    assert [trial.number for trial in record.ranked()] == [2, 1]
    found = compare(record, record.trials[1], record.trials[0])
    assert found is not None
    assert (found.score, round(found.difference, 6), found.interval) == ("mAP", 0.2, None), "its interval does not follow from a count"
    assert describe_figure(record, record.trials[1]).startswith("70.00 %")
    assert b"val_map" in record.to_csv()
    assert b"val_accuracy" not in record.to_csv()
