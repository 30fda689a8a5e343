"""The HTTP server: `serve run deployments:app [key=value …]`; `ServeConfig` lists the keys."""

import os
from typing import Any

import click
from ray.serve import Application
from ray.serve.config import HTTPOptions

from cifar_ray.config import parse_config
from cifar_ray.errors import CifarRayError, ConfigError


class Refusal(click.ClickException):
    """`serve run` prints the message as one line."""

    exit_code = 2


def app(arguments: dict[str, Any]) -> Application:
    """Build the server from `key=value` arguments.

    It takes a plain mapping, which Serve also allows: Serve itself would validate a pydantic model,
    and a mistyped key would print a traceback.

    Raises:
        Refusal: for an unknown key or an invalid value, and where `serve run` would start a server that is useless.
    """
    # imported here, because the ingress replicas import this package and need neither
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
    """The arguments with the model in the store that stands for one of MLflow's registry."""
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
