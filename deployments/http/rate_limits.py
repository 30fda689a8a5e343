"""Rate limits of API keys: a token bucket for each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class RateLimiter(Protocol):
    """Grants requests of a key up to its limit."""

    async def wait_s(self, name: str, requests_per_minute: float) -> float:
        """Take a token for one request of a key; returns 0, or the seconds until there is a token if there is none."""


class TokenBuckets(RateLimiter):
    """Buckets in this process. Each holds one minute of requests, at least one, and fills at the key's rate.

    Args:
        clock: monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    async def wait_s(self, name: str, requests_per_minute: float) -> float:
        """Implements `RateLimiter`."""
        capacity, per_second, now = max(1.0, requests_per_minute), requests_per_minute / 60, self._clock()
        tokens, updated_at = self._buckets.get(name, (capacity, now))
        tokens = min(capacity, tokens + (now - updated_at) * per_second)
        missing = max(0.0, 1 - tokens)
        self._buckets[name] = (tokens if missing else tokens - 1, now)
        return missing / per_second
