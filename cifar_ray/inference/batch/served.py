"""Classify picture files with a running server, from file names to table rows; needs neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pyarrow as pa

from cifar_ray.client import MAX_BATCH_BYTES, MAX_BATCH_IMAGES, Client, Prediction
from cifar_ray.errors import ImageError
from cifar_ray.inference.batch.pictures import read_picture
from cifar_ray.inference.batch.rows import SCHEMA, SET_SCHEMA, Row, broken_row, label_set_row, sound_row


class ServerClassifier:
    """Sends pictures to a running server and converts its responses to rows.

    Args:
        url: address of the server, see `Client`.
        top_k: number of classes per row.
        abstain: whether the model may abstain.
    """

    def __init__(self, url: str, top_k: int, abstain: bool) -> None:
        self._client, self.top_k, self.abstain = Client(url), top_k, abstain

    def __call__(self, names: Sequence[str]) -> pa.Table:
        """Implements `Classifier`; two concurrent requests keep the server busy.

        Raises:
            ServerError: if the server cannot be reached or refuses the request.
        """
        with ThreadPool(2) as pool:
            rows = pool.imap(self._ask, _batches(names))
            found = [row for batch in rows for row in batch]
            return pa.Table.from_pylist(found, SET_SCHEMA if any("labels" in row for row in found) else SCHEMA)

    def _ask(self, pictures: list[tuple[str, bytes | ImageError]]) -> list[Row]:
        sent = [(name, data) for name, data in pictures if not isinstance(data, ImageError)]
        answers: Iterator[Prediction | ImageError] = iter(())
        if sent:
            answers = iter(self._client.predict_batch([(Path(name).name, data) for name, data in sent], self.top_k))
        return [self._row(name, data if isinstance(data, ImageError) else next(answers)) for name, data in pictures]

    def _row(self, name: str, outcome: Prediction | ImageError) -> Row:
        if isinstance(outcome, ImageError):
            return broken_row(name, outcome)
        ranked, abstain = outcome.answer["top_k"], self.abstain and outcome.abstain
        if "labels" not in outcome.answer:
            return sound_row(name, ranked, abstain)
        given = [one for one in outcome.answer["labels"] if one["above_threshold"]]
        labels = [{"class_id": one["class_id"], "class_name": one["class"], "probability": one["probability"]} for one in given]
        return label_set_row(name, ranked, labels, abstain)


def _batches(names: Sequence[str]) -> Iterator[list[tuple[str, bytes | ImageError]]]:
    """Read pictures, and yield them in batches that a server accepts in one request."""
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
