"""What it takes to answer more requests, from what one of them was measured to cost (results/serving.md: `airnet`, 128 clients)."""

from __future__ import annotations

import math
from dataclasses import dataclass

# seconds of processor time a request
REQUEST_S = 1.22e-3  # of all processes of a server, n = 3 rounds
INGRESS_S, MODEL_S, HAPROXY_S = 530e-6, 390e-6, 47e-6  # n = 1
LONE_REQUEST_S = 5.76e-3  # of all processes where each request is a call of its own: one client, n = 3
REQUEST_BYTES = 1500  # a thumbnail in a form with its headers

BUSY = 0.7  # how much of a core is planned for: queues grow without bound towards 1
NODE_CORES = 16


@dataclass(frozen=True)
class Fleet:
    """What so many requests a second need."""

    requests_per_s: float

    @property
    def nodes(self) -> int:
        """Of 16 cores like those measured, and one more, so that one may be lost."""
        return math.ceil(self.requests_per_s * REQUEST_S / BUSY / NODE_CORES) + 1

    @property
    def nodes_uncoalesced(self) -> int:
        """The same where no two requests share a call."""
        return math.ceil(self.requests_per_s * LONE_REQUEST_S / BUSY / NODE_CORES) + 1

    @property
    def ingress_replicas(self) -> int:
        """One event loop each."""
        return math.ceil(self.requests_per_s * INGRESS_S / BUSY)

    @property
    def model_replicas(self) -> int:
        """With one thread each."""
        return math.ceil(self.requests_per_s * MODEL_S / BUSY)

    @property
    def haproxy_cores(self) -> float:
        """In all."""
        return self.requests_per_s * HAPROXY_S

    @property
    def gbit_per_s(self) -> float:
        """Into the data centre."""
        return self.requests_per_s * REQUEST_BYTES * 8 / 1e9
