from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from starlette.types import ASGIApp

from cifar_ray.models import create_model
from cifar_ray.store import Architecture, Bundle, Manifest, ModelStore

SaveTiny = Callable[..., Bundle]


@pytest.fixture(scope="session")
def save_tiny() -> SaveTiny:
    """Keeps a tiny network with three classes in a store."""

    def save(storage: str, name: str = "pets", **changes: Any) -> Bundle:
        arguments = {"num_classes": 3, "image_size": 16}
        torch.manual_seed(0)
        values = {
            "architecture": Architecture(name="small_cnn", arguments=arguments),
            "class_names": ("cat", "dog", "eel"),
            "image_size_px": 16,
            "channel_mean": (0.5, 0.5, 0.5),
            "channel_std": (0.25, 0.25, 0.25),
            "resize_policy": "pad",
            "dataset_name": name,
            "dataset_fingerprint": "d" * 64,
            "test_fingerprint": "e" * 64,
            "created_at": datetime(2025, 1, 2, tzinfo=UTC),
        }
        return ModelStore(storage).save(
            name, Manifest.model_validate(values | changes), create_model("small_cnn", **arguments).state_dict()
        )

    return save


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A JPEG, 40 px wide and 30 px high."""
    return make_picture()


def make_picture() -> bytes:
    """The same for tests elsewhere."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


class Served:
    """An app on a free port of this machine, until the block ends."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Served:
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()
