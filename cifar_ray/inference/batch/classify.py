"""Classify picture files with a bundle, from file names to table rows."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cifar_ray.cluster.process import usable_cores
from cifar_ray.data.decode import decode_square
from cifar_ray.errors import ImageError
from cifar_ray.inference.batch.model_job import ModelJob
from cifar_ray.inference.batch.pictures import read_picture
from cifar_ray.inference.batch.rows import SCHEMA, SET_SCHEMA, Row, broken_row, label_set_row, sound_row
from cifar_ray.inference.explain import grad_cam
from cifar_ray.inference.overlay import overlay
from cifar_ray.inference.predictor import Prediction, Predictor
from cifar_ray.store import Manifest, load_model

BATCH_SIZE = 256
_MAX_THREADS = 16
_MAX_NAME_BYTES = 255  # maximum length of a file name on Linux
_MAX_CLASS_BYTES = 120
_HASH_DIGITS = 10
_AMBIGUOUS = re.compile("__|_/|/_|://")  # such paths may give the same file name as another path, because "__" replaces "/"


class BundleClassifier:
    """Decodes pictures in threads while the network computes the previous batch, on a GPU if there is one.

    Args:
        job: model and options.
        read: reads a picture by name; raises `ImageError` if it cannot be read.

    Raises:
        StoreError: if the model is not in the store.
        BundleError: if the model is damaged.
    """

    def __init__(self, job: ModelJob, read: Callable[[str], bytes] = read_picture) -> None:
        self.job = job
        self.bundle = load_model(job.model, job.storage)
        device = "cuda" if job.may_use_gpu and torch.cuda.is_available() else "cpu"
        self.predictor = Predictor(self.bundle, device, job.precision, job.engine)
        self._threads = job.decoding_threads or min(usable_cores(), _MAX_THREADS)
        self._read = read

    def __call__(self, names: Sequence[str]) -> pa.Table:
        """Implements `Classifier`."""
        rows: list[Row] = []
        schema = SCHEMA if self.bundle.manifest.task == "single-label" else SET_SCHEMA
        with ThreadPool(self._threads) as pool:
            decoded = pool.imap(self._decode, names, chunksize=16)
            for start in range(0, len(names), BATCH_SIZE):
                batch = names[start : start + BATCH_SIZE]
                rows += self._predict(batch, [next(decoded) for _ in batch])
        return pa.Table.from_pylist(rows, schema)

    def _decode(self, name: str) -> npt.NDArray[np.uint8] | ImageError:
        manifest = self.bundle.manifest
        try:
            return decode_square(self._read(name), manifest.image_size_px, manifest.resize_policy)
        except ImageError as error:
            return error

    def _predict(self, names: Sequence[str], decoded: Sequence[npt.NDArray[np.uint8] | ImageError]) -> list[Row]:
        images_decoded = [image for image in decoded if not isinstance(image, ImageError)]
        answers: Iterator[Callable[[str], Row]] = iter(())
        if images_decoded:
            images = np.stack(images_decoded)
            prediction = self.predictor.predict(images)
            abstains = prediction.abstains & self.job.abstain
            answers = _answers(prediction, abstains, self.job.top_k, self.bundle.manifest)
            if self.job.explain_dir:
                good = [name for name, image in zip(names, decoded, strict=True) if not isinstance(image, ImageError)]
                self._explain(Path(self.job.explain_dir), good, images, prediction, abstains)
        return [
            broken_row(name, image) if isinstance(image, ImageError) else next(answers)(name)
            for name, image in zip(names, decoded, strict=True)
        ]

    def _explain(
        self,
        folder: Path,
        names: Sequence[str],
        images: npt.NDArray[np.uint8],
        prediction: Prediction,
        abstains: npt.NDArray[np.bool_],
    ) -> None:
        """Write an overlay for each label that is given, or for the most probable label if none is given."""
        shown = prediction.labels.copy()
        none = np.flatnonzero(~shown.any(axis=1))
        shown[none, prediction.probabilities[none].argmax(axis=1)] = True
        rows, labels = np.nonzero(shown)
        folder.mkdir(parents=True, exist_ok=True)
        heatmaps = grad_cam(self.predictor.network, self.bundle.manifest, images[rows], labels)
        for row, label, heat in zip(rows.tolist(), labels.tolist(), heatmaps, strict=True):
            name = overlay_name(names[row], self.bundle.manifest.class_names[label], bool(abstains[row]))
            overlay(images[row], heat).save(folder / name)


def overlay_name(name: str, class_name: str, abstains: bool) -> str:
    """File name of a picture's overlay: unique, from the picture's path and the class, and at most as long as file systems allow."""
    relative = name.removeprefix(f"{Path.cwd()}/")
    path = relative.replace("://", "__").replace("/", "__")
    ending = f"-{_cut(class_name.replace('/', '_'), _MAX_CLASS_BYTES)}{'-not-sure' * abstains}.png"
    longest = _MAX_NAME_BYTES - len(os.fsencode(ending))
    if _AMBIGUOUS.search(relative) or _cut(path, longest) != path:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:_HASH_DIGITS]
        path = f"{_cut(path, longest - _HASH_DIGITS - 1)}-{digest}"
    return path + ending


def _cut(text: str, max_bytes: int) -> str:
    """The longest start of a text that takes at most `max_bytes` bytes in a file name; characters are not split."""
    raw = os.fsencode(text)
    if len(raw) <= max_bytes:
        return text
    while max_bytes and raw[max_bytes] & 0xC0 == 0x80:  # not the first byte of a character
        max_bytes -= 1
    return os.fsdecode(raw[:max_bytes])


def _answers(prediction: Prediction, abstains: npt.NDArray[np.bool_], top_k: int, manifest: Manifest) -> Iterator[Callable[[str], Row]]:
    """Yield a function for each picture that creates its row from its name."""
    order = np.argsort(-prediction.probabilities, axis=1, kind="stable")
    for row, (best, abstain) in enumerate(zip(order, abstains.tolist(), strict=True)):
        ranked = _ranked(prediction, row, best[:top_k], manifest)
        if manifest.task == "single-label":
            yield partial(sound_row, ranked=ranked, abstain=abstain)
        else:
            given = _ranked(prediction, row, best[prediction.labels[row, best]], manifest)
            yield partial(label_set_row, ranked=ranked, labels=given, abstain=abstain)


def _ranked(prediction: Prediction, row: int, classes: npt.NDArray[np.int64], manifest: Manifest) -> list[Row]:
    values = prediction.probabilities[row]
    return [{"class_id": int(i), "class_name": manifest.class_names[i], "probability": float(values[i])} for i in classes]
