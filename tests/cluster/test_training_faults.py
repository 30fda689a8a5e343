"""Hosts lost in training: three that take workers, of which a run uses two. Times are printed; `make test-cluster` shows them."""

import time
from collections.abc import Iterator

import pytest

from tests.cluster.conftest import PATIENCE, Machines, alive, monitor_log, runs, wait_until
from tests.cluster.watched import WORKER, Watched, hosts_of_workers, now, training

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

# the settings of cluster.yaml give a host up after some 10 s; then workers start, which takes 10 s to 25 s with two cores for five hosts
RESUMED_S = {"switched off": 60.0, "cable cut": 75.0}
FEWER_S = 75.0  # Ray counts the lost host for up to half a minute
AN_EPOCH = 26  # steps
SHORT_EPOCHS = "--model cnn3 --image-size 16 --batch-size 64 --epochs 2000 --checkpoint-every 1 --max-failures 9"


def all_back(machines: Machines) -> None:
    """Repairs, and waits until the autoscaler has started Ray again where it was lost."""
    machines.repair()
    start_s = time.monotonic()
    wait_until(lambda: len(alive(machines)) == 1 + len(machines.workers), 300, lambda: monitor_log(machines))
    print(f"all hosts back {time.monotonic() - start_s:.0f} s after the repair")


@pytest.mark.parametrize("command", ["train --num-workers 2", "tune --num-samples 2 --grace-period 1"])
def test_a_storage_that_hosts_do_not_share_is_told_within_seconds(cluster: Machines, command: str) -> None:
    start_s = time.monotonic()
    line = f"python -m cifar_ray.{command} --dataset digits --epochs 1 --storage /tmp/own 2>&1; echo exit $?"
    lines = cluster.head.run(line).splitlines()
    took_s = time.monotonic() - start_s
    assert lines[-1] == "exit 2"
    assert lines[-2].startswith("error: --storage /tmp/own: host worker")
    assert lines[-2].endswith(
        "does not see the files that host head wrote. Pass a folder that all hosts share, such as NFS, or a URI, such as s3://bucket/path"
    )
    assert not any("Traceback" in line for line in lines)
    assert took_s < 60
    print(f"\n{command}: storage not shared, told after {took_s:.1f} s, start of Python and of the workers included")


def test_a_worker_that_was_cut_off_and_goes_on_does_not_damage_the_run(cluster: Machines) -> None:
    """Its host sees the storage all the time, as by another network; and a run of one worker waits for nobody."""
    long_epochs = "--model vgg3 --image-size 96 --batch-size 4 --epochs 2 --checkpoint-every 1s --num-workers 1"
    with training(cluster, "cut-off", long_epochs) as run:
        run.wait_for_checkpoint(1)
        (victim,) = (host for host in cluster.workers if host.name == run.attempts()[0]["host"])
        cluster.switch.cut(victim.name)
        time.sleep(3)  # for what was under way
        before = run.checkpoints()
        wait_until(lambda: run.checkpoints()[-1] > before[-1], 30, run.log, every_s=0.1)  # it writes, though it is cut off
        run.wait_for_try(2)
        assert runs(victim, WORKER), "the test would prove nothing"
        run.wait_for_checkpoint(2)
        time.sleep(1)  # for what it wrote when the number was taken
        of_old = {place for place in run.checkpoints() if place[0] == 1}
        deadline_s = time.monotonic() + 10
        while time.monotonic() < deadline_s:
            assert {place for place in run.checkpoints() if place[0] == 1} <= of_old, "the old worker writes nothing more"
            time.sleep(0.2)
        all_back(cluster)
        assert len(run.attempts()) == 2
        assert run.checkpoints()[-1][0] == 2


def test_without_a_spare_host_training_goes_on_with_fewer_workers_until_it_is_back(cluster: Machines) -> None:
    with training(cluster, "elastic", f"{SHORT_EPOCHS} --num-workers 2:3") as run:
        run.wait_for_checkpoint(1)
        assert run.attempts()[0]["workers"] == 3
        victim = next(host for host in cluster.workers if host.name != run.attempts()[0]["host"])
        lost_at = now()
        victim.power_off()
        fewer_s = run.wait_for_try(2, FEWER_S * PATIENCE) - lost_at
        assert run.attempts()[1]["workers"] == 2
        run.wait_for_checkpoint(2)
        print(f"\nno spare host, switched off: two workers after {fewer_s:.1f} s, {run.steps_back()} steps back")
        all_back(cluster)
        back_at = now()
        more_s = run.wait_for_try(3) - back_at
        assert run.attempts()[2]["workers"] == 3
        print(f"three workers {more_s:.1f} s after the host has joined again")


@pytest.fixture(scope="module")
def run(cluster: Machines) -> Iterator[Watched]:
    """A training on two of the three hosts, which lives through all that is done to it."""
    with training(cluster, "lost-hosts", f"{SHORT_EPOCHS} --num-workers 2") as watched:
        watched.wait_for_checkpoint(1)
        yield watched


@pytest.mark.parametrize(
    ("who", "how"),
    [("worker", "cable cut"), ("rank 0", "switched off"), ("rank 0", "cable cut"), ("worker", "switched off")],
)
def test_training_goes_on_with_another_host_when_one_is_switched_off_or_its_cable_cut(
    cluster: Machines, run: Watched, who: str, how: str
) -> None:
    attempt = len(run.attempts())
    chief, used = str(run.attempts()[-1]["host"]), hosts_of_workers(cluster)
    assert len(used) == 2
    victim = next(host for host in cluster.workers if host.name in used and (host.name == chief) == (who == "rank 0"))
    lost_at = now()
    if how == "switched off":
        victim.power_off()
    else:
        cluster.switch.cut(victim.name)
    resumed_s = run.wait_for_try(attempt + 1, RESUMED_S[how] * PATIENCE) - lost_at
    run.wait_for_checkpoint(attempt + 1)
    going_s = now() - lost_at
    assert run.steps_back() <= 2 * AN_EPOCH, run.log()
    print(f"\n{who}, {how}: new workers after {resumed_s:.1f} s, an epoch later {going_s:.1f} s, {run.steps_back()} steps back")
    all_back(cluster)
    run.wait_for_checkpoint(attempt + 1, more=2)
    assert len(run.attempts()) == attempt + 1, "a host that comes back does not disturb the run"
