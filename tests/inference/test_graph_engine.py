"""The engine of CUDA graphs. Without a GPU, a function that runs the network in place of a graph shows what goes in and out."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cifar_ray.config import PrecisionName
from cifar_ray.errors import ConfigError
from cifar_ray.inference.engines import choice, graph_engine
from cifar_ray.inference.engines.engine import TorchEngine
from cifar_ray.inference.engines.graph_engine import CudaGraphEngine, captured_sizes
from cifar_ray.inference.predictor import Predictor
from cifar_ray.models.precision import Precision
from cifar_ray.store import Bundle

MakeBundle = Callable[..., Bundle]
Pixels = npt.NDArray[np.uint8]


class Forward:
    """Runs the network on a CPU, and overwrites its last result, as a graph does."""

    def __init__(self, reference: TorchEngine, size: int) -> None:
        self._reference, self._sent = reference, np.full((size, 32, 32, 3), 255, np.uint8)
        self.sizes: list[int] = []
        self._results: list[npt.NDArray[np.float32]] = []

    def run(self, images: Pixels) -> list[npt.NDArray[np.float32]]:
        self.sizes.append(len(images))
        self._sent[: len(images)] = images
        results = [one.numpy() for one in self._reference.compute(torch.from_numpy(self._sent))]
        for old, new in zip(self._results, results, strict=False):
            old[:] = new
        self._results = self._results or [one.copy() for one in results]
        return self._results


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes that were captured."""
    sizes: list[int] = []

    def capture(reference: TorchEngine, size: int, *_: object) -> Forward:
        sizes.append(size)
        return Forward(reference, size)

    monkeypatch.setattr(graph_engine, "capture_forward", capture)
    monkeypatch.setattr(graph_engine, "lane_resources", lambda _: (None, None))
    return sizes


@pytest.fixture
def reference(make_bundle: MakeBundle) -> TorchEngine:
    """An engine on a CPU that says that it is on a GPU."""
    predictor = Predictor(make_bundle(), precision="fp32", engine="torch")
    return TorchEngine(predictor.network, predictor.manifest, Precision("fp32", torch.device("cuda")))


def on_cpu(engine: TorchEngine) -> TorchEngine:
    return TorchEngine(engine.network, engine.manifest, Precision(engine.precision.name, torch.device("cpu")))


def pictures(count: int) -> Pixels:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)


def test_sizes_are_powers_of_two_up_to_a_batch_that_keeps_a_gpu_busy() -> None:
    assert captured_sizes(1) == [1]
    assert captured_sizes(9) == [1, 2, 4, 8, 16]
    assert captured_sizes(64)[-2:] == [32, 64]
    assert captured_sizes(1000)[-1] == 256
    for count in range(1, 257):
        assert count <= captured_sizes(count)[-1] < 2 * count


@pytest.mark.parametrize("count", [1, 3, 8, 9, 64, 70])
def test_a_filled_batch_gives_the_outputs_of_its_images(reference: TorchEngine, captured: list[int], count: int) -> None:
    engine, images = CudaGraphEngine(reference), pictures(count)
    logits, features = engine.outputs(images)
    expected = on_cpu(reference).outputs(images)
    np.testing.assert_allclose(logits, expected[0], atol=1e-4)
    np.testing.assert_allclose(features, expected[1], atol=1e-4)
    assert captured == [captured_sizes(count)[-1]]


def test_an_answer_stays_what_it_was(reference: TorchEngine, captured: list[int]) -> None:
    engine = CudaGraphEngine(reference)
    first = engine.logits(pictures(2))
    kept = first.copy()
    for count in (2, 1, 2, 2):
        engine.logits(255 - pictures(count))
    np.testing.assert_array_equal(first, kept)
    assert captured == [2, 1], "one batch at a time needs one lane"


def test_two_batches_run_at_a_time_and_a_third_one_waits(reference: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    both, running = Barrier(2, timeout=20), []

    class Slow:
        def run(self, images: Pixels) -> list[npt.NDArray[np.float32]]:
            running.append(1)
            assert len(running) <= 2
            both.wait()
            running.pop()
            both.wait()
            return [images.reshape(len(images), -1)[:, :1].astype(np.float32)]

    monkeypatch.setattr(graph_engine, "capture_forward", lambda *_: Slow())
    monkeypatch.setattr(graph_engine, "lane_resources", lambda _: (None, None))
    engine = CudaGraphEngine(reference)
    images = [np.full((1, 32, 32, 3), value, np.uint8) for value in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert [float(logits[0, 0]) for logits in pool.map(engine.logits, images)] == [0, 1, 2, 3, 4, 5]


def test_a_size_that_cannot_be_captured_runs_as_plain_torch(
    reference: TorchEngine, monkeypatch: pytest.MonkeyPatch, captured: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    possible = graph_engine.capture_forward
    attempts: list[int] = []

    def fail_above_8(reference: TorchEngine, size: int, *resources: object) -> Forward:
        attempts.append(size)
        if size > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return possible(reference, size, *resources)

    monkeypatch.setattr(graph_engine, "capture_forward", fail_above_8)
    plain = on_cpu(reference)
    monkeypatch.setattr(reference, "outputs", plain.outputs)
    engine = CudaGraphEngine(reference)
    engine.warm_up(30)
    for count in (30, 5, 30, 300):
        np.testing.assert_allclose(engine.logits(pictures(count)), plain.logits(pictures(count)), atol=1e-4)
    assert attempts == [32, 16, 8, 4, 2, 1] * 2, "once for each lane"
    assert captured == [8, 4, 2, 1] * 2
    assert "a batch of 32 images cannot be captured, and runs as plain torch: CUDA out of memory. Tried to allocate" in caplog.text


def test_warming_up_captures_every_size_in_every_lane_the_largest_first(reference: TorchEngine, captured: list[int]) -> None:
    engine = CudaGraphEngine(reference)
    engine.warm_up(20)
    assert captured == [32, 16, 8, 4, 2, 1] * 2
    engine.logits(pictures(13))
    assert len(captured) == 12


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize(("gain", "taken"), [(2.0, "cuda-graph"), (1.0, "torch")])
def test_on_a_gpu_auto_takes_graphs_if_they_are_faster(
    reference: TorchEngine, monkeypatch: pytest.MonkeyPatch, gain: float, taken: str
) -> None:
    monkeypatch.setattr(choice, "speedup", lambda *_: gain)
    monkeypatch.setattr(choice, "deviation", lambda *_: 0.0)
    engine, reason = choice.choose(reference, "auto", may_be_exact=True)
    assert (engine.name, reason) == (taken, f"cuda-graph measured {gain} times as fast as torch")


@pytest.mark.usefixtures("captured")
def test_graphs_that_give_other_answers_or_none_are_not_used(reference: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "deviation", lambda *_: 0.2)
    assert choice.choose(reference, "auto")[1].startswith("the logits of cuda-graph deviate by 20.00 %")

    def fail(*_: object) -> float:
        raise RuntimeError("operation not permitted when\nstream is capturing")

    monkeypatch.setattr(choice, "deviation", fail)
    engine, reason = choice.choose(reference, "auto")
    assert (engine.name, reason) == ("torch", "cuda-graph cannot run this network: operation not permitted when stream is capturing")


def test_without_a_gpu_one_line_says_so(make_bundle: MakeBundle) -> None:
    with pytest.raises(ConfigError, match="engine: cuda-graph needs an NVIDIA GPU; use engine torch or auto"):
        Predictor(make_bundle(), engine="cuda-graph")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu_graphs_answer_as_torch_from_several_threads(make_bundle: MakeBundle, precision: PrecisionName) -> None:
    bundle = make_bundle()
    plain = Predictor(bundle, "cuda", precision=precision, engine="torch")
    graph = Predictor(bundle, "cuda", precision=precision, engine="cuda-graph")
    batches = [pictures(count) for count in (1, 3, 8, 9, 64, 300) * 5]
    with ThreadPoolExecutor(4) as pool:  # without `warm_up`: sizes are captured while other batches run
        found = list(pool.map(lambda images: graph.predict(images).logits, batches))
    for images, logits in zip(batches, found, strict=True):
        expected = plain.predict(images).logits
        assert np.abs(logits - expected).max() <= 0.05 * np.abs(expected - expected.mean(1, keepdims=True)).max()
