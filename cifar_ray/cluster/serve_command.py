"""Start the server on Ray Serve with the project's settings; Ray is imported only when the server starts."""

from __future__ import annotations

import importlib
import json
import os
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.resources import files
from threading import Event
from typing import Any

from cifar_ray.cluster.connection import ray_cluster
from cifar_ray.cluster.failures import last_line
from cifar_ray.cluster.need import belongs_to_cluster
from cifar_ray.cluster.private import end_proxies, serve_port
from cifar_ray.cluster.signals import Signals
from cifar_ray.errors import ResourceError

# as strings, because this module does not import the server
APP = "deployments:app"
_GRPC_SERVICER = "deployments.protocols.inference_messages.add_servicer"
_POLL_S, _TIMEOUT_S, _LONG_S = 0.1, 5.0, 3600.0
_READY_POLLS = 300
_LOGS = "/tmp/ray/session_latest/logs/serve"  # noqa: S108  where Ray keeps them


def serve_environment() -> dict[str, str]:
    """Environment variables of `config/serve.env`; Ray Serve reads them at import."""
    lines = files("cifar_ray.config").joinpath("serve.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def proxy_ports(*, with_grpc: bool = False) -> dict[str, int]:
    """Further ports on which HAProxy and the proxy behind it listen, by the variable that changes each; empty without HAProxy."""
    settings = serve_environment() | dict(os.environ)
    if settings.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        return {}
    defaults = {"RAY_SERVE_HAPROXY_METRICS_PORT": "9101", "RAY_SERVE_HAPROXY_STATS_PORT": "8404"}
    if with_grpc:
        defaults["RAY_SERVE_FALLBACK_PROXY_GRPC_PORT"] = "9500"
    return {name: int(settings.get(name, port)) for name, port in defaults.items()}


@contextmanager
def serving(
    arguments: Mapping[str, Any],
    host: str,
    port: int,
    on_stage: Callable[[str], object],
    *,
    name: str,
    for_throughput: bool,
    grpc_port: int | None = None,
) -> Iterator[None]:
    """Serve until the end of the block, on a running cluster or on a cluster that is started on this machine.

    Args:
        arguments: settings as after `serve run deployments:app`.
        host: address to listen on.
        port: port to listen on.
        on_stage: receives the name of each part of the start.
        name: name of the application in Ray Serve; on a running cluster, applications with other names keep running.
        for_throughput: whether Ray Serve gets the settings of `serve.env`, which exported variables override.
        grpc_port: port for the Open Inference Protocol over gRPC; `None` for no gRPC.

    Raises:
        ResourceError: if the server does not start.
    """
    for variable, value in serve_environment().items() if for_throughput else ():
        os.environ.setdefault(variable, value)
    import ray
    from ray import serve  # after the variables are set

    on_stage("starting Ray")
    module, _, attribute = APP.partition(":")
    make_application = getattr(importlib.import_module(module), attribute)
    was_there, node_id = ray.is_initialized() or belongs_to_cluster(), None
    try:
        with ray_cluster(shows_logs=for_throughput):
            node_id = ray.get_runtime_context().get_node_id()
            on_stage("starting the HTTP server and the model")
            try:
                grpc = None if grpc_port is None else {"port": grpc_port, "grpc_servicer_functions": [_GRPC_SERVICER]}
                serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port}, grpc_options=grpc)
                _check_port(port)
                serve.run(make_application(dict(arguments)), name=name)
            except ResourceError:
                raise
            except Exception as error:  # from a replica, a proxy or Ray; the log says more
                reason = last_line(str(error)) or type(error).__name__
                raise ResourceError(f"the server did not start: {reason}; see the log above, or {_LOGS}") from error
            try:
                yield
            finally:
                with suppress(ray.exceptions.RayError):
                    serve.delete(name)
    finally:
        if node_id is not None and not was_there:
            end_proxies(node_id)


def _check_port(port: int) -> None:
    if (other := serve_port()) not in (None, port):
        raise ResourceError(f"port {port}: Ray Serve already runs on this cluster, at port {other}; use it, or end it: serve shutdown -y")


def serve_until_signal(
    arguments: Mapping[str, Any],
    host: str,
    port: int,
    on_stage: Callable[[str], object],
    on_ready: Callable[[str, str], object],
    grpc_port: int | None = None,
) -> int:
    """Serve until Ctrl-C or SIGTERM; a second signal stops at once.

    Args:
        arguments: as for `serving`.
        host: as for `serving`.
        port: as for `serving`.
        on_stage: as for `serving`.
        on_ready: receives the address and the model when the server is ready.
        grpc_port: as for `serving`.

    Returns:
        Number of the signal.

    Raises:
        ResourceError: if the server does not start.
        Interrupted: if a signal arrives during the start, or a second signal arrives.
    """
    signals = Signals()

    def begin(stage: str) -> None:
        signals.install()  # Ray's start installs its own handlers, which would leave HAProxy running
        on_stage(stage)

    with signals, serving(arguments, host, port, begin, name="default", for_throughput=True, grpc_port=grpc_port):
        stop = Event()
        signals.ask_with(lambda _: stop.set())
        url, model, asked = local_url(host, port), None, 0
        while model is None and asked < _READY_POLLS and not stop.wait(_POLL_S):
            model, asked = ready_model(url), asked + 1
        if not stop.is_set():
            on_ready(url, model or "unknown: the server is running, but this address does not answer from this machine")
        while not stop.wait(_LONG_S):  # without a limit, Python would not handle signals on every platform
            continue
        on_stage("stopping the server")
    assert signals.received is not None, "nothing else ends it"  # noqa: S101
    return signals.received


def ready_model(url: str) -> str | None:
    """The model that a server serves, as `NAME@VERSION`; `None` if there is no server, or no model yet."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on this machine
    try:
        with opener.open(f"{url}/ready", timeout=_TIMEOUT_S) as answer:
            found = json.load(answer)
        return f"{found['model']}@{found['version']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def describe(url: str, model: str, grpc_port: int | None) -> str:
    """Text for the user after the start of a server: addresses, model, and an example request."""
    grpc = "" if grpc_port is None else f"  gRPC   {url.removeprefix('http://').rpartition(':')[0]}:{grpc_port}, Open Inference Protocol\n"
    return (
        f"\nThe server is ready.\n"
        f"  page   {url}\n"
        f"  API    {url}/predict, described at {url}/docs\n"
        f"{grpc}"
        f"  model  {model}\n"
        f"  try    curl -F image=@PICTURE.jpg {url}/predict\n"
        f"  stop   Ctrl-C\n"
    )


def local_url(host: str, port: int) -> str:
    """URL at which this machine reaches a server that listens on `host`."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104  (nothing listens)
    return f"http://{name}:{port}"
