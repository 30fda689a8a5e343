"""cluster.yaml on real hosts, with the commands of docs/cluster.md. The tests go on from one another, in this order."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cluster.conftest import STORAGE, Machines, alive, monitor_log, succeeds, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


def test_ray_up_installs_the_project_on_every_host_and_starts_ray(cluster: Machines) -> None:
    assert {node["node_ip"] for node in alive(cluster)} == {host.address for host in (cluster.head, *cluster.workers)}
    for host in (cluster.head, *cluster.workers):
        place = host.run("python -c 'import cifar_ray; print(cifar_ray.__file__)'").strip()
        assert place == str(Path.home() / "cifar_ray/cifar_ray/__init__.py")
        assert host.run("echo $CIFAR_RAY_STORAGE").strip() == STORAGE


def test_the_project_travels_without_data_runs_and_history(cluster: Machines) -> None:
    sent = {"cifar_ray", "deployments", "LICENSE", "Makefile", "README.md", "pyproject.toml", "requirements.lock"}
    for host in (cluster.head, *cluster.workers):
        assert set(host.run("ls -A ~/cifar_ray").split()) == sent | {".venv", "environment"}


def test_nothing_but_ssh_answers_on_the_dashboard_s_and_serve_s_ports(cluster: Machines) -> None:
    for port in (8000, 8265):
        assert not succeeds(cluster.operator, f"curl --silent --max-time 5 http://{cluster.head.address}:{port}")


def test_a_job_without_the_token_is_refused(cluster: Machines, dashboard: str) -> None:
    answer = cluster.operator.run(f"curl --silent --write-out ' %{{http_code}}' {dashboard}/api/jobs/")
    assert answer.endswith((" 401", " 403")), answer


def test_a_job_trains_with_a_worker_on_each_of_three_hosts(cluster: Machines, dashboard: str) -> None:
    train = "python -m cifar_ray.train --dataset digits --epochs 3 --num-workers 3 --name on-three-hosts"
    output = cluster.operator.run(f"RAY_AUTH_MODE=token ray job submit --address {dashboard} -- {train}", timeout_s=600)
    assert "succeeded" in output, output
    actors = json.loads(
        cluster.head.run("ray list actors --format json --detail --limit 1000 --filter class_name=RayTrainWorker 2>/dev/null")
    )
    assert len({actor["node_id"] for actor in actors}) == 3, actors
    runs = cluster.storage / "runs/on-three-hosts"
    assert len(json.loads((runs / "history.json").read_text())) >= 1
    assert "digits" in cluster.operator.run("ray exec ~/cluster.yaml 'python -m cifar_ray.store list'")


def test_serve_deploy_serves_the_model_to_whoever_has_a_tunnel(cluster: Machines, dashboard: str) -> None:
    cluster.operator.run(f"RAY_AUTH_MODE=token serve deploy --address {dashboard} deploy/serve.yaml")
    status = f"RAY_AUTH_MODE=token serve status --address {dashboard}"
    wait_until(lambda: "status: RUNNING" in cluster.operator.run(status), 600, lambda: cluster.operator.run(status))
    picture = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture, "PNG")
    (cluster.operator.root / "home/digit.png").write_bytes(picture.getvalue())
    with cluster.operator.running("exec ray attach ~/cluster.yaml --port-forward 8000"):
        wait_until(lambda: succeeds(cluster.operator, "curl --silent --fail http://localhost:8000/-/healthz"), 300)
        answer = json.loads(cluster.operator.run("curl --silent --fail -F image=@$HOME/digit.png http://localhost:8000/predict"))
    assert answer["model"] == "digits", answer
    assert not succeeds(cluster.operator, f"curl --silent --max-time 5 http://{cluster.head.address}:8000/-/healthz")


def test_a_host_with_a_cut_cable_is_given_up_within_half_a_minute_and_comes_back(cluster: Machines) -> None:
    victim = cluster.workers[-1]
    cluster.switch.cut(victim.name)
    start_s = time.monotonic()
    wait_until(lambda: len(alive(cluster)) == len(cluster.workers), 30)
    print(f"given up after {time.monotonic() - start_s:.0f} s at most")
    cluster.switch.mend(victim.name)
    wait_until(lambda: len(alive(cluster)) == 1 + len(cluster.workers), 300, lambda: monitor_log(cluster))
    print(f"back after {time.monotonic() - start_s:.0f} s")


def test_ray_down_ends_the_head_and_the_workers_follow(cluster: Machines) -> None:
    cluster.operator.run("ray down --yes ~/cluster.yaml")
    for host in (cluster.head, *cluster.workers):
        wait_until(lambda host=host: not succeeds(host, "pgrep raylet"), 300, lambda host=host: host.run("ps ax"))  # type: ignore[misc]
