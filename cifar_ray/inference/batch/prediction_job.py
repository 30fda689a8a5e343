"""A prediction job: classify many pictures in this process, on Ray, or with a server; the rows stay in memory or go to a file."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit

from cifar_ray.client import Client
from cifar_ray.cluster.process import prepare_process
from cifar_ray.config import EngineName, PrecisionName, resolve_storage

if TYPE_CHECKING:
    import pyarrow as pa

    from cifar_ray.inference.batch.model_job import ModelJob
    from cifar_ray.inference.batch.rows import Classifier
    from cifar_ray.inference.batch.table import Part


class PredictionProgress(Protocol):
    """Receives the progress of a job."""

    def start(self, name: str, total: int) -> Callable[[int], None]:
        """A job of `total` pictures starts; return a function that takes the number of newly finished pictures."""

    def write(self, text: str) -> None:
        """Show a line of text."""


@dataclass(frozen=True)
class PredictionJob:
    """The model of a prediction job, its options, and the file for the rows.

    Attributes:
        model: reference, run or path of a model; or the address of a server.
        storage: path or URI in which a reference or run is looked up.
        out: path or URI of the table; `None` keeps the rows in memory.
        top_k: number of classes per row.
        abstain: whether the model may abstain.
        explain_dir: folder for a Grad-CAM overlay of each picture; `None` for none.
        num_workers: number of Ray Data workers; `None` for this process.
        part_size: number of pictures per part; finished parts survive an interruption.
        precision: number format of the arithmetic.
        engine: inference engine.
    """

    model: str
    storage: str
    out: str | None = None
    top_k: int = 5
    abstain: bool = True
    explain_dir: str | None = None
    num_workers: int | None = None
    part_size: int = 2000
    precision: PrecisionName = "auto"
    engine: EngineName = "auto"

    @property
    def uses_server(self) -> bool:
        """Whether `model` is the address of a server."""
        return self.model.startswith(("http://", "https://"))


@dataclass(frozen=True)
class PredictionTime:
    """Computing time of a job.

    Attributes:
        pictures: number of pictures, without those that an interrupted job had finished.
        seconds: time for these pictures, without the time for loading the model.
    """

    pictures: int
    seconds: float


def predict_pictures(
    job: PredictionJob, names: Sequence[str], progress: PredictionProgress, on_rows: Callable[[pa.Table], None]
) -> PredictionTime:
    """Predict pictures, and write the rows to the job's file if it has one; an interrupted job is resumed from its finished parts.

    Args:
        job: model, options and file.
        names: paths or URIs of the pictures.
        progress: receives the progress.
        on_rows: receives the rows of all pictures, in order, in several tables; see `rows.SCHEMA` and `rows.SET_SCHEMA`.

    Raises:
        ConfigError: if the file's format is unknown, or another job has begun the file.
        StoreError: if there is no such model, or the file cannot be written.
        BundleError: if the model is damaged.
        ServerError: if the server cannot be reached, or refuses a request.
        ResourceError: if the cluster cannot hold the workers.
    """
    return _to_file(job, job.out, names, progress, on_rows) if job.out else _in_memory(job, names, progress, on_rows)


def _in_memory(
    job: PredictionJob, names: Sequence[str], progress: PredictionProgress, on_rows: Callable[[pa.Table], None]
) -> PredictionTime:
    classifier = _load_classifier(job)
    on_done = progress.start("predicting", len(names))
    started_s = time.perf_counter()
    for first in range(0, len(names), job.part_size):
        table = classifier(names[first : first + job.part_size])
        on_done(len(table))
        on_rows(table)
    return PredictionTime(len(names), time.perf_counter() - started_s)


def _to_file(
    job: PredictionJob, out: str, names: Sequence[str], progress: PredictionProgress, on_rows: Callable[[pa.Table], None]
) -> PredictionTime:
    from cifar_ray.inference.batch.table import Results

    job, identity = _pin_version(job)
    results = Results(out, names, job.part_size, identity | {"top_k": job.top_k, "abstain": job.abstain})
    missing = results.missing()
    left = sum(len(part.names) for part in missing)
    if left < len(names):
        progress.write(f"resuming: {len(names) - left:,} of {len(names):,} pictures are done")
    with _computed_parts(job, missing, results.folder) as parts:
        on_done = progress.start("predicting", len(names))
        on_done(len(names) - left)
        started_s = time.perf_counter()
        for part in parts:
            on_done(part["pictures"])
    seconds = time.perf_counter() - started_s
    for table in results.tables():
        on_rows(table)
    results.finish()
    return PredictionTime(left, seconds)


@contextlib.contextmanager
def _computed_parts(job: PredictionJob, missing: Sequence[Part], folder: str) -> Iterator[Iterator[dict[str, int]]]:
    """Iterator that computes the parts, in this process or on Ray; the model is loaded, or Ray connected, before the first part."""
    if missing and job.num_workers:
        from cifar_ray.cluster.connection import ray_cluster
        from cifar_ray.cluster.plan import plan_fixed_workers
        from cifar_ray.inference.batch.classify_on_ray import classify_on_ray

        with ray_cluster():
            yield classify_on_ray(_model_job(job), missing, folder, plan_fixed_workers(job.num_workers))
    elif missing:
        from cifar_ray.inference.batch.table import classify_part

        classifier = _load_classifier(job)
        yield (classify_part(classifier, part, folder) for part in missing)
    else:
        yield iter(())


def _load_classifier(job: PredictionJob) -> Classifier:
    if job.uses_server:
        from cifar_ray.inference.batch.served import ServerClassifier

        return ServerClassifier(job.model, job.top_k, job.abstain)
    from cifar_ray.inference.batch.classify import BundleClassifier  # imports torch, which the client of a server does not need

    prepare_process()
    return BundleClassifier(_model_job(job))


def _model_job(job: PredictionJob) -> ModelJob:
    from cifar_ray.inference.batch.model_job import ModelJob
    from cifar_ray.store.mlflow_models import is_registered

    model = resolve_storage(job.model) if "/" in job.model and not is_registered(job.model) else job.model
    return ModelJob(model, job.storage, job.top_k, job.precision, job.engine, job.explain_dir, job.abstain)


def _pin_version(job: PredictionJob) -> tuple[PredictionJob, dict[str, Any]]:
    """The job with a fixed model version, and the model's identity, which must be the same for a job that continues the file."""
    if job.uses_server:
        answer = Client(job.model).classes()
        version, url = f"{answer.model}@{answer.version}", urlsplit(job.model)
        query = urlencode(dict(parse_qsl(url.query)) | {"model": version}, safe="@")  # a promotion or a canary must not change the version
        return dataclasses.replace(job, model=url._replace(query=query).geturl()), {"model": f"{version} of {job.model}"}
    from cifar_ray.store import load_model

    bundle = load_model(job.model, job.storage)
    model = job.model if "/" in job.model else bundle.reference
    return dataclasses.replace(job, model=model), {"model": bundle.reference, "weights_sha256": bundle.manifest.weights_sha256}
