"""Resources for a rate of requests, computed from the measured cost of one request (results/serving.md: `airnet`, 128 clients)."""

from __future__ import annotations

import math
from dataclasses import dataclass

# CPU seconds per request
REQUEST_S = 1.22e-3  # all processes of a server, n = 3 rounds
INGRESS_S, MODEL_S, HAPROXY_S = 530e-6, 390e-6, 47e-6  # n = 1
LONE_REQUEST_S = 5.76e-3  # all processes, if each request is a separate call: one client, n = 3
REQUEST_BYTES = 1500  # a thumbnail in a form with its headers

BUSY = 0.7  # planned utilization of a core; towards 1, queues grow without bound
NODE_CORES = 16


@dataclass(frozen=True)
class Fleet:
    """Resources for `requests_per_s` requests per second."""

    requests_per_s: float

    @property
    def nodes(self) -> int:
        """Number of nodes with 16 cores like the measured ones, plus one spare node."""
        return math.ceil(self.requests_per_s * REQUEST_S / BUSY / NODE_CORES) + 1

    @property
    def nodes_uncoalesced(self) -> int:
        """Number of nodes if no two requests share a call."""
        return math.ceil(self.requests_per_s * LONE_REQUEST_S / BUSY / NODE_CORES) + 1

    @property
    def ingress_replicas(self) -> int:
        """Number of ingress replicas, with one event loop each."""
        return math.ceil(self.requests_per_s * INGRESS_S / BUSY)

    @property
    def model_replicas(self) -> int:
        """Number of model replicas, with one thread each."""
        return math.ceil(self.requests_per_s * MODEL_S / BUSY)

    @property
    def haproxy_cores(self) -> float:
        """Number of cores that HAProxy keeps busy, in total."""
        return self.requests_per_s * HAPROXY_S

    @property
    def gbit_per_s(self) -> float:
        """Incoming traffic, Gbit/s."""
        return self.requests_per_s * REQUEST_BYTES * 8 / 1e9
