"""Features that workers on Ray compute are those of one process, also when a worker is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import ray
import torch

from cifar_ray.data.reading.local_cache import CACHE_VARIABLE
from cifar_ray.models import create_model
from cifar_ray.training.on_ray import feature_workers as workers
from cifar_ray.training.on_ray.feature_workers import feature_workers
from cifar_ray.training.probe.extraction import Backbone, ComputeHere, extract_view

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


class Pictures:
    """Images in memory."""

    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        return self.images[rows]


def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone.of(create_model("small_cnn", 3, 16), "small_cnn", 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(autouse=True)
def small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(workers, "GPU_BATCH_SIZE", 8)


@pytest.fixture
def expected() -> npt.NDArray[np.float32]:
    return np.concatenate(list(ComputeHere(backbone(), 1)(Pictures.images)))


def test_two_workers_compute_what_one_process_computes(expected: npt.NDArray[np.float32]) -> None:
    done: list[int] = []
    with feature_workers(2) as open_view:
        features = extract_view(backbone(), 1, Pictures(), lambda _title, _total: done.append, open_view)
    np.testing.assert_allclose(features, expected, rtol=0.05, atol=0.05)  # each process chooses its engine
    assert done == [0, 8, 8, 8, 8, 8]


@pytest.mark.slow
def test_a_lost_worker_costs_its_batch_and_not_the_run(expected: npt.NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying(workers._Worker):
        def features(self, backbone: Backbone, number: int, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            if not ray.get_runtime_context().was_current_actor_reconstructed:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().features(backbone, number, images)

    monkeypatch.setattr(workers, "_Worker", Dying)
    with feature_workers(1) as open_view:
        computed = np.concatenate(list(open_view(backbone(), 1)(Pictures.images)))
    np.testing.assert_allclose(computed, expected, rtol=0.05, atol=0.05)
