"""Start the server with Ray's `serve run` and the project's settings for Ray Serve; imports Ray only at the start."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, NoReturn

import yaml

from cifar_ray.cluster.serve_watch import local_url

SERVED_AS = "cifar-ray-demo"
APP = "deployments:app"  # a string, because this module does not import the server


def serve_environment() -> dict[str, str]:
    """Environment variables of `config/serve.env`; Ray Serve reads them at import."""
    lines = files("cifar_ray.config").joinpath("serve.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def serve_config(arguments: Mapping[str, Any], host: str | None = None, port: int | None = None) -> dict[str, Any]:
    """Content of `config/serve_config.yaml` with an address and with arguments of the application.

    Args:
        arguments: as after `serve run deployments:app`.
        host: address to listen on; `None` keeps the value of the file.
        port: port to listen on; `None` keeps the value of the file.
    """
    config: dict[str, Any] = yaml.safe_load(files("cifar_ray.config").joinpath("serve_config.yaml").read_text(encoding="utf-8"))
    config["http_options"] |= {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    (application,) = config["applications"]
    application["args"] = dict(arguments)
    return config


def become_serve_run(config: Mapping[str, Any]) -> NoReturn:
    """Replace this process by `serve run`, which then handles signals and the exit code. Exported variables override `serve.env`.

    A process beside it says how far the start is, and where the server is once it answers.
    """
    with tempfile.TemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(dict(config), file, sort_keys=False)
        file.flush()
        os.set_inheritable(file.fileno(), True)
        sys.stdout.flush()
        sys.stderr.flush()
        if not os.environ.get("RAY_ADDRESS"):  # else the server listens on another machine
            url = local_url(config["http_options"]["host"], config["http_options"]["port"])
            subprocess.Popen([sys.executable, "-m", "cifar_ray.cluster.serve_watch", url])  # noqa: S603  (our own module)
        command = [sys.executable, "-m", "ray.serve.scripts", "run", f"/dev/fd/{file.fileno()}"]
        os.execve(sys.executable, command, serve_environment() | dict(os.environ))  # noqa: S606  (a shell would intercept the signals)


@contextmanager
def serving(arguments: Mapping[str, Any], port: int) -> Iterator[None]:
    """Serve on the connected cluster until the end of the block.

    Args:
        arguments: as after `serve run deployments:app`.
        port: port on the loopback interface.
    """
    from ray import serve

    module, _, attribute = APP.partition(":")
    application = getattr(importlib.import_module(module), attribute)
    serve.start(http_options={"port": port})
    serve.run(application(dict(arguments)), name=SERVED_AS)
    try:
        yield
    finally:
        serve.delete(SERVED_AS)  # Serve itself ends with the cluster; on one that goes on, other applications stay
