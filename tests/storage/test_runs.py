"""Whole jobs on a server that speaks S3, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from cifar_ray.storage import FileTree
from cifar_ray.store import ModelStore

SMALL = ("--dataset", "digits", "--recipe", "small_cnn", "--epochs", "2")


def run(verb: str, *flags: str) -> str:
    command = [sys.executable, "-m", f"cifar_ray.{verb}", *flags]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


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
