"""A model served on the cluster, as deploy/serve.yaml says, and clients of it."""

from __future__ import annotations

import io
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.cluster.conftest import REPOSITORY, STORAGE, Machines, wait_until
from tests.cluster.hosts import Host

DEPLOYMENTS = ("classifier", "ingress")
_READY_S = 300.0


def have_model(machines: Machines) -> None:
    """Trains one of the built-in digits for an epoch, where there is none yet."""
    if not (machines.storage / "models/digits").exists():
        machines.head.run("python -m cifar_ray.train --dataset digits --epochs 1 --num-workers 1")


def deploy(machines: Machines) -> None:
    """Serves it, until two replicas of each deployment run."""
    shutil.copy(REPOSITORY / "deploy/serve.yaml", machines.storage)
    machines.head.run(f"serve deploy {STORAGE}/serve.yaml")
    wait_until(lambda: len(replicas(machines)) == 2 * len(DEPLOYMENTS), _READY_S, lambda: status(machines))


def status(machines: Machines) -> str:
    """What Serve's own API answers; nothing where it does not."""
    header = "Authorization: Bearer $(cat ~/.ray/auth_token)"
    return machines.head.run(f'curl --silent --max-time 5 -H "{header}" http://127.0.0.1:8265/api/serve/applications/ || true')


def replicas(machines: Machines) -> list[tuple[str, str]]:
    """Deployment and address of each replica that Serve counts as running."""
    try:
        found: dict[str, Any] = json.loads(status(machines))["applications"]["default"]["deployments"]
        return sorted((name, one["node_ip"]) for name in DEPLOYMENTS for one in found[name]["replicas"] if one["state"] == "RUNNING")
    except (json.JSONDecodeError, KeyError):  # there is nothing yet
        return []


class Answers:
    """Of all requests, once they have been sent: mappings with `began_s`, `took_s` and `status`."""

    def __init__(self) -> None:
        self.all: list[dict[str, float]] = []

    @property
    def failed(self) -> list[dict[str, float]]:
        """Those without a good answer."""
        return [one for one in self.all if one["status"] != 200]

    def __str__(self) -> str:
        longest_s = max(one["took_s"] for one in self.all)
        codes = sorted({int(one["status"]) for one in self.failed})
        return f"{len(self.failed)} of {len(self.all)} requests failed {codes or ''}, the longest took {longest_s:.1f} s"


@contextmanager
def clients(machines: Machines, host: Host) -> Iterator[Answers]:
    """Sends thirty requests a second to the proxy of a host, from itself, until the block ends and all are answered."""
    name, answers = f"load-{uuid.uuid4().hex}", Answers()
    place = machines.storage / name
    place.mkdir()
    shutil.copy(Path(__file__).with_name("load.py"), place)
    picture = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture, "PNG")
    (place / "picture").write_bytes(picture.getvalue())
    with host.running(f"cd {STORAGE}/{name} && exec python load.py picture answers stop >log 2>&1"):
        yield answers
        (place / "stop").touch()
        wait_until((place / "answers").exists, 90, (place / "log").read_text)
        answers.all = json.loads((place / "answers").read_text())
