"""What was trained last is what a server without `model=` serves: CIFAR-10, then photographs, then more of them."""

from pathlib import Path

import pytest

from cifar_ray import __main__ as console
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.data.reading.local_cache import CACHE_VARIABLE
from cifar_ray.store import ModelStore
from cifar_ray.training.probe import extraction
from deployments.replicas.live_models import LiveModels
from tests.data.test_sources import write_cifar
from tests.training.test_transfer import draw


def train(storage: Path, *flags: object) -> None:
    assert console.main(["train", "--storage", str(storage), "--cluster", "local", *map(str, flags)]) == 0


def served(live: LiveModels) -> str:
    live.refresh()
    assert live.status.model is not None, live.status.problem
    return live.status.model.reference


def test_the_model_trained_last_is_served_also_by_a_server_that_already_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(extraction, "choose", lambda reference, name, **_: (reference, name))  # seconds; not the point here
    write_cifar(tmp_path / "cifar", "cifar10", monkeypatch)
    photos, storage = tmp_path / "pets", tmp_path / "storage"
    for shape in ("disc", "stripes"):
        for number in range(20):
            draw(photos / shape / f"{number}.jpg", shape, number)
    small = ("--recipe", "small_cnn", "--epochs", 1, "--batch-size", 10, "--val-fraction", 0.2)
    train(storage, "--data-dir", tmp_path / "cifar", *small)
    live = LiveModels(ServeConfig(storage=str(storage), max_batch_size=2), "cpu")
    assert served(live) == "cifar10@1"

    train(storage, "--data-dir", photos, "--image-size", 64)
    again = LiveModels(ServeConfig(storage=str(storage), max_batch_size=2), "cpu")
    assert served(again) == "pets@1"

    for number in range(20, 30):
        draw(photos / "disc" / f"{number}.jpg", "disc", number)
    train(storage, "--data-dir", photos, "--image-size", 64)
    assert served(again) == "pets@2"
    assert ModelStore(str(storage)).load("pets").manifest.image_counts["train"] == 40
