"""What is kept of a search."""

import csv
import io
import json

import numpy as np
import pytest
import torch
import yaml

from cifar_ray.config import TrainConfig
from cifar_ray.config.search_config import SearchConfig
from cifar_ray.data import load_splits
from cifar_ray.errors import ConfigError, DataError, StoreError
from cifar_ray.recipes import get_recipe
from cifar_ray.storage import FileTree
from cifar_ray.tuning import trial
from cifar_ray.tuning.record import AGAIN, STATE_FILE, Record, Status, Trial
from cifar_ray.tuning.search_job import digest_labels, prepare
from tests.tuning.conftest import report


def test_a_record_comes_back_as_it_was_saved(record: Record, tmp_path) -> None:
    files = FileTree(str(tmp_path), "tunings/one")
    record.save(files)
    assert Record.load(files) == record


def test_a_record_of_release_0_1_has_no_format_version_and_a_newer_one_is_refused(record: Record, tmp_path) -> None:
    files = FileTree(str(tmp_path), "tunings/one")
    record.save(files)
    values = json.loads(files.read(STATE_FILE))
    assert values.pop("format_version") == 1
    files.replace(STATE_FILE, json.dumps(values).encode())
    assert Record.load(files) == record
    files.replace(STATE_FILE, json.dumps(values | {"format_version": 2}).encode())
    with pytest.raises(ConfigError, match=r"state\.json: format_version 2 is not one .*; upgrade cifar-ray"):
        Record.load(files)


def test_a_search_that_an_earlier_release_began_is_resumed_though_settings_were_added_since(record: Record, tmp_path) -> None:
    fixed = get_recipe("digits").model_copy(update={"storage": str(tmp_path), "name": "one"})
    job = prepare(fixed, SearchConfig(), {"optimizer.lr": {"loguniform": [1e-4, 1e-2]}})
    job.open()
    record.save(job.files)
    settings = yaml.safe_load(job.files.read("search.yaml"))
    for added in ("columns", "split_seed"):
        del settings["fixed"][added]
    job.files.replace("search.yaml", yaml.safe_dump(settings).encode())
    assert job.open().trials == record.trials
    settings["fixed"]["epochs"] += 1
    job.files.replace("search.yaml", yaml.safe_dump(settings).encode())
    with pytest.raises(ConfigError, match="has other settings; choose another --name"):
        job.open()


def test_what_still_ran_when_the_search_was_killed_is_interrupted(record: Record, tmp_path) -> None:
    files = FileTree(str(tmp_path), "tunings/one")
    record.trials[3].status = "running"
    record.save(files)
    loaded = Record.load(files)
    assert loaded is not None
    assert [trial.number for trial in loaded.interrupted()] == [4]
    assert len(loaded.settled()) == 13


def test_an_interrupted_trial_is_found_again_by_its_parameters_under_a_new_id(record: Record) -> None:
    record.trials[3].status = "interrupted"
    again = record.trial("new", record.trials[3].parameters)
    assert (again.number, again.trial_id, again.folder, again.status) == (4, "new", "id4", "running")
    assert record.trial("newer", {"optimizer.lr": 1.0}).number == 15


def test_an_epoch_that_is_reported_again_counts_once() -> None:
    trial = Trial(1, "a", "a", {})
    for epoch in (1, 2, 2, 3):
        trial.add(report(epoch, epoch / 10))
    assert [known["epoch"] for known in trial.epochs] == [1, 2, 3]
    assert trial.epochs_done == 3


def repeat(record: Record, trial: Trial, accuracy: float, status: Status = "finished") -> None:
    again = record.trial(f"{trial.trial_id} again", trial.parameters | {AGAIN: True})
    again.add(report(6, accuracy))
    again.status = status


def test_a_leader_that_was_lucky_falls_behind_when_it_is_trained_with_another_seed(record: Record) -> None:
    first, second, *_ = record.ranked()
    assert record.to_repeat(most=4, at_once=2) == [first, second]
    repeat(record, first, 0.1)
    repeat(record, second, (second.best("val_accuracy") or {})["val_accuracy"])
    assert record.ranked()[0] is second
    assert record.to_repeat(most=4, at_once=2) == [], "the leader has two figures now"
    assert record.figure(first) == pytest.approx(((first.best("val_accuracy") or {})["val_accuracy"] + 0.1) / 2)
    assert record.ranked()[1] is first, "its mean still beats the others"
    assert len(record.settled()) == 14, "repeats are no samples"
    rows = list(csv.DictReader(io.StringIO(record.to_csv().decode())))
    assert float(rows[first.number - 1]["again"]) == 0.1


def test_a_leader_that_diverges_with_another_seed_is_out(record: Record) -> None:
    first, second, *_ = record.ranked()
    repeat(record, first, 0.9, "diverged")
    assert first not in record.ranked()
    assert record.to_repeat(most=4, at_once=1) == [second]
    assert record.to_repeat(most=1, at_once=1) == []


def test_a_repeat_that_was_interrupted_goes_on_and_counts_only_when_it_is_finished(record: Record) -> None:
    first, *_ = record.ranked()
    before = record.figure(first)
    repeat(record, first, 0.1, "interrupted")
    assert record.figure(first) == before
    assert record.to_repeat(most=4, at_once=2) == [first]
    assert record.trial("new", first.parameters | {AGAIN: True}) is record.repeats[0]
    assert record.interrupted() == []


def test_diverged_and_failed_trials_are_never_the_best(record: Record) -> None:
    best = record.ranked()[0]
    assert best.status == "finished"
    assert {13, 14}.isdisjoint(trial.number for trial in record.ranked())


def test_by_loss_less_is_better(record: Record) -> None:
    by_accuracy = [trial.number for trial in record.ranked()]
    record.metric = "val_loss"
    assert [trial.number for trial in record.ranked()] == by_accuracy


def test_trials_csv_has_a_row_a_trial_with_its_parameters_and_reason(record: Record) -> None:
    rows = list(csv.DictReader(io.StringIO(record.to_csv().decode())))
    assert [row["status"] for row in rows] == [trial.status for trial in record.trials]
    assert float(rows[2]["optimizer.lr"]) == record.trials[2].parameters["optimizer.lr"]
    assert (rows[2]["best_epoch"], rows[2]["epochs"]) == ("6", "6")
    assert float(rows[2]["val_accuracy"]) == record.trials[2].epochs[-1]["val_accuracy"]
    assert rows[12]["reason"] == "the loss became nan in epoch 2"


def test_a_damaged_record_is_one_line(tmp_path) -> None:
    files = FileTree(str(tmp_path), "tunings/one")
    files.replace("state.json", b'{"metric": "val_accuracy", "tri')
    with pytest.raises(StoreError, match=r"state\.json is damaged .* choose another --name"):
        Record.load(files)


def test_a_search_with_reviews_needs_a_time_so_that_all_trials_see_the_same_pictures() -> None:
    space = {"optimizer.lr": {"loguniform": [1e-4, 1e-2]}}
    fixed = TrainConfig(dataset="digits", with_reviews=True)
    with pytest.raises(ConfigError, match=r"^--with-reviews: people label while trials run; add --reviews-until TIME"):
        prepare(fixed, SearchConfig(), space)
    prepare(fixed.model_copy(update={"reviews_until": "2025-11-29T00:00:00+00:00"}), SearchConfig(), space)
    with pytest.raises(ConfigError, match=r"^--reviews-until .*: is in the future"):
        prepare(fixed.model_copy(update={"reviews_until": "2999-01-01T00:00:00+00:00"}), SearchConfig(), space)


def test_a_search_is_not_resumed_with_other_labels(record: Record, tmp_path) -> None:
    job = prepare(
        TrainConfig(dataset="digits", storage=str(tmp_path), name="one"), SearchConfig(), {"optimizer.lr": {"loguniform": [1e-4, 1e-2]}}
    )
    labels = np.zeros(3, np.int64)
    job.open_for(labels, 1, "one")
    record.save(job.files)
    assert job.open_for(labels, 1, "one")[1].trials == record.trials
    with pytest.raises(DataError, match=r"search 'one' in .*: its images or labels have changed since; restore them, or choose another"):
        job.open_for(labels, 1, "two")


def test_a_trial_that_finds_other_labels_says_so_before_it_trains(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "get_ray_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(trial, "prepare_process", lambda threads: None)
    monkeypatch.setattr(trial, "fit", lambda *args, **settings: pytest.fail("it trains"))
    config = TrainConfig(dataset="digits", image_size=8, storage=str(tmp_path))
    work = {"config": config.model_dump(mode="json"), "storage": str(tmp_path), "folder": "one", "threads": 1, "in_process": True}
    with pytest.raises(DataError, match=r"^digits: the pictures differ between hosts or have changed"):
        trial.train_trial(work | {AGAIN: False, "digest": "f" * 64})
    splits = load_splits(config)
    assert digest_labels(splits) == digest_labels(trial.without_test(load_splits(config.model_copy(update={"image_size": 16}))))
    assert digest_labels(splits) != digest_labels(load_splits(config.model_copy(update={"seed": 1})))
