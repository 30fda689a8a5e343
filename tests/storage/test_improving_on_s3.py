"""Trials, the log, captured pictures and counts work on an object store as on a disk."""

from __future__ import annotations

import numpy as np

from cifar_ray.captures.capture_files import Captures
from cifar_ray.captures.reviews import Reviews
from cifar_ray.drift.windows import WindowWriter, read_windows
from cifar_ray.store import ModelStore
from cifar_ray.store.staging.stage_file import Stage, StageFile
from cifar_ray.store.staging.tallies import Tally, read_tallies, write_tally
from tests.captures.test_captures import capture
from tests.conftest import S3
from tests.deployments.conftest import SaveTiny, save_tiny
from tests.store.test_staging import side

__all__ = ["save_tiny"]


def test_a_trial_from_beginning_to_end(s3: S3, save_tiny: SaveTiny) -> None:
    storage = s3.uri("trials")
    store, stages = ModelStore(storage), StageFile(storage)
    for _ in range(2):
        save_tiny(storage)
    store.promote("pets", 1)
    assert stages.read() == ()
    stage = Stage(name="pets", version=2, share=0.1)
    stages.start(store, stage)
    for writer in ("one", "two", "two"):
        write_tally(stages.files, stage.folder, writer, Tally(side(10), side(5)))
    assert read_tallies(stages.files, stage.folder).production.requests == 20
    assert [one.folder for one in stages.read()] == [stage.folder]
    assert stages.end(stage)
    assert not stages.end(stage)
    assert read_tallies(stages.files, stage.folder).production.requests == 0
    assert [entry.action for entry in store.log.entries()] == ["promote", "stage"]


def test_captured_pictures_are_listed_labelled_and_deleted(s3: S3) -> None:
    storage = s3.uri("captures")
    captures, reviews = Captures(storage), Reviews(storage)
    assert captures.all() == []
    assert reviews.current() == {}
    captures.write([capture("a"), capture("b")])
    captures.write([capture("b", 1)])
    reviews.add("b#0", "cat", "alice", captures.find("b#0"))
    assert reviews.current()["b#0"].label == "cat"
    assert (captures.delete({"b"}), reviews.delete("b")) == (2, 1)
    assert [one.key for one in captures.all()] == ["a#0"]
    assert captures.expire(0, 0) == 1
    assert captures.all() == []


def test_answers_are_counted(s3: S3) -> None:
    storage = s3.uri("drift")
    assert read_windows(storage, "pets@1") == []
    writer = WindowWriter(storage)
    for _ in range(2):
        writer.count("pets@1", ["cat"], np.full((1, 1), 0.5, np.float32), 0)
        writer.write()
    assert [one.pictures for one in read_windows(storage, "pets@1")] == [2]
