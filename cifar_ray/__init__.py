"""Train, tune, save and serve image classifiers on Ray.

In a notebook: `import cifar_ray as cr`, then `cr.fit("photos")`, `cr.load("photos@3")`, `cr.start_server()`; docs/python.md has more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_ray.client import Client
    from cifar_ray.notebook.running_server import Server, start_server
    from cifar_ray.notebook.trained_model import Model, fit, list_models, load

_PLACES = {
    "Client": "cifar_ray.client",
    "Model": "cifar_ray.notebook.trained_model",
    "Server": "cifar_ray.notebook.running_server",
    "fit": "cifar_ray.notebook.trained_model",
    "list_models": "cifar_ray.notebook.trained_model",
    "load": "cifar_ray.notebook.trained_model",
    "start_server": "cifar_ray.notebook.running_server",
}

__all__ = ["Client", "Model", "Server", "fit", "list_models", "load", "start_server"]


def __getattr__(name: str) -> Any:
    """Import an attribute on first use, so that importing `cifar_ray` alone takes milliseconds."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
