"""Flags of `serve`, and the steps of `demo`."""

from __future__ import annotations

import io
import json
import socket
import time
import urllib.request
from typing import TYPE_CHECKING, Any

from pydantic import Field
from tyro.conf import Positional

from cifar_ray.cli.output import liveness
from cifar_ray.config import STORAGE_VARIABLE, Config, TrainConfig, default_storage, parse_config, resolve_storage
from cifar_ray.config.serve_config import ServeConfig

if TYPE_CHECKING:
    from cifar_ray.data import ImageDataset

DEMO_APPLICATION = "cifar-ray-demo"
_TIMEOUT_S = 60


class ServeCommand(Config):
    """Serve a model over HTTP, configured for throughput. The page and the API documentation are at http://HOST:PORT.

    To require API keys, create one with cifar-ray keys add NAME, then export CIFAR_RAY_API_KEYS=FILE. `serve run deployments:app
    KEY=VALUE …` takes all settings of the server; docs/api.md lists them.
    """

    model: Positional[str | None] = Field(
        None, description="NAME, NAME@3, or models:/NAME/3 in MLflow; default: the model that was promoted last"
    )
    port: int = Field(8000, ge=1, le=65_535, description="port to listen on")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all, behind TLS and access control")
    grpc_port: int | None = Field(None, ge=1, le=65_535, description="port for the Open Inference Protocol over gRPC; default: no gRPC")
    replicas: int = Field(1, ge=1, description="copies of the model")
    storage: str = Field(default_factory=default_storage, description=f"path or URI; default ${STORAGE_VARIABLE} or ./storage")

    def arguments(self) -> dict[str, Any]:
        """Arguments of the application, after a check.

        Raises:
            ConfigError: if an argument is invalid.
            CifarRayError: if the model is in MLflow and cannot be copied into the store.
        """
        from cifar_ray.store.mlflow_models import stored_reference

        storage = resolve_storage(self.storage)
        values = {"storage": storage, "num_replicas": self.replicas}
        given = values | ({} if self.model is None else {"model": stored_reference(self.model, storage)})
        parse_config(ServeConfig, given)
        return given

    def check(self) -> str:
        """Check before Ray starts that the server can start. Result and errors are those of `check_server`."""
        from cifar_ray.cluster.serve_command import proxy_ports
        from cifar_ray.inference.preflight import check_server, starts_ray

        config = parse_config(ServeConfig, self.arguments())
        other_ports = proxy_ports(with_grpc=self.grpc_port is not None)
        return check_server(config, self.host, self.port, is_here=starts_ray(), grpc_port=self.grpc_port, other_ports=other_ports)


class DemoCommand(Config):
    """Train a model on built-in images, serve it, send it a test picture, and stop everything."""

    storage: str = Field(default_factory=default_storage, description=f"path or URI of the model; default ${STORAGE_VARIABLE} or ./storage")


def announce(text: str, command: str) -> None:
    """Print the next step of the demo, and the command that does the same."""
    print(f"\n== {text}\n   $ {command}", flush=True)


def test_picture(config: TrainConfig) -> tuple[bytes, str]:
    """The first test picture as PNG, and its true class."""
    from PIL import Image

    from cifar_ray.data import load_splits

    test: ImageDataset | None = load_splits(config).test
    assert test is not None, "the digits have test images"  # noqa: S101
    picture = io.BytesIO()
    Image.fromarray(test.images[0]).save(picture, "PNG")
    return picture.getvalue(), test.class_names[int(test.labels[0])]


def ask(url: str, picture: bytes) -> dict[str, Any]:
    """Post a picture to a server, and return the response."""
    request = urllib.request.Request(url, picture, {"Content-Type": "image/png"})  # noqa: S310  (our own address)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)
    return found


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_demo(command: DemoCommand, train_flags: str) -> None:
    """Run the steps of the demo; each step is announced with the command that does the same.

    Args:
        command: contains the storage for the model.
        train_flags: flags of the training, as a user would type them.
    """
    from cifar_ray.cli.output.training_progress import ConsoleProgress
    from cifar_ray.cli.training_flags import parse_train_command
    from cifar_ray.cluster.serve_command import serving
    from cifar_ray.data import open_splits
    from cifar_ray.training import job

    storage, started_s = resolve_storage(command.storage), time.monotonic()
    config = parse_train_command([*train_flags.split(), "--storage", storage, "--promote", "always"], "cifar-ray train")
    announce("Training on 1,797 handwritten digits", f"cifar-ray train {train_flags}")
    splits = open_splits(config)
    print(job.run(job.with_name(config, splits), splits, ConsoleProgress(config.epochs, len(splits.train))).summary())

    announce("Starting Ray and serving the model with Ray Serve", "serve run deployments:app model=digits")
    port = free_port()
    arguments = {"model": "digits", "storage": storage}
    with serving(arguments, "127.0.0.1", port, liveness.begin, name=DEMO_APPLICATION, for_throughput=False):
        picture, truth = test_picture(config)
        announce(f"Asking about a picture of a {truth} from the test set", f"curl -F image=@digit.png http://localhost:{port}/predict")
        answer = ask(f"http://localhost:{port}/predict", picture)
        print(json.dumps(answer, indent=2))
        verdict = "right" if answer["class_name"] == truth else "wrong"
        print(f"\nThe model says {answer['class_name']} with {100 * answer['confidence']:.1f} % confidence, which is {verdict}.")
        announce("Stopping everything", "Ctrl-C")
    print(f"Done in {time.monotonic() - started_s:.0f} s. The model stays in {storage}. Serve it with: cifar-ray serve digits")
