"""Whole jobs: predictions, and on a server that speaks S3 what a user types to train and search."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from PIL import Image

from cifar_ray.inference.batch.rows import SCHEMA, broken_row
from cifar_ray.inference.batch.table import Results, classify_part
from cifar_ray.storage import FileTree
from cifar_ray.store import ModelStore, load_model
from cifar_ray.training.records.checkpoint import STATE_FILE, CheckpointPosition, Checkpoints
from tests.abuse.server import real_server

SMALL = ("--dataset", "digits", "--recipe", "digits", "--epochs", "2")


def a_picture() -> bytes:
    picture = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(picture, "PNG")
    return picture.getvalue()


def run(verb: str, *flags: str) -> str:
    command = [sys.executable, "-m", f"cifar_ray.{verb}", *flags]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=280, check=True).stdout


def test_predictions_gather_in_parts_and_end_as_one_file(storage: str) -> None:
    def classifier(names: Sequence[str]) -> pa.Table:
        return pa.Table.from_pylist([broken_row(name, "not a picture") for name in names], schema=SCHEMA)

    base, mark, query = storage.partition("?")
    results = Results(f"{base}/out.csv{mark}{query}", ["a", "b", "c"], 2, {})
    for part in results.missing():
        classify_part(classifier, part, results.folder)
    assert results.missing() == []
    results.finish()
    table = FileTree(storage, "").read("out.csv")
    assert table is not None
    assert [line.split(",")[0].strip('"') for line in table.decode().splitlines()[1:]] == ["a", "b", "c"]
    assert FileTree(storage, "").folders() == []


@pytest.mark.slow
def test_a_model_is_trained_and_kept_on_an_object_store(s3: Any) -> None:
    storage = s3.uri("some/storage")
    output = run("train", *SMALL, "--storage", storage, "--name", "first", "--num-workers", "2")
    assert "digits@1: promoted to production" in output
    runs = FileTree(storage, "runs")
    assert runs.have_files([f"first/{name}" for name in ("config.yaml", "history.csv", "history.json", "curves.png")]) == [True] * 4
    store = ModelStore(storage)
    assert (store.aliases("digits"), store.load("digits").reference) == ({"production": 1}, "digits@1")
    assert load_model("first", storage).reference == "digits@1"


@pytest.mark.slow
def test_a_server_answers_with_a_model_of_an_object_store(s3: Any, tmp_path: Path) -> None:
    with real_server(tmp_path, s3.uri("some/storage")) as server:
        answer = httpx.post(f"http://127.0.0.1:{server.port}/predict", content=a_picture(), headers={"X-API-Key": server.key}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["model"], answer.json()["version"]) == ("cifar10", 1)


def test_a_checkpoint_that_was_damaged_where_it_is_stored_is_told_of_and_the_one_before_taken(storage: str) -> None:
    messages: list[str] = []
    checkpoints = Checkpoints(storage, "run", messages.append)
    attempt = checkpoints.begin_attempt({})
    for epoch in (1, 2):
        checkpoints.write(CheckpointPosition(attempt, epoch, 0), b"state %d" % epoch, {})
    files = FileTree(storage, "runs/run")
    newest = CheckpointPosition(attempt, 2, 0).folder
    for data in (b"state", b"state 3", b""):
        files.replace(f"{newest}/{STATE_FILE}", data)
        assert checkpoints.newest() == (CheckpointPosition(attempt, 1, 0), b"state 1")
    files.file_system.delete_file(files.path(f"{newest}/{STATE_FILE}"))
    assert checkpoints.newest() == (CheckpointPosition(attempt, 1, 0), b"state 1")
    assert messages == [f"checkpoint {newest}: state.pt is {how}; trying an older checkpoint" for how in (*["damaged"] * 3, "missing")]


@pytest.mark.slow
def test_a_search_keeps_its_state_on_an_object_store(s3: Any) -> None:
    storage = s3.uri("some/storage")
    run("tune", *SMALL, "--storage", storage, "--name", "one", "--num-samples", "2", "--confirm", "0")
    files = FileTree(storage, "tunings/one")
    assert files.have_files(["state.json", "best.yaml"]) == [True, True]
    assert files.folders() == []  # Ray Tune's own and the trials' snapshots are gone
