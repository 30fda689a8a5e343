"""The files that describe clusters, checked with the code of Ray that reads them, and against each other. Nothing is started."""

import json
import re
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr as read_as_kuberay
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from cifar_ray.config import parse_config
from cifar_ray.config.serve_config import ServeConfig
from tests.cluster.crds import CRDS, MANIFESTS, REPOSITORY, manifest

LAUNCHED = ("cluster.yaml", "cluster-onprem.yaml")


def load(path: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / path).read_text())
    return config


def ray_clusters() -> dict[str, dict[str, Any]]:
    """By file, what is a RayCluster's `spec`."""
    service = load("deploy/kuberay/rayservice.yaml")["spec"]["rayClusterConfig"]
    return {"raycluster": load("deploy/kuberay/raycluster.yaml")["spec"], "rayservice": service}


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The first container of each group's pods, the head's first."""
    return [group["template"]["spec"]["containers"][0] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def settings(text: str) -> dict[str, str]:
    """Ray's settings for health checks, from a shell's line."""
    return dict(re.findall(r"(RAY_health_check_\w+)=(\d+)", text))


@pytest.mark.parametrize("path", LAUNCHED)
def test_ray_up_accepts_it(path: str) -> None:
    validate_config(prepare_config(load(path)))


def test_aws_accepts_the_machines() -> None:
    session = pytest.importorskip("botocore.session", reason="needs the aws extra").get_session()
    from botocore.validate import ParamValidator

    call = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    for node_type in load("cluster.yaml")["available_node_types"].values():
        launch = node_type["node_config"] | {"MinCount": 1, "MaxCount": 1, "SubnetId": "subnet-1", "SecurityGroupIds": ["sg-1"]}
        assert not ParamValidator().validate(launch, call).generate_report()


@pytest.mark.parametrize("path", LAUNCHED)
def test_only_what_runs_the_project_is_sent(path: str) -> None:
    sources = set(load(path)["file_mounts"].values())
    files = {"LICENSE", "Makefile", "README.md", "pyproject.toml", "requirements.lock"}
    assert sources == {"cifar_ray", "deployments", "~/.ray/auth_token"} | files
    assert all((REPOSITORY / source).exists() for source in sources - {"~/.ray/auth_token"})


def test_the_image_is_built_from_the_production_lock_and_runs_without_root() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert sources == {
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "requirements.lock",
        "requirements.production.lock",
        "cifar_ray",
        "deployments",
    }
    assert all((REPOSITORY / source).exists() for source in sources)
    final = dockerfile.rpartition("\nFROM ")[2]
    assert re.search(r"^USER ray$", final, re.MULTILINE)
    assert final.index("\nUSER ray") < final.index("\nCMD ")
    assert re.search(r"^HEALTHCHECK .* wget .*/ready$", final, re.MULTILINE)


def test_the_production_lock_is_the_full_lock_without_tools_for_development() -> None:
    full, production = (
        set(re.findall(r"^([a-z0-9.-]+)(?:\[.*\])?==(\S+)", (REPOSITORY / name).read_text(), re.MULTILINE))
        for name in ("requirements.lock", "requirements.production.lock")
    )
    assert production < full, "run make lock"
    assert not {"pytest", "ruff", "mypy", "mkdocs", "playwright", "moto"} & {name for name, _ in production}


def test_own_machines_are_set_up_and_started_as_those_of_the_cloud() -> None:
    cloud, own = (load(path) for path in LAUNCHED)
    assert own["file_mounts"] == cloud["file_mounts"]
    assert own["worker_start_ray_commands"] == cloud["worker_start_ray_commands"]
    assert own["setup_commands"][0] == cloud["setup_commands"][1]
    assert own["setup_commands"][2] == cloud["setup_commands"][3]
    start = own["head_start_ray_commands"][1]
    assert (
        start.replace("RAY_enable_autoscaler_v2=0 ", "").replace("--port=6379", "--port=6379 --num-cpus=0")
        == cloud["head_start_ray_commands"][1]
    )


@pytest.mark.parametrize("path", LAUNCHED)
def test_who_reaches_the_network_reaches_neither_dashboard_nor_server_nor_ray(path: str) -> None:
    config = load(path)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]
    assert load("deploy/serve.yaml")["http_options"]["host"] == "127.0.0.1"
    assert "IpPermissions" not in config["provider"].get("security_group", {})
    assert any("RAY_AUTH_MODE=token" in command for command in config["setup_commands"])


def test_a_lost_node_is_found_alike_everywhere() -> None:
    expected = settings(load("cluster.yaml")["head_start_ray_commands"][1])
    assert len(expected) == 4
    assert settings(load("cluster-onprem.yaml")["head_start_ray_commands"][1]) == expected
    for spec in ray_clusters().values():
        variables = {variable["name"]: variable.get("value") for variable in pods(spec)[0]["env"]}
        assert {name: value for name, value in variables.items() if name in expected} == expected


def test_the_policies_open_the_one_storage_and_start_the_one_cluster() -> None:
    config = load("cluster.yaml")
    uri = re.search(r"s3://([^/]+)/([^?]+)\?region=(\S+)\"", config["setup_commands"][2])
    assert uri
    assert uri[3] == config["provider"]["region"]
    storage, head = (json.loads((REPOSITORY / f"deploy/aws/{name}-policy.json").read_text()) for name in ("storage", "head"))
    assert [statement["Resource"] for statement in storage["Statement"]] == [f"arn:aws:s3:::{uri[1]}", f"arn:aws:s3:::{uri[1]}/{uri[2]}/*"]
    assert not [
        action for policy in (storage, head) for statement in policy["Statement"] for action in statement["Action"] if "*" in action
    ]
    tags = {
        value
        for s in head["Statement"]
        for key, value in s.get("Condition", {}).get("StringEquals", {}).items()
        if "ray-cluster-name" in key
    }
    assert tags == {config["cluster_name"]}
    profiles = {node_type["node_config"]["IamInstanceProfile"]["Name"] for node_type in config["available_node_types"].values()}
    assert profiles == {"cifar-ray-head", "cifar-ray-worker"}


@pytest.mark.parametrize("name", ["raycluster", "rayservice"])
def test_rays_autoscaler_accepts_the_cluster_on_kubernetes(name: str) -> None:
    spec = ray_clusters()[name]
    config = read_as_kuberay({"metadata": {"name": name, "namespace": "default"}, "spec": spec})
    head, workers = config["available_node_types"].values()
    assert head["resources"]["CPU"] == 0
    assert workers["min_workers"] == spec["workerGroupSpecs"][0]["replicas"]


@pytest.mark.parametrize("kind", MANIFESTS)
def test_kubernetes_accepts_what_kuberay_defines(kind: str) -> None:
    jsonschema.Draft7Validator(json.loads(CRDS.read_text())[kind]).validate(manifest(kind))


@pytest.mark.parametrize(
    ("place", "value"), [("metdata", {}), ("spec.rayVersoin", "2.60.0"), ("spec.workerGroupSpecs.0.template.spec.containers.0.img", "x")]
)
def test_kubernetes_would_refuse_a_misspelt_name(place: str, value: Any) -> None:
    changed = manifest("rayclusters")
    *path, name = place.split(".")
    part: Any = changed
    for step in path:
        part = part[int(step) if step.isdecimal() else step]
    part[name] = value
    assert not jsonschema.Draft7Validator(json.loads(CRDS.read_text())["rayclusters"]).is_valid(changed)


def test_kubernetes_runs_one_image_of_the_locked_ray() -> None:
    locked = re.search(r"^ray==(\S+)", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE)
    assert locked
    assert {spec["rayVersion"] for spec in ray_clusters().values()} == {locked[1]}
    assert len({pod["image"] for spec in ray_clusters().values() for pod in pods(spec)}) == 1


def test_the_job_goes_to_the_cluster_that_is_there() -> None:
    job, cluster = load("deploy/kuberay/rayjob.yaml"), load("deploy/kuberay/raycluster.yaml")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert job["spec"]["entrypoint"].startswith("python -m cifar_ray.train ")
    # KubeRay's rules for a job on a cluster that is there, which are in its code and not in the definition
    assert not {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "suspend"} & set(job["spec"])
    assert job["spec"]["backoffLimit"] == 0


def test_the_service_s_memory_is_the_redis_beside_it() -> None:
    service, redis = yaml.safe_load_all((REPOSITORY / "deploy/kuberay/redis.yaml").read_text())
    options = ray_clusters()["rayservice"]["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    password = redis["spec"]["template"]["spec"]["containers"][0]["env"][0]["valueFrom"]
    assert options["redisPassword"]["valueFrom"] == password


@pytest.mark.parametrize("path", ["deploy/serve.yaml", "deploy/kuberay/rayservice.yaml"])
def test_serve_accepts_the_application(path: str) -> None:
    config = load(path)
    if "spec" in config:
        config = yaml.safe_load(config["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    parse_config(ServeConfig, application.args)
