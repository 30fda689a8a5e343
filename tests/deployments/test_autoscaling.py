"""cluster.yaml's own kinds of nodes, started and ended by Ray's autoscaler. Its fake provider makes each of them some processes here.

Ray's `AutoscalingCluster` does the same for Ray's own tests, but ends every Ray on the machine and needs a file that is not in the package.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE, FakeMultiNodeProvider
from ray.autoscaler._private.util import prepare_config

from tests.cluster.crds import REPOSITORY
from tests.deployments.conftest import SaveTiny
from tests.deployments.test_serving import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PATIENCE_S = 180
IDLE_S = 6
_WATCH = """
import collections, json, sys, time
from ray.autoscaler.v2.sdk import get_cluster_status
while True:
    time.sleep(0.5)
    try:
        status = get_cluster_status(sys.argv[1])
    except Exception:  # the head is not there yet
        continue
    print(json.dumps(collections.Counter(node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes))), flush=True)
"""


class Autoscaled:
    """A head that starts and ends workers.

    Attributes:
        address: of the head, for drivers.
        seen: how many nodes of each kind there were, twice a second.
    """

    def __init__(self, folder: Path, node_types: dict[str, Any]) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        self.seen: list[dict[str, int]] = []
        self._programs: list[subprocess.Popen[str]] = []
        self._folder = folder
        config = folder / "cluster.yaml"
        config.write_text(yaml.safe_dump(self._config(node_types)))
        of_a_head = {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        }
        start = [f"--port={self.address.rpartition(':')[2]}", "--num-cpus=0", "--object-store-memory=80000000", f"--temp-dir={folder}"]
        ports = [f"--{name}-port={free_port()}" for name in ("dashboard", "ray-client-server", "dashboard-agent-listen")]
        command = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--autoscaling-config={config}", *start, *ports]
        with (folder / "head.log").open("w") as log:
            self._head = self.run("ray", *command, env=self.environment | of_a_head, stdout=log, stderr=log)
        self.environment["RAY_ADDRESS"] = self.address
        self._watch = self.run("python", "-c", _WATCH, self.address, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._reader = Thread(target=self._see, daemon=True)
        self._reader.start()

    def _see(self) -> None:
        with self._watch.stdout as lines:  # type: ignore[union-attr]
            for line in lines:
                self.seen.append(json.loads(line))

    def _config(self, node_types: dict[str, Any]) -> dict[str, Any]:
        """cluster.yaml with another provider, which wants the head's kind by a name of its own, and installs nothing."""
        config: dict[str, Any] = prepare_config(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))
        workers = {name: node_type | {"node_config": {}} for name, node_type in node_types.items() if name != "head"}
        for node_type in workers.values():
            node_type["resources"] = node_type["resources"] | {"object_store_memory": 80_000_000}
        provider = {
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.FakeMultiNodeProvider",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": self.address,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        }
        return config | {
            "provider": provider,
            "idle_timeout_minutes": IDLE_S / 60,
            "head_node_type": FAKE_HEAD_NODE_TYPE,
            "available_node_types": {FAKE_HEAD_NODE_TYPE: node_types["head"] | {"node_config": {}, "max_workers": 0}} | workers,
            "file_mounts": {},
        }

    def run(self, program: str, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        """A program of this installation, in the cluster's environment."""
        command: list[str | Path] = [Path(sys.prefix, "bin", program), *arguments]
        self._programs.append(subprocess.Popen(command, text=True, **{"env": self.environment} | options))
        return self._programs[-1]

    def wait_for(self, kind: str, number: int) -> float:
        """Until there are so many nodes of a kind; the seconds that it took."""
        start_s = time.monotonic()
        self.wait_until(lambda: bool(self.seen) and self.seen[-1].get(kind, 0) == number)
        return time.monotonic() - start_s

    def wait_until(self, true: Callable[[], bool]) -> None:
        """Shows the autoscaler's log where it does not come true."""
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < deadline, f"{self.seen[-1:]}\n{self._log()}"
            time.sleep(0.2)

    def _log(self) -> str:
        logs = [self._folder / "head.log", *self._folder.glob("session_latest/logs/monitor.*")]
        return "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in logs)

    def end(self) -> None:
        """Leaves nothing behind: fake nodes would wait a minute for their head."""
        self._head.terminate()
        self._head.wait(PATIENCE_S)
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.environment["RAY_AUTH_TOKEN"].encode() in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)
            except OSError:
                continue  # it ended meanwhile, or is not ours
        for process in self._programs:
            process.wait(PATIENCE_S)
        self._reader.join()


@contextmanager
def autoscaled(node_types: dict[str, Any]) -> Iterator[Autoscaled]:
    """A cluster until the block ends. Sockets have short names only, so it does not live where pytest's files do."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = Autoscaled(Path(folder), node_types)
        try:
            yield cluster
        finally:
            cluster.end()


def test_replicas_that_need_a_node_each_get_one_and_it_goes_again_when_they_do(tmp_path: Path, save_tiny: SaveTiny) -> None:
    node_types = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())["available_node_types"]
    least = node_types["gpu-spot"]["min_workers"]
    save_tiny(str(tmp_path))
    port = free_port()
    most_of_a_node = {
        "cpus_per_replica": node_types["gpu-spot"]["resources"]["CPU"] - 1,
        "gpus_per_replica": 0,
    }  # nothing computes on a GPU that is not there
    application = {
        "import_path": "deployments:app",
        "args": {"storage": str(tmp_path), "num_replicas": least + 1, "torch_threads": 1} | most_of_a_node,
    }
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump({"proxy_location": "HeadOnly", "http_options": {"port": port}, "applications": [application]}))
    with autoscaled(node_types) as cluster:
        print(f"{least} nodes after {cluster.wait_for('gpu-spot', least):.0f} s")
        server = cluster.run("serve", "run", config)
        print(f"{least + 1} nodes {cluster.wait_for('gpu-spot', least + 1):.0f} s after `serve run`")
        cluster.wait_until(lambda: answers(port))
        server.send_signal(signal.SIGINT)
        server.wait(PATIENCE_S)
        print(f"{least} nodes again {cluster.wait_for('gpu-spot', least):.0f} s after it ended")
        assert not any(seen.get("gpu", 0) for seen in cluster.seen), "nodes at full price, of which there may be none"


def answers(port: int) -> bool:
    """Whether a server is ready."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
