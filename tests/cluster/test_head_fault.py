"""The head lost, with Redis on another host: the words that cluster.yaml names are put in, then the head is switched off."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cluster.conftest import AUTOSCALER, Machines, up_again, up_on_aws, wait_until
from tests.cluster.hosts import Host
from tests.cluster.served import DEPLOYMENTS, clients, deploy, have_model, replicas, status
from tests.cluster.watched import begun, hosts_of_workers, now, training

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

SHORT_EPOCHS = "--model cnn3 --image-size 16 --batch-size 64 --epochs 5000 --checkpoint-every 1 --num-workers 1"


@pytest.fixture(scope="module")
def cluster(machines: Machines) -> Iterator[Machines]:
    """A cluster whose head keeps what it knows in a Redis on the operator's machine."""
    if not shutil.which("redis-server"):
        pytest.skip("needs redis-server")
    address = machines.operator.address

    def outlives_its_head(command: str) -> str:
        head, worker = "ray start --head", "ray start --address"
        return command.replace(head, f"RAY_REDIS_ADDRESS={address}:6379 {head}").replace(
            worker, f"RAY_gcs_rpc_server_reconnect_timeout_s=600 {worker}"
        )

    with machines.operator.running(f"exec redis-server --bind {address} --protected-mode no --dir /tmp --appendonly yes >/tmp/redis.log"):
        up_on_aws(machines, outlives_its_head)
        yield machines


@contextmanager
def kept(head: Host) -> Iterator[None]:
    """Which hosts Ray runs on. A cloud knows this of its machines; for those of one's own Ray writes it into the head's `/tmp`."""
    (file,) = head.root.glob("tmp/ray/cluster-*.state")
    known = file.read_text()
    yield
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(known)


def test_serving_goes_on_without_the_head_and_the_same_command_goes_on_with_training_when_it_is_back(cluster: Machines) -> None:
    have_model(cluster)
    with begun(cluster, "headless", SHORT_EPOCHS) as run:  # it takes a whole host, Serve the two others
        run.wait_for_checkpoint(1)
        deploy(cluster)
        before = replicas(cluster)
        door = next(host for host in cluster.workers if ("ingress", host.address) in before)
        with clients(cluster, door) as answers:
            time.sleep(5)
            reached = run.checkpoints()[-1]
            lost_at = now()
            with kept(cluster.head):
                cluster.head.power_off()
                time.sleep(20)
                cluster.head.power_on(cluster.switch)
            up_again(cluster, "cluster.yaml", AUTOSCALER)
            back_s = now() - lost_at
            wait_until(lambda: len(replicas(cluster)) == 2 * len(DEPLOYMENTS), 120, lambda: status(cluster))
            known_s = now() - lost_at
            assert replicas(cluster) == before, "the same replicas as before"
            wait_until(lambda: not hosts_of_workers(cluster), 60)  # those of a driver that is gone
            again_at = now()
            with training(cluster, "headless", SHORT_EPOCHS) as again:
                trained_s = again.wait_for_try(2) - again_at
                again.wait_for_checkpoint(2)
                assert again.checkpoints()[-1] > reached
                assert "resuming after epoch" in again.log()
    print(f"\nhead lost for 20 s: {answers}; all hosts back after {back_s:.1f} s, Serve after {known_s:.1f} s")
    print(f"the training goes on {trained_s:.1f} s after its command was typed again")
    assert not answers.failed
