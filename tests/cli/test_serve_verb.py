"""`cifar-ray serve` before Ray starts: what it refuses, and what it hands to `serve run`."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import ray
import yaml
from click.testing import CliRunner
from ray.serve.config import HTTPOptions
from ray.serve.scripts import cli as serve_cli

import deployments
from cifar_ray import __main__ as console
from cifar_ray import serve
from cifar_ray.cluster import serve_command, serve_watch
from cifar_ray.inference import preflight
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
        assert f"starting the server for {expected}\n" in capsys.readouterr().err
        store.promote("digits", 1)
    assert "model" not in started[0]["applications"][0]["args"]


def test_it_becomes_serve_run_with_the_settings_of_ray_serve_and_what_is_exported_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[list[str], Mapping[str, str], Any]] = []

    def execve(_: str, command: list[str], environment: Mapping[str, str]) -> None:
        called.append((command, environment, yaml.safe_load(Path(command[-1]).read_text())))

    watched: list[list[str]] = []
    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(subprocess, "Popen", watched.append)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_NBTHREAD", "3")
    config = serve_command.serve_config({"model": "digits"}, "0.0.0.0", 8001)  # noqa: S104  (nothing listens)
    serve_command.become_serve_run(config)
    ((command, environment, read),) = called
    assert command[1:4] == ["-m", "ray.serve.scripts", "run"]
    assert read == config
    assert environment["RAY_SERVE_HAPROXY_NBTHREAD"] == "3"
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert watched == [[sys.executable, "-m", "cifar_ray.cluster.serve_watch", "http://127.0.0.1:8001"]]


class Ready(BaseHTTPRequestHandler):
    """A server whose model is there."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()
        self.wfile.write(b'{"status": "ready", "model": "digits", "version": 3}')

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_the_start_is_never_silent_and_ends_with_one_block(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    servers: list[HTTPServer] = []
    paused_s: list[float] = []

    def pause(seconds: float) -> None:
        paused_s.append(seconds)
        if sum(paused_s) > 21:
            servers.append(HTTPServer(("127.0.0.1", port), Ready))
            Thread(target=servers[0].handle_request).start()

    serve_watch.announce(url, lambda: True, pause)
    servers[0].server_close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.rsplit("…", 1)[1] for line in lines[:2]] == [" 10 s", " 20 s"]
    block = "\n".join(lines[2:])
    for expected in (f"page   {url}", f"API    {url}/predict, described at {url}/docs", "model  digits@3", "stop   Ctrl-C"):
        assert expected in block


def test_waiting_for_a_server_ends_with_its_process(capsys: pytest.CaptureFixture[str]) -> None:
    alive = iter((True, True, False))
    serve_watch.announce(f"http://127.0.0.1:{free_port()}", lambda: next(alive), lambda _: None)
    assert capsys.readouterr().err == ""


def test_too_little_memory_is_said_before_ray_starts(
    storage: Path, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "available_bytes", lambda: 900_000_000)
    assert console.main(["serve", "digits", "--storage", str(storage), "--port", str(free_port())]) == 2
    assert "too little memory: 0.9 GB are available, and the server needs at least 1.2 GB" in capsys.readouterr().err
    assert started == []
    monkeypatch.undo()
    assert preflight.available_bytes() is None or preflight.available_bytes() > 0


def test_serve_run_refuses_the_same_before_ray_starts(storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = HTTPOptions(port=taken.getsockname()[1])
        monkeypatch.setattr(deployments, "HTTPOptions", lambda: options)
        for arguments, reason in (
            (["model=nosuch", f"storage={storage}"], "model nosuch not found in"),
            ([f"storage={tmp_path / 'empty'}"], "no model in"),
            ([f"storage={storage}"], f"cannot listen on 127.0.0.1:{options.port} (Address already in use)"),
        ):
            result = CliRunner().invoke(serve_cli, ["run", "deployments:app", *arguments])
            assert result.exit_code == 2
            assert f"Error: {reason}" in result.output
            assert "Traceback" not in result.output
