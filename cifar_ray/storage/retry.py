"""A storage that cannot be reached for a while is asked again; one that refuses is believed at once."""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pyarrow import ArrowException

from cifar_ray.errors import ConfigError, StoreError

PATIENCE_VARIABLE = "CIFAR_RAY_STORAGE_PATIENCE_S"

_PATIENCE_S = 60.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MAY_PASS = (
    *_FULL,  # somebody may make room: a model of hours of training is worth the wait
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EREMOTEIO),  # a network file system whose server is away
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENOTCONN),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE),
)
# pyarrow gives S3's errors as text only
_S3_MAY_PASS = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT"
    r"|[A-Z_]+ \(HTTP status (429|5[0-9][0-9])\))"
)

_logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class Patience:
    """Repeats what fails for a reason that may pass, with growing pauses, until it succeeds or the time is over.

    Args:
        limit_s: for one operation, not counting its last attempt; `None` takes `$CIFAR_RAY_STORAGE_PATIENCE_S`, else 60 s.

    Raises:
        ConfigError: if the variable is not a number of seconds.
    """

    def __init__(self, limit_s: float | None = None) -> None:
        self.limit_s = _chosen_limit() if limit_s is None else limit_s

    def attempt(self, action: str, operation: Callable[[], Result]) -> Result:
        """What `operation` returns; it may be called many times.

        Args:
            action: completes "cannot …" in messages.
            operation: of a file system.

        Raises:
            StoreError: if the storage refuses, or failed for all of the time.
        """
        started = time.monotonic()
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return operation()
            except (OSError, ArrowException) as error:
                waited_s = time.monotonic() - started
                if not _may_pass(error) or waited_s >= self.limit_s:
                    tried = f" (tried for {waited_s:.0f} s)" if waited_s >= 1 else ""
                    raise StoreError(f"cannot {action}: {_reason(error)}{tried}") from error
                if pause_s == _FIRST_PAUSE_S:
                    _logger.warning("cannot %s: %s; trying again for %g s", action, _reason(error), self.limit_s)
            time.sleep(min(pause_s * random.uniform(0.5, 1), self.limit_s - waited_s))  # noqa: S311  (many clients must not come back at once)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


@contextmanager
def reporting(action: str) -> Iterator[None]:
    """Errors of the file system as one line, for what cannot be repeated."""
    try:
        yield
    except (OSError, ArrowException) as error:
        raise StoreError(f"cannot {action}: {_reason(error)}") from error


def _chosen_limit() -> float:
    chosen = os.environ.get(PATIENCE_VARIABLE, "")
    if not re.fullmatch(r"[0-9]*\.?[0-9]*", chosen) or chosen == ".":
        raise ConfigError(f"{PATIENCE_VARIABLE}: {chosen!r} is not a number of seconds")
    return float(chosen) if chosen else _PATIENCE_S


def _may_pass(error: Exception) -> bool:
    return getattr(error, "errno", None) in _MAY_PASS or _S3_MAY_PASS.search(str(error)) is not None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{text}; make room there, then try again" if getattr(error, "errno", None) in _FULL else text
