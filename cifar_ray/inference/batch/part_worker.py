"""The worker of a prediction on Ray. It imports no torch until its priority is set: the import alone takes seconds of processor time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cifar_ray.cluster.process import lower_priority, prepare_process
from cifar_ray.config.base import PriorityName
from cifar_ray.errors import CifarRayError
from cifar_ray.inference.batch.model_job import ModelJob
from cifar_ray.inference.batch.rows import PartSource
from cifar_ray.inference.batch.table import Part, classify_part

if TYPE_CHECKING:
    from cifar_ray.inference.batch.classify import BundleClassifier


class PartWorker:
    """An actor of the pool: holds the model and writes the parts that it receives.

    Args:
        job: model and options.
        folder: where the parts are written.
        threads: of torch.
        source: pictures of a job beside a server, whose rows have no names.
        priority: of this process.
    """

    def __init__(self, job: ModelJob, folder: str, threads: int, source: PartSource | None, priority: PriorityName) -> None:
        lower_priority(priority)
        self._job, self._folder, self._threads, self._source = job, folder, threads, source
        self._classifier: BundleClassifier | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Takes a row per part; returns a row with the counts of each, or with the error that ends the job."""
        # An exception would lose its type on the way: Ray Data reports one of the constructor, too, as text only.
        try:
            classifier = self._classifier = self._classifier or self._load()
            done = [{**classify_part(classifier, self._part(row), self._folder), "error": "", "message": ""} for row in batch.to_pylist()]
        except CifarRayError as error:
            done = [{"pictures": 0, "broken": 0, "error": type(error).__name__, "message": str(error)}]
        return pa.Table.from_pylist(done)

    def _part(self, row: dict[str, Any]) -> Part:
        return Part(row["number"], tuple(row["names"]) if self._source is None else self._source.names(row["number"]))

    def _load(self) -> BundleClassifier:
        from cifar_ray.inference.batch.classify import BundleClassifier

        prepare_process(self._threads)
        return BundleClassifier(self._job) if self._source is None else BundleClassifier(self._job, self._source.read)
