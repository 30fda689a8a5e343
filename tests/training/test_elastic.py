"""A number of workers that goes with the cluster, on raylets of this machine that pass for hosts: `make test-slow`."""

import json
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ray.cluster_utils import Cluster

from cifar_ray.config import TrainConfig, parse_config, read_yaml
from cifar_ray.data import load_splits
from cifar_ray.data.loader import Shard
from cifar_ray.training.fit import fit
from cifar_ray.training.reports import EpochReport
from tests.training.command import Command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

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


def test_workers_become_fewer_and_more_with_the_cluster_and_train_as_one_does(cluster: Cluster, tmp_path: Path) -> None:
    command = Command(tmp_path, *FLAGS, "--name", "run")
    try:
        command.wait_for("epoch    3/")
        cluster.remove_node(min(cluster.worker_nodes, key=lambda node: node.unique_id), allow_graceful=False)
        command.wait_for("workers were lost; 1 instead of 2 go on from step")
        command.wait_for("epoch")
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        while "3 instead of" not in command.lines[-1]:  # both at once, or one by one
            command.wait_for("the cluster changed; ")
        command.wait_for("epoch")
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 128 + signal.SIGINT, command.lines
    finally:
        command.end()
    folder = tmp_path / "runs" / "run"
    print(*(line for line in command.lines if not line.startswith("epoch")), sep="\n")
    assert len([line for line in command.lines if line.startswith("workers were lost")]) == 1
    history = [EpochReport(**epoch) for epoch in json.loads((folder / "history.json").read_text())]
    assert [report.epoch for report in history] == list(range(1, len(history) + 1))
    expected = alone(parse_config(TrainConfig, read_yaml(folder / "config.yaml")), min(len(history), 60))
    for one, many in zip(expected, history, strict=False):
        assert many.train_loss == pytest.approx(one.train_loss, abs=2e-3)
        assert many.learning_rate == one.learning_rate
