"""Check before Ray starts that a server can start: there is a model, the ports are free, and there is enough memory."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from cifar_ray.cluster.need import belongs_to_cluster
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import ConfigError, ResourceError, StoreError
from cifar_ray.store.default_model import last_promoted_first
from cifar_ray.store.registry import ModelStore

# Minimum memory, bytes: Ray with Serve's controller and proxy; each replica, most of which is torch; each ingress process
_RAY_BYTES, _REPLICA_BYTES, _INGRESS_BYTES = 700_000_000, 350_000_000, 120_000_000


def starts_ray() -> bool:
    """Whether a server would start Ray on this machine; on a running cluster, models, ports and memory may be on other hosts."""
    return not belongs_to_cluster()


def check_server(
    config: ServeConfig,
    host: str,
    port: int,
    *,
    is_here: bool = True,
    grpc_port: int | None = None,
    other_ports: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """Check that a server can start.

    Args:
        config: settings of the server.
        host: address to listen on.
        port: port to listen on.
        is_here: whether the server will run on this machine; otherwise only the model is checked.
        grpc_port: port for gRPC; `None` without gRPC.
        other_ports: further ports that the server listens on, on all interfaces, by the environment variable that changes the port.

    Returns:
        The model that the server will serve, with the reason if the config names no model.

    Raises:
        StoreError: if there is no such model, or no model at all.
        ConfigError: if a port cannot be used.
        ResourceError: if there is too little memory.
    """
    model = _find_model(config)
    if is_here:
        _check_port(host, port, "choose another port: cifar-ray serve --port N")
        if grpc_port is not None:
            _check_port(host, grpc_port, "choose another port: cifar-ray serve --grpc-port N")
        for variable, other in other_ports.items():
            _check_port("0.0.0.0", other, f"export {variable}=N")  # noqa: S104  as HAProxy does
        _check_memory(config)
    return model


def _find_model(config: ServeConfig) -> str:
    store = ModelStore(config.storage)
    names = last_promoted_first(store)
    if not names:
        raise StoreError(f"no model in {store.location}; train one: {config.train_command}")
    if config.model is not None:
        store.resolve(config.model)
        return config.model
    others = f" (promoted last; others: {', '.join(sorted(names[1:]))})" if len(names) > 1 else ""
    return f"{names[0]}{others}"


def _check_port(host: str, port: int, advice: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(f"cannot listen on {host}:{port} ({reason}); stop what uses it, or {advice}") from None


def _check_memory(config: ServeConfig) -> None:
    needed = _RAY_BYTES + config.num_replicas * _REPLICA_BYTES + config.num_ingress_replicas * _INGRESS_BYTES
    available = available_bytes()
    if available is not None and available < needed:
        raise ResourceError(
            f"too little memory: {available / 1e9:.1f} GB are available, and the server needs at least {needed / 1e9:.1f} GB; "
            "close other programs, or start fewer replicas"
        )


def available_bytes() -> int | None:
    """Memory in bytes that new processes can use on this machine, or in its container; `None` if the system does not report it."""
    try:
        free = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
    found = [] if free is None else [int(free[1]) * 1024]
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(encoding="ascii"), re.MULTILINE)
        found.append(limit - used + (int(cached[1]) if cached else 0))
    except (OSError, ValueError):  # no limit, or "max"
        pass
    return min(found, default=None)
