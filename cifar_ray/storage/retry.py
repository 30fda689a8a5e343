"""Retries transient errors of a storage, and fails fast on permanent ones."""

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

import tenacity
from pyarrow import ArrowException

from cifar_ray.errors import ConfigError, StoreError

TIMEOUT_VARIABLE = "CIFAR_RAY_STORAGE_PATIENCE_S"

_TIMEOUT_S = 60.0
_PAUSES = tenacity.wait_exponential(multiplier=0.2, max=5.0)  # 0.2 s, 0.4 s, …
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TRANSIENT = (
    *_FULL,  # someone may free space on a full disk, and the result of hours of training is worth the wait
    *(
        errno.EIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EREMOTEIO,
    ),  # a network file system whose server is unreachable
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENOTCONN),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE),
)
# pyarrow reports S3 errors as text only
_S3_TRANSIENT = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT"
    r"|[A-Z_]+ \(HTTP status (429|5[0-9][0-9])\))"
)

_logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class Retry:
    """Retries operations that fail with transient errors, with exponential backoff, until they succeed or time out.

    Args:
        timeout_s: time after which an operation is not retried again; `None` takes `$CIFAR_RAY_STORAGE_PATIENCE_S`, else 60 s.

    Raises:
        ConfigError: if the variable is not a number of seconds.
    """

    def __init__(self, timeout_s: float | None = None) -> None:
        self.timeout_s = _timeout_from_environment() if timeout_s is None else timeout_s

    def attempt(self, action: str, operation: Callable[[], Result]) -> Result:
        """Run an operation, with retries, and return its result.

        Args:
            action: completes "cannot …" in messages.
            operation: operation of a file system; it may be called many times.

        Raises:
            StoreError: for a permanent error, or after the timeout.
        """

        def warn_once(state: tenacity.RetryCallState) -> None:
            if state.attempt_number == 1:
                _logger.warning("cannot %s: %s; retrying for %g s", action, _reason(_error_of(state)), self.timeout_s)

        started_s = time.monotonic()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            stop=lambda _: time.monotonic() - started_s >= self.timeout_s,
            wait=lambda state: max(0.0, min(_pause_s(state), self.timeout_s - (time.monotonic() - started_s))),
            before_sleep=warn_once,
            sleep=time.sleep,
            reraise=True,
        )
        try:
            return retrying(operation)
        except (OSError, ArrowException) as error:
            waited_s = time.monotonic() - started_s
            tried = f" (retried for {waited_s:.0f} s)" if waited_s >= 1 else ""
            raise StoreError(f"cannot {action}: {_reason(error)}{tried}") from error


@contextmanager
def as_store_error(action: str) -> Iterator[None]:
    """Convert errors of the file system to a `StoreError`, for operations that cannot be retried."""
    try:
        yield
    except (OSError, ArrowException) as error:
        raise StoreError(f"cannot {action}: {_reason(error)}") from error


def _timeout_from_environment() -> float:
    chosen = os.environ.get(TIMEOUT_VARIABLE, "")
    if not re.fullmatch(r"[0-9]*\.?[0-9]*", chosen) or chosen == ".":
        raise ConfigError(f"{TIMEOUT_VARIABLE}: expected a number of seconds, got {chosen!r}")
    return float(chosen) if chosen else _TIMEOUT_S


def _is_transient(error: BaseException) -> bool:
    if not isinstance(error, (OSError, ArrowException)):
        return False
    return getattr(error, "errno", None) in _TRANSIENT or _S3_TRANSIENT.search(str(error)) is not None


def _pause_s(state: tenacity.RetryCallState) -> float:
    """Backoff with jitter, so that many clients do not retry at the same moment."""
    return _PAUSES(state) * random.uniform(0.5, 1)  # noqa: S311


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{text}; free some space there, then try again" if getattr(error, "errno", None) in _FULL else text


def _error_of(state: tenacity.RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None, "only failures are retried"  # noqa: S101
    return error
