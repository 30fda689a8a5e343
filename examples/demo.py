"""`make demo`: trains on built-in images, keeps the model, serves it, asks it, and leaves nothing running.

Each part is announced with the command that does the same by hand.
"""

from __future__ import annotations

import io
import json
import socket
import sys
import time
import urllib.request

import ray
from PIL import Image
from ray import serve

from cifar_ray import cli, train
from cifar_ray.config import default_storage, resolve_storage
from cifar_ray.data import load_splits
from deployments import app

TRAIN = ["--dataset", "digits", "--num-workers", "2"]


def main() -> int:
    """Runs the whole flow; returns the exit code."""
    storage = resolve_storage(default_storage())
    started = time.monotonic()
    announce("Starting Ray on this machine", "(done for you by each command)")
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        announce("Training on 1,797 handwritten digits, two Ray Train workers", f"python -m cifar_ray.train {' '.join(TRAIN)}")
        train.main([*TRAIN, "--storage", storage, "--promote", "always"])

        announce("Serving the model with Ray Serve", "serve run deployments:app model=digits")
        port = free_port()
        serve.start(http_options={"port": port})
        serve.run(app({"model": "digits", "storage": storage}))

        picture, truth = test_picture()
        announce(f"Asking about a picture of a {truth} that it never saw", f"curl -F image=@digit.png http://localhost:{port}/predict")
        answer = ask(f"http://localhost:{port}/predict", picture)
        print(json.dumps(answer, indent=2))
        right = "right" if answer["class_name"] == truth else "wrong"
        print(f"\nIt says {answer['class_name']} with {answer['confidence']:.1%} confidence, which is {right}.")
    finally:
        announce("Stopping everything", "Ctrl-C")
        ray.shutdown()
    print(f"Done in {time.monotonic() - started:.0f} s. The model stays in {storage}; `make serve` serves it.")
    return 0


def announce(text: str, command: str) -> None:
    """Says what comes next and how to do it by hand."""
    print(f"\n== {text}\n   $ {command}", flush=True)


def test_picture() -> tuple[bytes, str]:
    """A PNG from the test split, and its true class."""
    test = load_splits(cli.parse_train_command(TRAIN, train.PROG)).test
    assert test is not None
    picture = io.BytesIO()
    Image.fromarray(test.images[0]).save(picture, "PNG")
    return picture.getvalue(), test.class_names[int(test.labels[0])]


def ask(url: str, picture: bytes) -> dict:
    """Posts a picture and returns the answer."""
    request = urllib.request.Request(url, picture, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(cli.run(main))
