"""Whole jobs: predictions, and on a server that speaks S3 what a user types to train and search."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from cifar_ray.inference.results import Results, classify_part
from cifar_ray.inference.rows import SCHEMA, broken_row
from cifar_ray.storage import FileTree
from cifar_ray.store import ModelStore

SMALL = ("--dataset", "digits", "--recipe", "digits", "--epochs", "2")


def run(verb: str, *flags: str) -> str:
    command = [sys.executable, "-m", f"cifar_ray.{verb}", *flags]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


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
def test_a_model_is_trained_listed_promoted_and_asked_on_an_object_store(s3: Any) -> None:
    storage = s3.uri("some/storage")
    output = run("train", *SMALL, "--storage", storage, "--name", "first", "--num-workers", "2")
    assert "digits@1: promoted to production" in output
    runs = FileTree(storage, "runs")
    assert runs.have_files([f"first/{name}" for name in ("config.yaml", "history.csv", "history.json", "curves.png")]) == [True] * 4
    (row,) = json.loads(run("store", "list", "--json", "--storage", storage))
    assert (row["name"], row["version"], row["aliases"]) == ("digits", 1, ["production"])
    assert run(
        "store", "export", "first", "--format", "safetensors", "--output", s3.uri("exports/digits.safetensors"), "--storage", storage
    )
    assert FileTree(s3.uri("exports"), "").have_files(["digits.safetensors"]) == [True]
    run("store", "ensemble", "twice", "digits@1", "digits@1", "--storage", storage)
    assert ModelStore(storage).names() == ["digits", "twice"]
    assert "twice@1" in run("store", "delete", "twice@1", "--storage", storage)


@pytest.mark.slow
def test_a_search_keeps_its_state_on_an_object_store(s3: Any) -> None:
    storage = s3.uri("some/storage")
    run("tune", *SMALL, "--storage", storage, "--name", "one", "--num-samples", "2", "--confirm", "0")
    files = FileTree(storage, "tunings/one")
    assert files.have_files(["state.json", "best.yaml"]) == [True, True]
    assert files.folders() == []  # Ray Tune's own and the trials' snapshots are gone
