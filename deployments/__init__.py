"""The HTTP server: `serve run deployments:app [key=value …]`; `ServeConfig` lists the keys."""

import os
from typing import Any

import click
from ray.serve import Application
from ray.serve.config import HTTPOptions

from cifar_ray.config import parse_config
from cifar_ray.errors import CifarRayError, ConfigError


class Refusal(click.ClickException):
    """An error whose message `serve run` prints as one line."""

    exit_code = 2


def app(arguments: dict[str, Any]) -> Application:
    """Build the server from `key=value` arguments.

    The argument is a plain mapping, not a pydantic model: Serve would validate a model itself, and print a traceback for a mistyped key.

    Raises:
        Refusal: for an unknown key or an invalid value, or if `serve run` would start a server that cannot work.
    """
    # Imported here: ingress replicas import this package, too, and do not need these modules.
    from cifar_ray.config.serve_config import ServeConfig
    from cifar_ray.inference.preflight import check_server, starts_ray

    try:
        arguments = _with_stored_model(arguments)
    except CifarRayError as error:
        raise Refusal(str(error)) from None
    try:
        config = parse_config(ServeConfig, arguments)
    except ConfigError as error:
        raise Refusal(f"{error}. Available keys: {', '.join(ServeConfig.model_fields)}") from None

    if _is_serve_run() and starts_ray():
        # as in serve.env: on a busy machine a proxy is not ready within Ray's 5 s
        os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
        options = HTTPOptions()
        try:
            check_server(config, options.host or "127.0.0.1", options.port)
        except CifarRayError as error:
            raise Refusal(str(error)) from None

    from deployments.application import build

    return build(config)


def _with_stored_model(arguments: dict[str, Any]) -> dict[str, Any]:
    """Replace a model of MLflow's registry in the arguments by its copy in the store."""
    from cifar_ray.config import default_storage
    from cifar_ray.store.mlflow_models import is_registered, stored_reference

    model = str(arguments.get("model") or "")
    if not is_registered(model):
        return arguments
    return arguments | {"model": stored_reference(model, str(arguments.get("storage") or default_storage()))}


def _is_serve_run() -> bool:
    """Whether this is `serve run` without the address of a cluster."""
    command = click.get_current_context(silent=True)
    return command is not None and command.info_name == "run" and not command.params.get("address")
