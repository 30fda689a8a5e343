"""`cifar-ray serve` before Ray starts: what it refuses, and what it hands to `serve run`."""

import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cifar_ray import __main__ as console
from cifar_ray import serve
from cifar_ray.cluster import serve_command
from cifar_ray.store import ModelStore

SAVED = Path(__file__).parents[1] / "saved"


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return Path(shutil.copytree(SAVED / "models", tmp_path / "storage/models")).parent


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The configs that would be served."""
    configs: list[dict[str, Any]] = []
    monkeypatch.setattr(serve, "become_serve_run", configs.append)
    return configs


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_flags_become_the_config_of_serve_run(storage: Path, started: list[dict[str, Any]]) -> None:
    port = free_port()
    serve.main(["digits@1", "--storage", str(storage), "--port", str(port), "--replicas", "2"])
    (config,) = started
    assert (config["http_options"]["host"], config["http_options"]["port"]) == ("127.0.0.1", port)
    (application,) = config["applications"]
    assert application["import_path"] == "deployments:app"
    assert application["args"] == {"model": "digits@1", "storage": str(storage), "num_replicas": 2}


def test_a_server_that_would_be_useless_is_refused_in_one_line_before_ray_starts(
    storage: Path, tmp_path: Path, started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, reason in (
            (["nosuch", "--storage", str(storage)], "nosuch"),
            (["digits@9", "--storage", str(storage)], "digits"),
            (["--storage", str(tmp_path / "empty")], "no model in"),
            (["digits", "--storage", str(storage), "--port", port], f"cannot listen on 127.0.0.1:{port} (Address already in use)"),
            (["digits", "--storage", str(storage), "--port", "99999"], "port"),
        ):
            assert console.main(["serve", *arguments]) == 2
            error = capsys.readouterr().err
            assert reason in error
            assert error.count("\n") == 1
    assert started == []


def test_without_a_model_it_says_which_one_was_promoted_last(
    storage: Path, started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    store = ModelStore(str(storage))
    bundle = store.load("digits")
    store.save("photos", bundle.manifest, bundle.weights)
    store.promote("photos", 1)
    for expected in ("photos (promoted last; others: digits)", "digits (promoted last; others: photos)"):
        serve.main(["--storage", str(storage), "--port", str(free_port())])
        assert f"starting the server for {expected};" in capsys.readouterr().err
        store.promote("digits", 1)
    assert "model" not in started[0]["applications"][0]["args"]


def test_it_becomes_serve_run_with_the_settings_of_ray_serve_and_what_is_exported_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[list[str], Mapping[str, str], Any]] = []

    def execve(_: str, command: list[str], environment: Mapping[str, str]) -> None:
        called.append((command, environment, yaml.safe_load(Path(command[-1]).read_text())))

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_NBTHREAD", "3")
    config = serve_command.serve_config({"model": "digits"}, "0.0.0.0", 8001)  # noqa: S104  (nothing listens)
    serve_command.become_serve_run(config)
    ((command, environment, read),) = called
    assert command[1:4] == ["-m", "ray.serve.scripts", "run"]
    assert read == config
    assert environment["RAY_SERVE_HAPROXY_NBTHREAD"] == "3"
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
