"""NVIDIA's tritonclient, over HTTP and gRPC, against `cifar-ray serve --grpc-port`. `make test-protocols`; a minute or two.

tritonclient has an environment of its own, `.venv-tritonclient`: it needs an older protobuf.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pool import Default
from PIL import Image

from cifar_ray.cluster.serve_command import proxy_ports
from cifar_ray.config.api_keys import KEYS_VARIABLE, ApiKey, new_key, sha256_of, write_keys
from deployments.protocols.inference_messages import METHODS

pytestmark = [pytest.mark.protocols, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
CLIENT = ROOT / ".venv-tritonclient/bin/python"
SCRIPT = Path(__file__).with_name("triton_requests.py")
START_S = 240  # two busy cores


@pytest.fixture(scope="module")
def client() -> str:
    """An interpreter that has tritonclient."""
    for command in (
        [BIN / "uv", "venv", "-q", "--allow-existing", "--python", sys.executable, CLIENT.parents[1]],
        [BIN / "uv", "pip", "install", "-q", "--python", CLIENT, "tritonclient[grpc,http]>=2.50"],
    ):
        made = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"tritonclient cannot be installed: {made.stderr.strip().splitlines()[-1]}")
    return str(CLIENT)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An API key that the server asks for."""
    made, file = new_key(), tmp_path_factory.mktemp("keys") / "api_keys.txt"
    write_keys(file, [ApiKey("tests", sha256_of(made.encode()), "unlimited")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEYS_VARIABLE, str(file))
        yield made


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def addresses(key: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Where a server of the saved model of digits listens for HTTP and for gRPC."""
    folder = tmp_path_factory.mktemp("server")
    storage = Path(shutil.copytree(ROOT / "tests/saved/models", folder / "storage/models")).parent
    port, grpc_port = free_port(), free_port()
    ports = {name: str(free_port()) for name in (*proxy_ports(with_grpc=True), "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT")}
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | ports
    command = [str(BIN / "cifar-ray"), "serve", "digits", "--storage", str(storage), "--port", str(port), "--grpc-port", str(grpc_port)]
    log = folder / "server.log"
    with log.open("w") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}/v2/health/ready", process, log)
            yield f"127.0.0.1:{port}", f"127.0.0.1:{grpc_port}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    assert "Traceback" not in log.read_text()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        else:
            return


def run(*command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def fields(descriptor: Any) -> dict[str, Any]:
    own = {field.name: [field.number, field.type] for field in descriptor.fields}
    return {descriptor.full_name: own} | {name: value for nested in descriptor.nested_types for name, value in fields(nested).items()}


def test_our_messages_are_those_of_tritonclient(client: str) -> None:
    theirs = json.loads(run(client, str(SCRIPT), "describe"))
    for method in METHODS:
        for kind in ("Request", "Response"):
            for name, own in fields(Default().FindMessageTypeByName(f"inference.{method}{kind}")).items():
                assert own.items() <= theirs[name].items(), name


def test_tritonclient_gets_over_http_and_grpc_what_predict_answers(
    client: str, addresses: tuple[str, str], key: str, tmp_path: Path
) -> None:
    picture = tmp_path / "digit.png"
    Image.radial_gradient("L").resize((40, 30)).save(picture)
    assert "as /predict" in run(client, str(SCRIPT), *addresses, "digits", str(picture), key)


def test_curl_as_in_torchserves_documentation(addresses: tuple[str, str], key: str, tmp_path: Path) -> None:
    if not (curl := shutil.which("curl")):
        pytest.skip("curl is not installed")
    picture = tmp_path / "digit.png"
    Image.radial_gradient("L").resize((40, 30)).save(picture)
    url = f"http://{addresses[0]}/predictions/digits"
    for how in (("-T", str(picture)), ("-X", "POST", "-T", str(picture)), ("-F", f"data=@{picture}")):
        answer = json.loads(run(curl, "-sS", "-H", f"Authorization: Bearer {key}", url, *how))
        assert len(answer) == 5
        assert list(answer.values()) == sorted(answer.values(), reverse=True)
        assert all(re.fullmatch(r"\d", name) for name in answer)
