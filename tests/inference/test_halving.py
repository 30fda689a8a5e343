"""Memory that runs out while predicting costs time, and no prediction."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cifar_ray.errors import ResourceError, is_out_of_memory
from cifar_ray.inference.halving import Halving
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import Bundle
from deployments.predicting.contract import UnavailableError
from deployments.replicas.classifier_replica import ClassifierReplica

# As torch, cuDNN and OpenVINO say it
SHORT = [
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 b."),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("Exception from src/inference: std::bad_alloc"),
    MemoryError("Unable to allocate 3.00 GiB for an array"),
]


class Small:
    """A function that has memory for so many images, and notes the sizes of its batches."""

    def __init__(self, room: int, error: Exception = SHORT[0]) -> None:
        self.room, self.error, self.sizes = room, error, list[int]()

    def __call__(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], ...]:
        self.sizes.append(len(images))
        if len(images) > self.room:
            raise self.error
        return images[:, 0, 0, :2].astype(np.float32), images[:, 0, 0, 1:].astype(np.float32)


def numbered(count: int) -> npt.NDArray[np.uint8]:
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 3))


@pytest.mark.parametrize("error", SHORT, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("count", "room"), [(1, 1), (2, 1), (100, 100), (100, 30), (101, 1), (7, 3)])
def test_every_image_is_answered_in_order_and_the_size_is_remembered(count: int, room: int, error: Exception) -> None:
    run = Small(room, error)
    halving = Halving(run)
    for _ in range(2):
        for results in halving(numbered(count)):
            assert results[:, 0].tolist() == list(range(count))
        refused = [size for size in run.sizes if size > room]
        run.sizes.clear()
    assert refused == []
    assert halving.largest is None or halving.largest <= room


def test_what_was_computed_is_not_computed_again(caplog: pytest.LogCaptureFixture) -> None:
    run = Small(30)
    with caplog.at_level(logging.WARNING):
        Halving(run)(numbered(100))
    assert run.sizes == [100, 50, 25, 25, 25, 25]
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: going on with batches of 50 images",
        "out of memory: going on with batches of 25 images",
    ]


def test_no_memory_for_one_image_is_one_line() -> None:
    with pytest.raises(ResourceError, match="not enough memory for one image of 4 px"):
        Halving(Small(0))(numbered(3))


def test_other_errors_are_raised_at_once() -> None:
    run = Small(1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        Halving(run)(numbered(8))
    assert run.sizes == [8]
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_predictor_goes_on_in_halves(
    make_bundle: Callable[..., Bundle], images: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(make_bundle(), precision="fp32", engine="torch")
    whole = predictor.predict(images)
    outputs = predictor._outputs._run
    monkeypatch.setattr(predictor._outputs, "_run", lambda part: outputs(part) if len(part) <= 2 else Small(2)(part))
    halves = predictor.predict(images)
    np.testing.assert_allclose(halves.logits, whole.logits, atol=1e-5)


def test_a_server_without_memory_says_that_it_is_unavailable() -> None:
    def predict(_: object) -> Any:
        raise ResourceError("not enough memory")

    replica: Any = ClassifierReplica.__new__(ClassifierReplica)
    replica._compute = ThreadPoolExecutor(1)
    loaded = SimpleNamespace(predictor=SimpleNamespace(predict=predict))
    with pytest.raises(UnavailableError, match="not enough memory"):
        asyncio.run(replica._run(loaded, numbered(1)))
