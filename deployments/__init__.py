"""The HTTP server: `serve run deployments:app [key=value …]`; `ServeConfig` lists the keys."""

from typing import Any

import click
from ray.serve import Application

from cifar_ray.config import parse_config
from cifar_ray.errors import ConfigError


class Refusal(click.ClickException):
    """`serve run` prints the message as one line."""

    exit_code = 2


def app(arguments: dict[str, Any]) -> Application:
    """Build the server from `key=value` arguments.

    It takes a plain mapping, which Serve also allows: Serve itself would validate a pydantic model,
    and a mistyped key would print a traceback.

    Raises:
        Refusal: for an unknown key or an invalid value.
    """
    # imported here, because the ingress replicas import this package and need no torch
    from cifar_ray.config.serve_config import ServeConfig

    try:
        config = parse_config(ServeConfig, arguments)
    except ConfigError as error:
        raise Refusal(f"{error}. Available keys: {', '.join(ServeConfig.model_fields)}") from None

    from deployments.application import build

    return build(config)
