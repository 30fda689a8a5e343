"""Shared fixtures. The one local Ray cluster is started when the first test needs it."""

import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow.fs import FileSystem

from cifar_ray.cli.output import liveness
from cifar_ray.data.dataset import DatasetSplits, ImageDataset


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests neither read nor fill the user's cache; Ray's workers inherit the setting."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("CIFAR_RAY_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def no_status_lines() -> Iterator[None]:
    """On a slow test machine, commands would print status lines between those that tests expect."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FIRST_S", "TERMINAL_S", "LOG_S"):
            patch.setattr(liveness, name, 1e6)
        yield


@pytest.fixture(autouse=True)
def own_log_level() -> Iterator[None]:
    """Libraries such as nncf change the levels of the root logger's handlers, and `caplog` would see nothing afterwards."""
    root = logging.getLogger()
    levels = {part: part.level for part in (root, *root.handlers)}
    yield
    for part, level in levels.items():
        part.setLevel(level)


@pytest.fixture(scope="session")
def ray_cluster(own_cache: Path) -> Iterator[None]:
    """A cluster of two CPUs on this machine, shared by all tests marked `ray`."""
    import ray

    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # as for a cluster that training starts itself
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"  # as in serve.env
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@dataclass
class S3:
    """A server of its own process, and a bucket."""

    process: subprocess.Popen[str]
    port: int
    bucket: str = field(default_factory=lambda: f"bucket-{uuid.uuid4().hex}")

    def uri(self, path: str, options: str = "") -> str:
        return f"s3://{self.bucket}/{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http{options}"

    def become(self, state: str) -> None:
        """`away`, `busy` or `back`."""
        print(state, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline().strip() == state


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3]:
    if find_spec("moto") is None:
        pytest.skip("needs moto, which `make setup` installs")
    surroundings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in surroundings.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        command = [sys.executable, str(Path(__file__).parent / "storage" / "s3_server.py")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield S3(process, int(process.stdout.readline()))
            process.kill()


@pytest.fixture
def s3(s3_process: S3) -> Iterator[S3]:
    """A server that speaks S3, up and with an empty bucket."""
    own = S3(s3_process.process, s3_process.port)
    file_system, _ = FileSystem.from_uri(own.uri("", "&allow_bucket_creation=true"))
    file_system.create_dir(own.bucket)
    yield own
    own.become("back")


def make_stripes(count: int, size_px: int = 16, seed: int = 0) -> ImageDataset:
    """Three classes that a network can tell apart: horizontal, vertical and no stripes, on noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 120, (count, size_px, size_px, 3))
    images[labels == 0, ::4] += 100
    images[labels == 1, :, ::4] += 100
    return ImageDataset(images.astype(np.uint8), labels.astype(np.int64), ("horizontal", "vertical", "plain"))


@pytest.fixture(scope="session")
def stripes() -> DatasetSplits:
    """240 training, 60 validation and 60 test images of 16 px in three classes."""
    return DatasetSplits("stripes", make_stripes(240, seed=0), make_stripes(60, seed=1), make_stripes(60, seed=2))


@pytest.fixture(scope="session")
def narrow() -> dict[str, dict[str, Any]]:
    """By architecture, arguments that make the network small; those that have none are small, or of one size only."""
    return {
        "airnet": {"widths": (16, 24, 24)},
        "airnet96": {"widths": (16, 24, 24)},
        "cnn3": {"widths": ((8,), (8,), (16,))},
        "cnn6": {"widths": ((8, 16), (16, 16), (16, 16))},
        "resnet50": {"least_px": 32},
        "resnet9": {"widths": (8, 16, 16, 24)},
        "vgg3": {"widths": ((8, 8), (8, 8), (16, 16))},
        "wide_resnet28_10": {"widen": 1},
    }
