"""Export a bundle for other programs, after a check that the file gives the same predictions."""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cifar_ray.config import resolve_storage
from cifar_ray.data.decode import fit
from cifar_ray.errors import BundleError, MissingDependencyError
from cifar_ray.inference.engines.engine import TOLERANCE, Pixels
from cifar_ray.inference.exporting.answers import PredictionGraph
from cifar_ray.inference.exporting.file_formats import FORMATS, ExportFormat, Run
from cifar_ray.inference.predictor import Predictor
from cifar_ray.storage import FileTree
from cifar_ray.store import Bundle

# Height and width of the pictures for the check, as multiples of the network's size: unchanged, enlarged, a strip, upright, and two that
# are averaged in blocks
_CHECKED_SIDES = ((1, 1), (0.5, 0.8), (0.1, 2), (2.4, 1.9), (6.3, 7.5), (9, 6.1))
_TIMED_PX = (480, 640)
_TIMED_REPEATS = 5


@dataclass(frozen=True)
class Exported:
    """An exported and checked file.

    Attributes:
        target: path or URI of the file.
        data: content of the file.
        deviation: largest difference between the logits of the file and of the bundle in fp32, as a fraction of the largest logit.
        pictures: number of pictures of different sizes in the check.
        checked_by: program that ran the file for the check.
        latency_ms: median time of the program `checked_by` for one picture.
        timed_px: height and width of the picture for `latency_ms`.
    """

    target: str
    data: bytes
    deviation: float
    pictures: int
    checked_by: str
    latency_ms: float
    timed_px: tuple[int, int]


def export(bundle: Bundle, file_format: ExportFormat, target: str) -> Exported:
    """Convert a bundle to a file, run the file and compare its predictions; `target` is replaced only after this check.

    `onnx` and `pt2` take RGB pictures of any size, uint8 `[N, H, W, 3]`, for any N, and return the `OUTPUTS` of `PredictionGraph`, as a
    server does. `torchscript` takes uint8 `[N, S, S, 3]` and returns logits and probabilities. `safetensors` contains the weights, and the
    manifest in its header; `import` can read it.

    Args:
        bundle: the bundle to export.
        file_format: format of the file.
        target: path or URI of the file to write.

    Raises:
        MissingDependencyError: if a package for the format is not installed.
        BundleError: if the network cannot be exported in the format, or the file gives other predictions.
        StoreError: if the file cannot be written.
    """
    exported = build(bundle, file_format, target)
    files, name = FileTree.of_file(resolve_storage(target))
    files.replace(name, exported.data)
    return exported


def build(bundle: Bundle, file_format: ExportFormat, target: str) -> Exported:
    """Create and check the file that `export` writes to `target`, without writing it.

    Raises:
        MissingDependencyError, BundleError: see `export`.
    """
    predictor = Predictor(bundle, precision="fp32", engine="torch")
    form = FORMATS[file_format]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"model{form.suffix}")
        try:
            with warnings.catch_warnings(), _quiet():
                warnings.simplefilter("ignore")  # exporters warn about their internals; the result is checked below
                form.write(bundle, predictor, file)
                program, run = form.read(bundle, file)
        except MissingDependencyError:
            raise
        except Exception as failure:  # exporters raise many exceptions
            raise BundleError(
                f"{bundle.reference} cannot be exported as {file_format}: {_first_reason(failure)}; try another --format"
            ) from failure
        size = bundle.manifest.image_size_px
        sides = [(_px(size, y), _px(size, x)) for y, x in (_CHECKED_SIDES if form.takes_any_size else _CHECKED_SIDES[:1])]
        deviation = _check(run, predictor, sides, f"{bundle.reference}: the {file_format} file")
        timed = _TIMED_PX if form.takes_any_size else (size, size)
        return Exported(target, file.read_bytes(), deviation, len(sides), program, _latency_ms(run, timed), timed)


def _first_reason(failure: BaseException) -> str:
    while failure.__cause__:  # torch wraps the first error in pages of advice
        failure = failure.__cause__
    return " ".join(str(failure).split())[:200]


def _check(run: Run, predictor: Predictor, sides: list[tuple[int, int]], what: str) -> float:
    """Compare the file's predictions for pictures of several sizes with those of the engine.

    The engine gets the same pictures, resized as a server does.

    Returns:
        The largest difference of the logits, as a fraction of the largest logit.

    Raises:
        BundleError: if the predictions differ.
    """
    manifest = predictor.manifest
    pictures = [_picture(height, width, seed) for seed, (height, width) in enumerate(sides)]
    squares = np.stack([fit(Image.fromarray(picture), manifest.image_size_px, manifest.resize_policy) for picture in pictures])
    expected = predictor.predict(squares)
    outputs = [run(picture[None]) for picture in pictures]
    found: dict[str, npt.NDArray[Any]] = {
        name: np.concatenate(arrays) for name, arrays in zip(PredictionGraph.OUTPUTS, zip(*outputs, strict=True), strict=False)
    }
    scale = np.abs(expected.logits - expected.logits.mean(axis=1, keepdims=True)).max()
    deviation = float(np.abs(found["logits"] - expected.logits).max() / scale)
    if not deviation <= TOLERANCE["fp32"]:
        raise BundleError(f"{what} is wrong: its logits deviate by {100 * deviation:.2f} %; not written, try another --format")
    if not np.allclose(found.get("probabilities", expected.probabilities), expected.probabilities, atol=TOLERANCE["fp32"]):
        raise BundleError(f"{what} is wrong: its probabilities are not those of the model; not written, try another --format")
    for name in ("labels", "abstains"):
        answers, right = found.get(name), getattr(expected, name)
        if answers is not None and not np.array_equal(answers, right):
            raise BundleError(f"{what} is wrong: its {name} are not those of the model; not written, try another --format")
    return deviation


def _px(size_px: int, factor: float) -> int:
    return max(1, round(size_px * factor))


def _picture(height: int, width: int, seed: int) -> Pixels:
    """A gradient with noise, so that a wrong resampling filter is noticed: uint8 `[H, W, 3]`."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 256, (2, 2, 3))
    down, across = (np.stack([1 - ramp, ramp]) for ramp in (np.linspace(0, 1, height), np.linspace(0, 1, width)))
    smooth = np.einsum("ijc,iy,jx->yxc", corners, down, across)
    picture: Pixels = (smooth + rng.integers(-60, 61, (height, width, 1))).clip(0, 255).astype(np.uint8)
    return picture


def _latency_ms(run: Run, sides: tuple[int, int]) -> float:
    picture, times = _picture(*sides, seed=0)[None], []
    for _ in range(_TIMED_REPEATS):
        started = time.perf_counter()
        run(picture)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, which print and log their progress."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):  # noqa: PTH123
            yield
    finally:
        logging.disable(level)
