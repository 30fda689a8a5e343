"""The worker of a prediction on Ray. It imports torch only after its priority is set, because the import takes seconds of CPU time."""

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
    """Actor that holds the model, predicts the parts that it receives, and writes them.

    Args:
        job: model and options.
        folder: folder of the finished parts.
        threads: number of torch threads.
        source: for the job of a server: reads names and pictures of the parts; `None` if the rows contain the names.
        priority: priority of this process.
    """

    def __init__(self, job: ModelJob, folder: str, threads: int, source: PartSource | None, priority: PriorityName) -> None:
        lower_priority(priority)
        self._job, self._folder, self._threads, self._source = job, folder, threads, source
        self._classifier: BundleClassifier | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Predict and write one part per row; return one row per part with its counts, or one row with the error that ends the job."""
        # Errors are returned and not raised, and the model is not loaded in the constructor: Ray Data reports exceptions only as text.
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
