"""A head, three workers and an operator's machine, and a Ray cluster that `ray up` makes of them. Nothing here reaches the real network.

What stands for the outside world: packages come from uv's cache, which `make setup` filled, pip finds uv itself in a folder, and
`/mnt/cifar_ray` is the shared storage. The setup commands are those of cluster.yaml, unchanged, and install on each host.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.hosts import Host, Switch, why_not

# to see what our settings change: with this set Ray runs with its own, and tests wait longer
RAY_DEFAULTS = bool(os.environ.get("RAY_DEFAULTS"))
PATIENCE = 3.0 if RAY_DEFAULTS else 1.0
REPOSITORY = Path(__file__).parents[2]
STORAGE = "/mnt/cifar_ray"
AUTOSCALER = "RAY_UP_enable_autoscaler_v2=0"  # as cluster-onprem.yaml says itself: on hosts of one's own v2 starts a worker too few
_OURS = re.compile(r"RAY_health_check_\w+=\d+ ")
_WORKERS = ("worker1", "worker2", "worker3")
_BIN = Path(sys.prefix, "bin")


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """For all that the hosts hold; a hundred thousand links, so nothing of it is kept."""
    if reason := why_not():
        pytest.skip(reason)
    path = Path(tempfile.mkdtemp(prefix="cifar-ray-hosts-"))
    yield path
    shutil.rmtree(path)


@dataclass(frozen=True)
class Machines:
    """What there is: `operator` is where a person types, and has the checkout; `head` and `workers` are empty machines with Python."""

    switch: Switch
    operator: Host
    head: Host
    workers: tuple[Host, ...]
    storage: Path

    def all(self) -> tuple[Host, ...]:
        """Every host."""
        return (self.operator, self.head, *self.workers)

    def repair(self) -> None:
        """Switches on what is off, and mends each cable."""
        for host in self.all():
            if not host.is_on:
                host.power_on(self.switch)
            self.switch.mend(host.name)


@pytest.fixture(scope="session")
def machines(folder: Path) -> Iterator[Machines]:
    """Five running hosts."""
    world = {place: folder / place for place in ("wheels", "pycache", "storage")}
    for path in world.values():
        path.mkdir(exist_ok=True)
    _fetch_uv(world["wheels"])
    cache = Path(subprocess.run([_BIN / "uv", "cache", "dir"], check=True, capture_output=True, text=True).stdout.strip())
    seen = {"mnt/wheels": world["wheels"], "mnt/pycache": world["pycache"], "mnt/cifar_ray": world["storage"], "home/.cache/uv": cache}
    python = _seen_at(Path(sys.base_prefix))
    hidden = [REPOSITORY] if Path(sys.prefix).is_relative_to(REPOSITORY) else [REPOSITORY, Path(sys.prefix)]

    def bare(name: str, cpus: int) -> Host:
        # Provider `local` leaves out `resources` of a node type, which others hand on in this variable
        bashrc = (
            f"export PATH={sys.base_prefix}/bin:$PATH PYTHONPYCACHEPREFIX=/mnt/pycache\n"
            # five hosts share the machine's cores: Ray's own half a minute may not be enough for its agents to start
            f"export RAY_OVERRIDE_RESOURCES='{json.dumps({'CPU': cpus})}' RAY_agent_register_timeout_ms=300000\n"
            "export UV_OFFLINE=1 UV_LINK_MODE=symlink PIP_NO_INDEX=1 PIP_FIND_LINKS=/mnt/wheels PIP_CONFIG_FILE=/dev/null\n"
        )
        return Host(name, switch.addresses[name], folder / name, seen | python, hidden, bashrc)

    switch = Switch(folder, ("operator", "head", *_WORKERS))
    own = _seen_at(REPOSITORY) | _seen_at(Path(sys.prefix))
    bashrc = f"export PATH={_BIN}:$PATH PYTHONDONTWRITEBYTECODE=1\ncd {REPOSITORY}\n"
    operator = Host("operator", switch.addresses["operator"], folder / "operator", python | own, (), bashrc)
    found = Machines(switch, operator, bare("head", 0), tuple(bare(name, 1) for name in _WORKERS), world["storage"])
    switch.power_on()
    try:
        for host in found.all():
            host.power_on(switch)
        yield found
    finally:
        for host in found.all():
            host.power_off()
        switch.power_off()


def up(machines: Machines, path: str, replaces: str = STORAGE, autoscaler: str = "", edit: Callable[[str], str] = str) -> None:
    """`ray up` with a file that has these hosts in it, until all of them have joined.

    Args:
        machines: the hosts.
        path: of the file, in the repository; the operator has it changed in the home, under the same name.
        replaces: the storage that the file names, for which the folder that the hosts share is put.
        autoscaler: a setting for this `ray up`.
        edit: makes of each command that starts Ray another one.
    """
    machines.repair()
    config = yaml.safe_load((REPOSITORY / path).read_text())
    for key in ("available_node_types", "head_node_type", "max_workers"):
        config.pop(key, None)
    config["provider"] = {"type": "local", "head_ip": machines.head.address, "worker_ips": [host.address for host in machines.workers]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": "~/.ssh/id_ed25519"}
    assert any(f'="{replaces}"' in command for command in config["setup_commands"])
    config["setup_commands"] = [command.replace(replaces, STORAGE) for command in config["setup_commands"]]
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        config[commands] = [edit(_OURS.sub("", command) if RAY_DEFAULTS else command) for command in config[commands]]
    (machines.operator.root / "home" / path).write_text(yaml.safe_dump(config))
    machines.operator.run("ray get-auth-token --generate")
    up_again(machines, path, autoscaler)


def up_again(machines: Machines, path: str, autoscaler: str = "") -> None:
    """`ray up` with the file that the operator has, until all hosts have joined."""
    machines.operator.run(f"{autoscaler} ray up --yes ~/{path}", timeout_s=600)
    wait_until(lambda: len(alive(machines)) == 1 + len(machines.workers), 600, lambda: monitor_log(machines))


def up_on_aws(machines: Machines, edit: Callable[[str], str] = str) -> None:
    """`ray up` with cluster.yaml."""
    up(machines, "cluster.yaml", "s3://CHANGE-ME/cifar_ray?region=us-west-2", AUTOSCALER, edit)


@pytest.fixture(scope="module")
def cluster(machines: Machines) -> Machines:
    """The cluster of cluster.yaml, up anew for each module, whatever the one before has left of it."""
    up_on_aws(machines)
    return machines


@pytest.fixture(scope="module")
def dashboard(cluster: Machines) -> Iterator[str]:
    """Where the operator finds the forwarded dashboard."""
    address = "http://localhost:8265"
    with cluster.operator.running("exec ray dashboard ~/cluster.yaml"):
        wait_until(lambda: succeeds(cluster.operator, f"curl --silent --output /dev/null {address}"), 300)
        yield address


def alive(machines: Machines) -> list[dict[str, Any]]:
    """The nodes that Ray counts."""
    try:
        found: list[dict[str, Any]] = json.loads(machines.head.run("ray list nodes --format json --filter state=ALIVE 2>/dev/null"))
    except (AssertionError, json.JSONDecodeError):
        return []
    return found


def monitor_log(machines: Machines) -> str:
    """The last that the autoscaler wrote."""
    return machines.head.run("tail -n 60 /tmp/ray/session_latest/logs/monitor*")


def succeeds(host: Host, line: str) -> bool:
    """Whether a line runs without an error."""
    try:
        host.run(line)
    except AssertionError:
        return False
    return True


def runs(host: Host, title: str) -> bool:
    """Whether a process with such a title runs on a host."""
    return succeeds(host, f"pgrep -f '[{title[0]}]{title[1:]}'")  # so that it does not find the shell that asks


def wait_until(condition: Callable[[], bool], timeout_s: float, report: Callable[[], str] = str, every_s: float = 1.0) -> None:
    """Asks again until it is so.

    Raises:
        AssertionError: with what `report` tells, if it is not so in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, report()
        time.sleep(every_s)


def _seen_at(path: Path) -> dict[str, Path]:
    """Shows a folder of the machine at its own place, where a host's own home or `/tmp` would hide it."""
    for place, top in (("home", Path.home()), ("tmp", Path("/tmp"))):  # noqa: S108
        if path.is_relative_to(top):
            return {f"{place}/{path.relative_to(top)}": path}
    return {}


def _fetch_uv(folder: Path) -> None:
    """The one package that the hosts' pip installs. It may come from the network, on the machine itself."""
    version = next(line.split()[0] for line in (REPOSITORY / "requirements.lock").read_text().splitlines() if line.startswith("uv=="))
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, version], check=True)
