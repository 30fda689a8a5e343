from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ray.serve.config import HTTPOptions
from ray.serve.scripts import cli

import deployments
from cifar_ray.cli.serving import ServeCommand
from cifar_ray.config import parse_config
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import ConfigError
from deployments.application import gpus_per_replica
from deployments.replicas.classifier_replica import compute_threads


def test_text_from_the_command_line_becomes_typed_settings() -> None:
    config = ServeConfig.model_validate({"num_replicas": "2", "request_timeout_s": "0.5", "precision": "fp32", "model": "pets@3"})
    assert (config.num_replicas, config.request_timeout_s, config.precision, config.model) == (2, 0.5, "fp32", "pets@3")


def test_storage_is_made_absolute_where_the_user_typed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIFAR_RAY_STORAGE", "kept/here")
    assert ServeConfig().storage == str(tmp_path / "kept/here")
    assert ServeConfig(storage="there").storage == str(tmp_path / "there")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modle", "cifar10"),
        ("model", "../cifar10"),
        ("top_k", "0"),
        ("precision", "int8"),
        ("num_replicas", "many"),
        ("max_batch_size", "0"),
        ("model_memory_bytes", "-1"),
        ("max_pending_images", "0"),
        ("cpus_per_replica", "0"),
        ("gpus_per_replica", "-1"),
        ("torch_threads", "0"),
        ("num_ingress_replicas", "0"),
        ("cpus_per_ingress", "0"),
        ("request_timeout_s", "0"),
    ],
)
def test_an_impossible_argument_is_refused_in_one_line_that_names_the_key(key: str, value: str) -> None:
    with pytest.raises(deployments.Refusal, match=f"^{key}: ") as refusal:
        deployments.app({key: value})
    assert "\n" not in str(refusal.value)
    assert "num_replicas" in str(refusal.value)


def test_the_server_listens_on_this_machine_alone_unless_it_is_told_otherwise() -> None:
    assert HTTPOptions().host == "127.0.0.1"
    assert ServeCommand().host == "127.0.0.1"


def test_serve_run_prints_a_refusal_without_a_traceback() -> None:
    result = CliRunner().invoke(cli, ["run", "deployments:app", "modle=x"])
    assert result.exit_code == 2
    assert "Error: modle: unknown key" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (None, "cifar-ray train --storage '/a b'"),
        ("digits", "cifar-ray train --dataset digits --storage '/a b'"),
        ("pets@2", "cifar-ray train --dataset folder --data-dir DIR --save-as pets --storage '/a b'"),
    ],
)
def test_the_train_command_makes_the_model_that_is_missing(model: str | None, expected: str) -> None:
    assert ServeConfig(model=model, storage="/a b").train_command == expected


@pytest.mark.parametrize(
    ("settings", "threads"),
    [({}, 8), ({"num_replicas": 3}, 2), ({"num_replicas": 20}, 1), ({"cpus_per_replica": 4.5}, 4), ({"torch_threads": 5}, 5)],
)
def test_threads_follow_the_cores_given(settings: dict[str, Any], threads: int) -> None:
    assert compute_threads(ServeConfig(**settings), node_cores=8) == threads


@pytest.mark.parametrize(
    ("settings", "images"),
    [
        ({}, 256),
        ({"num_replicas": 3, "num_ingress_replicas": 2}, 384),
        ({"max_batch_size": 8, "num_ingress_replicas": 8}, 8),
        ({"max_pending_images": 5}, 5),
    ],
)
def test_four_batches_for_each_copy_may_be_pending_shared_by_the_ingress_replicas(settings: dict[str, Any], images: int) -> None:
    assert ServeConfig(**settings).pending_image_limit == images


@pytest.mark.parametrize(("num_gpus", "share"), [(0, 0.0), (1, 0.3333), (2, 0.6666), (3, 1.0), (8, 1.0)])
def test_gpus_are_shared_evenly_and_never_overbooked(monkeypatch: pytest.MonkeyPatch, num_gpus: int, share: float) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0, "GPU": float(num_gpus)} if num_gpus else {"CPU": 4.0})
    assert gpus_per_replica(ServeConfig(num_replicas=3)) == share
    assert gpus_per_replica(ServeConfig(num_replicas=3, gpus_per_replica=0)) == 0


def test_the_ingress_process_does_without_torch() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import sys, deployments.replicas.ingress_replica; print('torch' in sys.modules)"],
        capture_output=True,
        check=True,
    )
    assert found.stdout.strip() == b"False"


def test_serves_own_door_lets_in_two_batches_for_each_copy_and_two_more_wait() -> None:
    config = ServeConfig(max_batch_size=8, num_replicas=2)
    assert (config.ongoing_request_limit, config.queued_request_limit) == (32, 32)
    config = ServeConfig(max_batch_size=8, max_pending_images=5)
    assert (config.ongoing_request_limit, config.queued_request_limit) == (5, 5)


def test_copies_may_come_and_go_between_two_bounds() -> None:
    assert ServeConfig(num_replicas=2).replica_limit == 2
    assert ServeConfig(num_replicas=1, max_replicas=3).replica_limit == 3
    with pytest.raises(ConfigError, match=r"max_replicas \(1\) is below num_replicas \(2\)"):
        parse_config(ServeConfig, {"num_replicas": 2, "max_replicas": 1})
