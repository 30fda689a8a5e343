from __future__ import annotations

import gc
import importlib.util
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cifar_ray.config import PrecisionName
from cifar_ray.errors import ConfigError, MissingDependencyError
from cifar_ray.inference.engines import choice, openvino_engine
from cifar_ray.inference.engines.engine import TOLERANCE
from cifar_ray.inference.engines.openvino_engine import OpenVinoEngine
from cifar_ray.inference.engines.synthetic_pictures import like_photographs
from cifar_ray.inference.predictor import Predictor
from cifar_ray.models import list_models
from cifar_ray.models import precision as precisions
from cifar_ray.store import Bundle

MakeBundle = Callable[..., Bundle]
Pixels = npt.NDArray[np.uint8]

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the openvino extra")


@needs_openvino
@pytest.mark.parametrize("architecture", list_models())
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_openvino_gives_the_logits_of_torch_for_batches_of_any_size(
    make_bundle: MakeBundle, images: Pixels, architecture: str, precision: PrecisionName
) -> None:
    bundle = make_bundle(architecture)
    expected = Predictor(bundle, precision="fp32", engine="torch").predict(images).logits
    predictor = Predictor(bundle, precision=precision, engine="openvino")
    allowed = TOLERANCE[precision] * np.abs(expected - expected.mean(1, keepdims=True)).max()
    images.flags.writeable = False
    for part in (slice(0, 1), slice(0, 5), slice(1, 3), slice(4, 0, -1)):
        logits = predictor.predict(images[part]).logits
        assert logits.dtype == np.float32
        assert np.abs(logits - expected[part]).max() <= allowed


@needs_openvino
def test_answers_stay_what_they_were_and_threads_do_not_mix_them(make_bundle: MakeBundle, images: Pixels) -> None:
    predictor = Predictor(make_bundle(), engine="openvino")
    alone = [predictor.predict(images[[i]]).logits for i in range(5)]
    with ThreadPoolExecutor(5) as pool:
        together = list(pool.map(lambda i: predictor.predict(images[[i % 5]]).logits, range(200)))
    for i, logits in enumerate(together):
        np.testing.assert_array_equal(logits, alone[i % 5])


@needs_openvino
def test_a_signal_after_engines_came_and_went_is_only_a_signal(make_bundle: MakeBundle) -> None:
    first = Predictor(make_bundle(), engine="openvino")
    second = Predictor(make_bundle(), engine="openvino")
    del first
    del second
    gc.collect()
    with pytest.raises(KeyboardInterrupt):  # it was the end of the process once: see `openvino_engine._core`
        signal.raise_signal(signal.SIGINT)


@needs_openvino
@pytest.mark.parametrize(("gain", "taken"), [(2.0, "openvino"), (0.9, "torch")])
def test_auto_takes_what_was_measured_faster(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, gain: float, taken: str) -> None:
    monkeypatch.setattr(choice, "speedup", lambda *_: gain)
    predictor = Predictor(make_bundle(), precision="fp32")
    assert (predictor.engine, predictor.engine_reason) == (taken, f"openvino measured {gain} times as fast as torch")


@needs_openvino
def test_the_measurement_compares_the_two(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(choice.time, "perf_counter", lambda: float(next(clock)))  # type: ignore[attr-defined]
    predictor = Predictor(make_bundle(), precision="fp32")
    assert (predictor.engine, predictor.engine_reason) == ("torch", "openvino measured 1.0 times as fast as torch")


@needs_openvino
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("error", [1.2, np.nan])
def test_an_engine_whose_logits_are_off_is_never_taken(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, precision: PrecisionName, error: float
) -> None:
    exact = OpenVinoEngine.logits
    monkeypatch.setattr(OpenVinoEngine, "logits", lambda self, images: exact(self, images) * np.float32(error))
    assert Predictor(make_bundle(), precision=precision).engine == "torch"
    with pytest.raises(ConfigError, match="the logits of openvino deviate by"):
        Predictor(make_bundle(), precision=precision, engine="openvino")


@needs_openvino
def test_where_bf16_is_off_openvino_computes_in_fp32_unless_bf16_was_asked_for(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = OpenVinoEngine.logits
    monkeypatch.setattr(
        OpenVinoEngine, "logits", lambda self, images: exact(self, images) * np.float32(1.2 if self.precision.name == "bf16" else 1)
    )
    monkeypatch.setattr(choice, "speedup", lambda *_: 2.0)
    monkeypatch.setattr(precisions, "cpu_computes_bf16", lambda: True)
    predictor = Predictor(make_bundle())
    assert (predictor.engine, predictor.precision.name) == ("openvino", "fp32")
    assert "deviate by" in predictor.engine_reason
    assert Predictor(make_bundle(), precision="bf16").engine == "torch"


def test_made_pictures_have_the_spectrum_of_photographs() -> None:
    pictures = like_photographs(64)
    assert (pictures.shape, pictures.dtype) == ((16, 64, 64, 3), np.uint8)
    assert np.array_equal(pictures, like_photographs(64))
    amplitude = np.abs(np.fft.rfft2(pictures.mean(axis=3))).mean(axis=0)
    near, far = amplitude[2, 2], amplitude[16, 16]  # 8 times the frequency
    assert 5 < near / far < 13


@needs_openvino
def test_a_network_that_openvino_cannot_run_is_run_by_torch(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(openvino_engine, "convert", fail)
    predictor = Predictor(make_bundle(), precision="fp32")
    assert (predictor.engine, predictor.engine_reason) == ("torch", "openvino cannot run this network: no such operator")
    with pytest.raises(ConfigError, match="no such operator"):
        Predictor(make_bundle(), precision="fp32", engine="openvino")


def test_without_openvino_torch_answers_and_the_reason_says_what_to_install(
    make_bundle: MakeBundle, images: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    predictor = Predictor(make_bundle(), precision="fp32")
    assert predictor.engine == "torch"
    assert predictor.engine_reason == "openvino is not installed: pip install 'cifar-ray[openvino]'"
    assert predictor.predict(images).probabilities.shape == (5, 3)
    with pytest.raises(MissingDependencyError, match=r"cifar-ray\[openvino\]"):
        Predictor(make_bundle(), precision="fp32", engine="openvino")


def test_a_precision_that_openvino_does_not_have_is_torchs(make_bundle: MakeBundle) -> None:
    assert Predictor(make_bundle(), precision="fp16").engine == "torch"
    with pytest.raises(ConfigError, match="engine: openvino only supports CPUs with bf16 or fp32"):
        Predictor(make_bundle(), precision="fp16", engine="openvino")
