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
    """Builds the server from `key=value` arguments.

    Takes a plain mapping, which Serve also allows, because a pydantic model here would be validated inside Serve,
    and a mistyped key would print a traceback.

    Raises:
        Refusal: for an unknown key or an impossible value.
    """
    # imported here, so that the ingress replicas, which import this package, do without torch
    from cifar_ray.config.serve_config import ServeConfig

    try:
        config = parse_config(ServeConfig, arguments)
    except ConfigError as error:
        raise Refusal(f"{error}; the keys are {', '.join(ServeConfig.model_fields)}") from None

    from deployments.application import build

    return build(config)
