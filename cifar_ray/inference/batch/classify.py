"""Classify picture files with a bundle: names → rows."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cifar_ray.cluster.process import usable_cores
from cifar_ray.config import EngineName, PrecisionName
from cifar_ray.data.decode import decode_square
from cifar_ray.errors import ImageError
from cifar_ray.inference.batch.pictures import read_picture
from cifar_ray.inference.batch.rows import SCHEMA, Row, broken_row, sound_row
from cifar_ray.inference.explain import grad_cam
from cifar_ray.inference.overlay import overlay
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import Manifest, load_model

BATCH_SIZE = 256
_MAX_THREADS = 16
_MAX_NAME_BYTES = 255  # of a file, on Linux
_MAX_CLASS_BYTES = 120
_HASH_DIGITS = 10
_AMBIGUOUS = re.compile("__|_/|/_|://")  # with "__" for "/", other paths may give the same file name


@dataclass(frozen=True)
class ModelJob:
    """Settings of a worker that classifies pictures; small enough to send to any host.

    Attributes:
        model: reference, run or path.
        storage: storage of the model.
        top_k: number of classes per row.
        precision: number format of the arithmetic.
        engine: inference engine.
        explain_dir: folder for a Grad-CAM overlay of each picture; `None` for none.
        abstain: whether the model may abstain.
    """

    model: str
    storage: str
    top_k: int
    precision: PrecisionName = "auto"
    engine: EngineName = "auto"
    explain_dir: str | None = None
    abstain: bool = True


class BundleClassifier:
    """Decodes pictures in threads while the network computes the previous batch, on a GPU if there is one.

    Raises:
        StoreError: if the model is not in the store.
        BundleError: if the model is damaged.
    """

    def __init__(self, job: ModelJob) -> None:
        self.job = job
        self.bundle = load_model(job.model, job.storage)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.predictor = Predictor(self.bundle, device, job.precision, job.engine)
        self._threads = min(usable_cores(), _MAX_THREADS)

    def __call__(self, names: Sequence[str]) -> pa.Table:
        """Implements `Classifier`."""
        rows: list[Row] = []
        with ThreadPool(self._threads) as pool:
            decoded = pool.imap(self._decode, names, chunksize=16)
            for start in range(0, len(names), BATCH_SIZE):
                batch = names[start : start + BATCH_SIZE]
                rows += self._predict(batch, [next(decoded) for _ in batch])
        return pa.Table.from_pylist(rows, SCHEMA)

    def _decode(self, name: str) -> npt.NDArray[np.uint8] | ImageError:
        manifest = self.bundle.manifest
        try:
            return decode_square(read_picture(name), manifest.image_size_px, manifest.resize_policy)
        except ImageError as error:
            return error

    def _predict(self, names: Sequence[str], decoded: Sequence[npt.NDArray[np.uint8] | ImageError]) -> list[Row]:
        images_decoded = [image for image in decoded if not isinstance(image, ImageError)]
        answers: Iterator[tuple[list[Row], bool]] = iter(())
        if images_decoded:
            images = np.stack(images_decoded)
            prediction = self.predictor.predict(images)
            abstains = prediction.abstains & self.job.abstain
            answers = zip(_rank(prediction.probabilities, self.job.top_k, self.bundle.manifest), abstains.tolist(), strict=True)
            if self.job.explain_dir:
                good = [name for name, image in zip(names, decoded, strict=True) if not isinstance(image, ImageError)]
                self._explain(Path(self.job.explain_dir), good, images, prediction.probabilities, abstains)
        return [
            broken_row(name, image) if isinstance(image, ImageError) else sound_row(name, *next(answers))
            for name, image in zip(names, decoded, strict=True)
        ]

    def _explain(
        self,
        folder: Path,
        names: Sequence[str],
        images: npt.NDArray[np.uint8],
        probabilities: npt.NDArray[np.float32],
        abstains: npt.NDArray[np.bool_],
    ) -> None:
        predicted = probabilities.argmax(1)
        folder.mkdir(parents=True, exist_ok=True)
        heatmaps = grad_cam(self.predictor.network, self.bundle.manifest, images, predicted)
        for name, image, heat, label, abstain in zip(names, images, heatmaps, predicted, abstains, strict=True):
            overlay(image, heat).save(folder / overlay_name(name, self.bundle.manifest.class_names[label], bool(abstain)))


def overlay_name(name: str, class_name: str, abstains: bool) -> str:
    """File name of a picture's overlay: unique, with the picture's path and its class, cut to what file systems allow."""
    relative = name.removeprefix(f"{Path.cwd()}/")
    path = relative.replace("://", "__").replace("/", "__")
    ending = f"-{_cut(class_name.replace('/', '_'), _MAX_CLASS_BYTES)}{'-not-sure' * abstains}.png"
    longest = _MAX_NAME_BYTES - len(os.fsencode(ending))
    if _AMBIGUOUS.search(relative) or _cut(path, longest) != path:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:_HASH_DIGITS]
        path = f"{_cut(path, longest - _HASH_DIGITS - 1)}-{digest}"
    return path + ending


def _cut(text: str, max_bytes: int) -> str:
    """The start of a text that takes at most so many bytes in a file name, in whole characters."""
    raw = os.fsencode(text)
    if len(raw) <= max_bytes:
        return text
    while max_bytes and raw[max_bytes] & 0xC0 == 0x80:  # not the first byte of a character
        max_bytes -= 1
    return os.fsdecode(raw[:max_bytes])


def _rank(probabilities: npt.NDArray[np.float32], top_k: int, manifest: Manifest) -> list[list[Row]]:
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return [
        [{"class_id": int(i), "class_name": manifest.class_names[i], "probability": float(row[i])} for i in best]
        for row, best in zip(probabilities, order, strict=True)
    ]
