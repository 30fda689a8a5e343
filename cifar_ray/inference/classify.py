"""From names of pictures to rows of predictions, by a bundle or by a running server."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cifar_ray.client import MAX_BATCH_BYTES, MAX_BATCH_IMAGES, Client
from cifar_ray.config import EngineName, PrecisionName
from cifar_ray.data.decode import decode_image, fit
from cifar_ray.errors import ImageError
from cifar_ray.inference.explain import grad_cam, overlay
from cifar_ray.inference.pictures import read_picture
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import Manifest, load_model

BATCH_SIZE = 256
_MOST_THREADS = 16

_RANKED = pa.struct([("class_id", pa.int32()), ("class_name", pa.string()), ("probability", pa.float32())])
SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("class_id", pa.int32()),
        ("class_name", pa.string()),
        ("confidence", pa.float32()),
        ("top_k", pa.list_(_RANKED)),
        ("error", pa.string()),
    ]
)
"""A row a picture; `error` is empty for a sound one, and all but `file` and `error` are empty for a broken one."""

Row = dict[str, Any]


class Classifier(Protocol):
    """Says what pictures show."""

    def __call__(self, names: Sequence[str]) -> pa.Table:
        """Rows of `SCHEMA`, in the order of `names`. A picture that cannot be used is a row with an error."""


@dataclass(frozen=True)
class ModelJob:
    """What a worker needs to know to classify pictures; small, so that it can be sent anywhere.

    Attributes:
        model: reference, run or path.
        storage: where to look it up.
        top_k: classes a row.
        precision: of the arithmetic.
        engine: what computes.
        explain_dir: folder for a Grad-CAM overlay of each picture; `None` for none.
    """

    model: str
    storage: str
    top_k: int
    precision: PrecisionName = "auto"
    engine: EngineName = "auto"
    explain_dir: str | None = None


class BundleClassifier:
    """Decodes in threads while the network computes the batch before, on a GPU where there is one.

    Raises:
        StoreError: if there is no such model.
        BundleError: if it is damaged.
    """

    def __init__(self, job: ModelJob) -> None:
        self.job = job
        self.bundle = load_model(job.model, job.storage)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.predictor = Predictor(self.bundle, device, job.precision, job.engine)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._threads = min(cores, _MOST_THREADS)

    def __call__(self, names: Sequence[str]) -> pa.Table:
        """As the protocol says."""
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
            return fit(decode_image(read_picture(name)), manifest.image_size_px, manifest.resize_policy)
        except ImageError as error:
            return error

    def _predict(self, names: Sequence[str], decoded: Sequence[npt.NDArray[np.uint8] | ImageError]) -> list[Row]:
        sound = [image for image in decoded if not isinstance(image, ImageError)]
        ranked: Iterator[list[Row]] = iter(())
        if sound:
            images = np.stack(sound)
            probabilities = self.predictor.predict(images).probabilities
            ranked = iter(_rank(probabilities, self.job.top_k, self.bundle.manifest))
            if self.job.explain_dir:
                good = [name for name, image in zip(names, decoded, strict=True) if not isinstance(image, ImageError)]
                self._explain(Path(self.job.explain_dir), good, images, probabilities)
        return [
            broken_row(name, image) if isinstance(image, ImageError) else sound_row(name, next(ranked))
            for name, image in zip(names, decoded, strict=True)
        ]

    def _explain(self, folder: Path, names: Sequence[str], images: npt.NDArray[np.uint8], probabilities: npt.NDArray[np.float32]) -> None:
        predicted = probabilities.argmax(1)
        folder.mkdir(parents=True, exist_ok=True)
        for name, image, heat, label in zip(
            names, images, grad_cam(self.predictor.network, self.bundle.manifest, images, predicted), predicted, strict=True
        ):
            class_name = self.bundle.manifest.class_names[label].replace("/", "_")
            overlay(image, heat).save(folder / f"{overlay_name(name)}-{class_name}.png")


class ServerClassifier:
    """Sends pictures to a running server, whose answers become the same rows.

    Args:
        url: of the server, see `Client`.
        top_k: classes a row.
    """

    def __init__(self, url: str, top_k: int) -> None:
        self.url, self.top_k = url, top_k

    def __call__(self, names: Sequence[str]) -> pa.Table:
        """As the protocol says; two requests are under way at a time, so that the server never waits for the next.

        Raises:
            ServerError: if the server cannot be reached or refuses.
        """
        with ThreadPool(2) as pool:
            rows = pool.imap(self._ask, _batches(names))
            return pa.Table.from_pylist([row for batch in rows for row in batch], SCHEMA)

    def _ask(self, pictures: list[tuple[str, bytes | ImageError]]) -> list[Row]:
        sent = [(name, data) for name, data in pictures if not isinstance(data, ImageError)]
        answers: Iterator[Row] = iter(())
        if sent:
            answers = iter(Client(self.url).predict_batch([(Path(name).name, data) for name, data in sent], self.top_k)["predictions"])
        return [broken_row(name, data) if isinstance(data, ImageError) else _from_answer(name, next(answers)) for name, data in pictures]


def sound_row(name: str, ranked: list[Row]) -> Row:
    """A row of `SCHEMA`; `ranked` are its classes, most likely first."""
    best = ranked[0]
    return {
        "file": name,
        "class_id": best["class_id"],
        "class_name": best["class_name"],
        "confidence": best["probability"],
        "top_k": ranked,
        "error": None,
    }


def broken_row(name: str, reason: object) -> Row:
    """A row of `SCHEMA` for a picture that could not be used."""
    return {"file": name, "error": str(reason)}


def overlay_name(name: str) -> str:
    """A file name that tells a picture's whole path, so that no two overlays collide."""
    return name.removeprefix(f"{Path.cwd()}/").strip("/").replace("://", "_").replace("/", "_")


def _rank(probabilities: npt.NDArray[np.float32], top_k: int, manifest: Manifest) -> list[list[Row]]:
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return [
        [{"class_id": int(i), "class_name": manifest.class_names[i], "probability": float(row[i])} for i in best]
        for row, best in zip(probabilities, order, strict=True)
    ]


def _from_answer(name: str, answer: Row) -> Row:
    if "error" in answer:
        return broken_row(name, answer["error"].get("detail") or answer["error"].get("title"))
    return sound_row(name, answer["top_k"])


def _batches(names: Sequence[str]) -> Iterator[list[tuple[str, bytes | ImageError]]]:
    """Read pictures, in lots that a server takes in one request."""
    batch: list[tuple[str, bytes | ImageError]] = []
    size_bytes = 0
    for name in names:
        data: bytes | ImageError
        try:
            data = read_picture(name)
        except ImageError as error:
            data = error
        more_bytes = 0 if isinstance(data, ImageError) else len(data)
        if batch and (len(batch) == MAX_BATCH_IMAGES or size_bytes + more_bytes > MAX_BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append((name, data))
        size_bytes += more_bytes
    if batch:
        yield batch
