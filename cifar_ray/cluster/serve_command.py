"""The server as Ray's own `serve run` starts it, with this project's settings for Ray Serve: without Ray until it is started."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, NoReturn

import yaml

APP = "deployments:app"  # as a string: nothing of the server is imported here


def serve_environment() -> dict[str, str]:
    """The settings of Ray Serve in `config/serve.env`: it reads them when it is imported."""
    lines = files("cifar_ray.config").joinpath("serve.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def serve_config(arguments: Mapping[str, Any], host: str | None = None, port: int | None = None) -> dict[str, Any]:
    """The content of `config/serve_config.yaml` with another address, and with arguments for the application.

    Args:
        arguments: as after `serve run deployments:app`.
        host: address to listen on; `None` for that of the file.
        port: likewise.
    """
    config: dict[str, Any] = yaml.safe_load(files("cifar_ray.config").joinpath("serve_config.yaml").read_text(encoding="utf-8"))
    config["http_options"] |= {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    (application,) = config["applications"]
    application["args"] = dict(arguments)
    return config


def become_serve_run(config: Mapping[str, Any]) -> NoReturn:
    """Replaces this process by `serve run`, so that signals and exit code are Ray's. What the user has exported wins over `serve.env`."""
    with tempfile.TemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(dict(config), file, sort_keys=False)
        file.flush()
        os.set_inheritable(file.fileno(), True)
        sys.stdout.flush()
        sys.stderr.flush()
        command = [sys.executable, "-m", "ray.serve.scripts", "run", f"/dev/fd/{file.fileno()}"]
        os.execve(sys.executable, command, serve_environment() | dict(os.environ))  # noqa: S606  (a shell would take the signals)


@contextmanager
def serving(arguments: Mapping[str, Any], port: int) -> Iterator[None]:
    """Serves on the cluster that this process is connected to until the block ends.

    Args:
        arguments: as after `serve run deployments:app`.
        port: on the loopback.
    """
    from ray import serve

    module, _, attribute = APP.partition(":")
    application = getattr(importlib.import_module(module), attribute)
    serve.start(http_options={"port": port})
    serve.run(application(dict(arguments)))
    try:
        yield
    finally:
        serve.shutdown()
