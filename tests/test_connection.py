"""A cluster that is not there, or does not start, is one line."""

import socket

import pytest
import ray

from cifar_ray.cluster.connection import ray_cluster
from cifar_ray.errors import ResourceError


@pytest.fixture(autouse=True)
def unconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", "/no/such/folder")


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_an_address_where_nothing_listens_is_refused_before_ray_tries(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray tried"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"{prefix}127.0.0.1:{probe.getsockname()[1]}"
    refused = f"no Ray cluster answers at {address} .Connection refused.;"
    with pytest.raises(ResourceError, match=f"^--cluster {address}: {refused}"), ray_cluster(address):
        pass
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ResourceError, match=f"^RAY_ADDRESS: {refused}"), ray_cluster():
        pass


@pytest.mark.parametrize(
    ("choice", "expected"), [("auto", {"address": "local"}), ("start", {"address": "local"}), ("cluster-name", {"address": "cluster-name"})]
)
def test_ray_is_told_where(choice: str, expected: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, object]] = []
    monkeypatch.setattr(ray, "init", lambda **options: told.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with ray_cluster(choice) as is_own:
        assert is_own == (expected["address"] == "local")
    assert told[0].items() >= expected.items()


def test_a_start_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes: /tmp/a\nand more")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ResourceError, match=r"^Ray did not start: AF_UNIX path length cannot exceed 107 bytes: /tmp/a$"), ray_cluster():
        pass
