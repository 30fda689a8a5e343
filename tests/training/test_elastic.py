"""A number of workers that goes with the cluster, on raylets of this machine that pass for hosts: `make test-slow`."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE, FakeMultiNodeProvider
from ray.autoscaler._private.util import prepare_config
from ray.cluster_utils import Cluster

from cifar_ray.config import TrainConfig, parse_config, read_yaml
from cifar_ray.data import load_splits
from cifar_ray.data.batches.shares import Shard
from cifar_ray.training.loop.fit import fit
from cifar_ray.training.records.results import EpochReport
from tests.training.command import Command, marked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLUSTER = Path(__file__).parents[2] / "cluster.yaml"
EPOCHS = 9999  # however fast this machine is, it ends when it is told to
FLAGS = [
    *("--dataset", "digits", "--precision", "fp32", "--epochs", str(EPOCHS), "--num-workers", "1:3", "--checkpoint-every", "5s"),
    *("--optimizer.name", "sgd", "--optimizer.lr", "0.01", "--optimizer.momentum", "0.9"),
]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head that computes nothing and two hosts of one core."""
    folder = tempfile.mkdtemp(prefix="ray")  # short, for names of sockets; and no other Ray of this machine finds this one
    monkeypatch.setenv("RAY_TMPDIR", folder)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A head that computes nothing and Ray's autoscaler, which may start two hosts of one core."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    kinds = {FAKE_HEAD_NODE_TYPE: (0, 0), "worker": (2, 1)}  # hosts at most, and cores of each
    config = prepare_config(yaml.safe_load(CLUSTER.read_text()) | {"file_mounts": {}}) | {
        "provider": {
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            **dict.fromkeys(("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check", "launch_multiple"), True),
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            kind: {"min_workers": 0, "max_workers": hosts, "resources": {"CPU": cores}, "node_config": {}}
            for kind, (hosts, cores) in kinds.items()
        },
    }
    (folder / "autoscaling.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    settings = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "CIFAR_RAY_TEST": folder.name,
    }
    command = [*(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"), *("--node-ip-address", "127.0.0.1")]
    flags = [*("--port", address.partition(":")[2]), "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *flags, f"--autoscaling-config={folder}/autoscaling.yaml"], env=os.environ | settings, stdout=log, stderr=log
        )
    monkeypatch.setenv("RAY_ADDRESS", address)
    try:
        wait_until_it_listens(address, process)
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in marked(folder.name):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_it_listens(address: str, process: subprocess.Popen[bytes]) -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.2)
    raise AssertionError(process.poll())


def alone(config: TrainConfig, epochs: int) -> list[EpochReport]:
    """The first epochs of the same training by one worker, without Ray."""
    reports: list[EpochReport] = []

    class Enough(Exception):  # noqa: N818
        """All epochs that are compared."""

    def on_epoch(report: EpochReport, _: object) -> None:
        reports.append(report)
        if len(reports) == epochs:
            raise Enough

    with pytest.raises(Enough):
        fit(config, load_splits(config), device=torch.device("cpu"), shard=Shard(), on_step=lambda *_: None, on_epoch=on_epoch)
    return reports


def test_hosts_that_an_autoscaler_may_start_are_waited_for_and_more_than_those_refused(growing: None, tmp_path: Path) -> None:
    flags = ["--dataset", "digits", "--epochs", "2"]
    for workers, code, last in (("2", 0, "epoch 2/2"), ("3", 2, "--num-workers 3: exceeds the limits of the autoscaler")):
        command = Command(tmp_path, *flags, "--num-workers", workers, "--name", f"with-{workers}")
        try:
            assert command.wait() == code, command.lines
        finally:
            command.end()
        assert any(line.startswith(f"the cluster has no room for {workers} workers: waiting for the autoscaler") for line in command.lines)
        assert last in command.lines[-1]


def test_workers_become_fewer_and_more_with_the_cluster_and_train_as_one_does(cluster: Cluster, tmp_path: Path) -> None:
    command = Command(tmp_path, *FLAGS, "--name", "run")
    try:
        command.wait_for("epoch    3/")
        cluster.remove_node(min(cluster.worker_nodes, key=lambda node: node.unique_id), allow_graceful=False)
        command.wait_for("worker failure: resuming with 1 instead of 2 workers from step")
        command.wait_for("epoch")
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        while "3 instead of" not in command.lines[-1]:  # both at once, or one by one
            command.wait_for("the cluster changed: ")
        command.wait_for("epoch")
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 128 + signal.SIGINT, command.lines
    finally:
        command.end()
    folder = tmp_path / "runs" / "run"
    print(*(line for line in command.lines if not line.startswith("epoch")), sep="\n")
    assert len([line for line in command.lines if line.startswith("worker failure")]) == 1
    history = [EpochReport(**epoch) for epoch in json.loads((folder / "history.json").read_text())]
    assert [report.epoch for report in history] == list(range(1, len(history) + 1))
    expected = alone(parse_config(TrainConfig, read_yaml(folder / "config.yaml")), min(len(history), 60))
    for one, many in zip(expected, history, strict=False):
        assert many.train_loss == pytest.approx(one.train_loss, abs=2e-3)
        assert many.learning_rate == one.learning_rate
