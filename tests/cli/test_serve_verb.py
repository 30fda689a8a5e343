"""`cifar-ray serve`: what it refuses before Ray starts, how it starts Ray Serve, what it says, and how it stops."""

import os
import pkgutil
import shutil
import signal
import socket
from ast import literal_eval
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from click.testing import CliRunner
from ray import serve as ray_serve
from ray.serve.config import HTTPOptions
from ray.serve.scripts import cli as serve_cli

import deployments
from cifar_ray import __main__ as console
from cifar_ray import serve
from cifar_ray.cluster import serve_command
from cifar_ray.errors import Interrupted, ResourceError
from cifar_ray.inference import preflight
from cifar_ray.store import ModelStore

SAVED = Path(__file__).parents[1] / "saved"


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return Path(shutil.copytree(SAVED / "models", tmp_path / "storage/models")).parent


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments, host and port of the servers that would be started."""
    servers: list[dict[str, Any]] = []

    def start(arguments: dict[str, Any], host: str, port: int, _: object, __: object, grpc_port: int | None) -> int:
        servers.append({"arguments": arguments, "host": host, "port": port, "grpc_port": grpc_port})
        return signal.SIGINT

    monkeypatch.setattr(serve, "serve_until_signal", start)
    return servers


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_flags_become_the_settings_of_the_server(storage: Path, started: list[dict[str, Any]]) -> None:
    port = free_port()
    serve.main(["digits@1", "--storage", str(storage), "--port", str(port), "--replicas", "2"])
    arguments = {"model": "digits@1", "storage": str(storage), "num_replicas": 2}
    assert started.pop() == {"arguments": arguments, "host": "127.0.0.1", "port": port, "grpc_port": None}
    grpc_port = free_port()
    serve.main(["digits@1", "--storage", str(storage), "--port", str(port), "--grpc-port", str(grpc_port)])
    assert started.pop()["grpc_port"] == grpc_port


def test_a_server_that_would_be_useless_is_refused_in_one_line_before_ray_starts(
    storage: Path, tmp_path: Path, started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", port)
        for arguments, reason in (
            (["nosuch", "--storage", str(storage)], "nosuch"),
            (["digits@9", "--storage", str(storage)], "digits"),
            (["--storage", str(tmp_path / "empty")], "no model in"),
            (["digits", "--storage", str(storage), "--port", port], f"cannot listen on 127.0.0.1:{port} (Address already in use)"),
            (["digits", "--storage", str(storage), "--port", "99999"], "port"),
            (["digits", "--storage", str(storage), "--port", str(free_port()), "--grpc-port", port], "cifar-ray serve --grpc-port N"),
            (
                ["digits", "--storage", str(storage), "--port", str(free_port())],
                f"0.0.0.0:{port} (Address already in use); stop what uses it, or export",
            ),
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
    assert "model" not in started[0]["arguments"]


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Ray is told, instead of starting it."""
    told: list[str] = []
    monkeypatch.setattr(serve_command, "ray_cluster", lambda **_: nullcontext())
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node-of-the-test"))
    monkeypatch.setattr(serve_command, "belongs_to_cluster", lambda: False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(serve_command, "serve_port", lambda: None)
    monkeypatch.setattr(serve_command, "end_proxies", lambda node_id: told.append(f"end proxies of {node_id}"))
    monkeypatch.setattr(ray_serve, "start", lambda **options: told.append(f"start {options['http_options']} {options['grpc_options']}"))
    monkeypatch.setattr(ray_serve, "run", lambda application, name: told.append(f"run {name} {application}"))
    monkeypatch.setattr(ray_serve, "delete", lambda name: told.append(f"delete {name}"))
    monkeypatch.setattr(deployments, "app", lambda arguments: arguments["model"])
    return told


def test_it_starts_ray_serve_with_the_projects_settings_and_what_is_exported_wins(
    without_ray: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in serve_command.serve_environment():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_NBTHREAD", "3")
    stages: list[str] = []
    anywhere = "0.0.0.0"  # noqa: S104  (nothing listens)
    with serve_command.serving({"model": "digits"}, anywhere, 8001, stages.append, name="default", for_throughput=True):
        assert without_ray == ["start {'host': '0.0.0.0', 'port': 8001} None", "run default digits"]
        assert (os.environ["RAY_SERVE_HAPROXY_NBTHREAD"], os.environ["RAY_SERVE_ENABLE_HA_PROXY"]) == ("3", "1")
    assert without_ray[-2:] == ["delete default", "end proxies of node-of-the-test"]
    assert stages == ["starting Ray", "starting the HTTP server and the model"]


def test_a_serve_that_runs_already_at_another_port_is_named_before_anything_is_deployed(
    without_ray: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_command, "serve_port", lambda: 8000)
    with (
        pytest.raises(ResourceError, match=r"^port 8001: Ray Serve already runs on this cluster, at port 8000; use it, or end it"),
        serve_command.serving({"model": "digits"}, "127.0.0.1", 8001, lambda _: None, name="default", for_throughput=False),
    ):
        pytest.fail("it serves")
    assert not [line for line in without_ray if line.startswith(("run", "delete"))]


def test_grpc_is_opened_on_request_only_with_methods_that_ray_can_import(
    without_ray: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_command.serving(
        {"model": "digits"}, "127.0.0.1", 8001, lambda _: None, name="default", for_throughput=False, grpc_port=9001
    ):
        port, [servicer] = literal_eval(without_ray[0].partition("} ")[2]).values()
    assert port == 9001
    assert callable(pkgutil.resolve_name(servicer))
    serve._say_ready("http://127.0.0.1:8001", "digits@3", 9001)
    assert "gRPC   127.0.0.1:9001" in capsys.readouterr().err
    assert serve_command.proxy_ports(with_grpc=True).keys() - serve_command.proxy_ports() == {"RAY_SERVE_FALLBACK_PROXY_GRPC_PORT"}


class Ready(BaseHTTPRequestHandler):
    """A server whose model is there."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()
        self.wfile.write(b'{"status": "ready", "model": "digits", "version": 3}')

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_is_once_it_answers_and_a_signal_stops_it(
    without_ray: list[str], number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        port = server.server_address[1]
        Thread(target=server.handle_request).start()

        def ready(url: str, model: str) -> None:
            serve._say_ready(url, model)
            signal.raise_signal(number)

        assert serve_command.serve_until_signal({"model": "digits"}, "127.0.0.1", port, lambda _: None, ready) == number
    assert without_ray[-2:] == ["delete default", "end proxies of node-of-the-test"]
    block, url = capsys.readouterr().err, f"http://127.0.0.1:{port}"
    for expected in (f"page   {url}", f"API    {url}/predict, described at {url}/docs", "model  digits@3", "stop   Ctrl-C"):
        assert expected in block


def test_a_signal_before_it_answers_stops_it_too(without_ray: list[str]) -> None:
    def stage(name: str) -> None:
        if name == "starting the HTTP server and the model":
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        serve_command.serve_until_signal({"model": "digits"}, "127.0.0.1", free_port(), stage, lambda *_: None)


def test_a_signal_while_the_application_starts_leaves_no_proxy(without_ray: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def ray_starts(name: str) -> None:
        if name == "starting Ray":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray installs a handler of its own

    monkeypatch.setattr(ray_serve, "run", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        serve_command.serve_until_signal({"model": "digits"}, "127.0.0.1", free_port(), ray_starts, lambda *_: None)
    assert without_ray[-1] == "end proxies of node-of-the-test"


def test_a_server_that_does_not_start_is_one_line_and_leaves_no_proxy(without_ray: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Traceback of a replica\n  …\nOSError: no space left on device")

    monkeypatch.setattr(ray_serve, "run", fail)
    with pytest.raises(
        ResourceError, match=r"^the server did not start: OSError: no space left on device; see the log above, or /tmp/ray/"
    ):
        serve_command.serve_until_signal({"model": "digits"}, "127.0.0.1", free_port(), lambda _: None, lambda *_: None)
    assert without_ray[-1] == "end proxies of node-of-the-test"


def test_a_server_on_hosts_that_this_machine_does_not_reach_is_said_to_run(without_ray: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_command, "_READY_POLLS", 2)
    said: list[str] = []

    def ready(url: str, model: str) -> None:
        said.append(model)
        signal.raise_signal(signal.SIGTERM)

    serve_command.serve_until_signal({"model": "digits"}, "127.0.0.1", free_port(), lambda _: None, ready)
    assert said == ["unknown: the server is running, but this address does not answer from this machine"]


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
