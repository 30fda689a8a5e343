"""Unwrap Ray's errors: Ray wraps the exception of a worker several times."""

from __future__ import annotations

import re
from collections.abc import Callable

from cifar_ray.cluster.private import causes_of
from cifar_ray.errors import CifarRayError

_CLASS = re.compile(r"^(ray\.exceptions\.|cifar_ray\.errors\.)?\w*(Error|Exception): ")


def find_our_error(error: BaseException) -> CifarRayError | None:
    """The first `CifarRayError` among an error and its causes; `None` if there is none."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        current = waiting.pop(0)
        # Ray may raise a class derived from its own error and from ours; its text is the whole traceback, and its `cause` is our error
        if isinstance(current, CifarRayError) and not hasattr(current, "cause"):
            return current
        if id(current) not in seen:
            seen.add(id(current))
            waiting += causes_of(current)
    return None


def unwrap(error: BaseException, otherwise: Callable[[str], CifarRayError]) -> CifarRayError:
    """Return the error to show to the user.

    Args:
        error: the error from Ray.
        otherwise: creates an error from a one-line reason, if no worker raised a `CifarRayError`.
    """
    found = find_our_error(error)
    if found is not None:
        return found
    first = next(iter(causes_of(error)), error)
    return otherwise(last_line(str(first)) or type(first).__name__)


def last_line(text: str, with_class: bool = True) -> str:
    """The last line of a traceback; `with_class` keeps the name of the exception class."""
    lines = text.strip().splitlines()
    last = lines[-1].strip() if lines else ""
    return last if with_class else _CLASS.sub("", last)
