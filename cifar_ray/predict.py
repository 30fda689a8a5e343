"""`python -m cifar_ray.predict MODEL PICTURES…`: says what pictures show, with a model here, on a cluster, or behind a server's address."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field
from tqdm import tqdm
from tyro.conf import Positional

from cifar_ray import cli
from cifar_ray.client import Client
from cifar_ray.config import STORAGE_VARIABLE, Config, EngineName, PrecisionName, default_storage, resolve_storage
from cifar_ray.errors import ConfigError
from cifar_ray.inference.batch.pictures import list_pictures

if TYPE_CHECKING:
    from cifar_ray.inference.batch.classify import ModelJob
    from cifar_ray.inference.batch.rows import Classifier
    from cifar_ray.inference.batch.table import Part

    Bar = tqdm[NoReturn]

PROG = "python -m cifar_ray.predict"

_SHOWN = 20


class PredictCommand(Config):
    """Says what pictures show. A broken picture is a row with an error, and stops nothing.

    With --out every row goes to a file; what an interrupted command had done is not done again when it is repeated.
    """

    model: Positional[str] = Field(
        description="NAME, NAME@3, a run, a path, or http://HOST:PORT of a running server (?model=NAME; its key in $CIFAR_RAY_API_KEY)"
    )
    pictures: Positional[tuple[str, ...]] = Field(description="files, folders, globs, URIs of such, or - for paths on stdin")
    out: str | None = Field(None, description="path or URI of the table: .csv, .json or .parquet")
    top_k: int = Field(5, ge=1, description="classes a picture, most likely first")
    abstain: bool = Field(True, description="say of pictures unlike those that the model was validated on that it had rather not name them")
    explain: str | None = Field(None, description="folder for an overlay of each picture that shows where its class was seen (Grad-CAM)")
    num_workers: int | None = Field(None, ge=1, le=4096, description="spread over so many workers with Ray Data; default: this process")
    part_size: int = Field(
        2000, ge=1, description="pictures that are written at once; after an interruption at most one part a worker is lost"
    )
    precision: PrecisionName = "auto"
    engine: EngineName = "auto"
    storage: str = Field(default_factory=default_storage, description=f"path or URI; default ${STORAGE_VARIABLE} or ./storage")

    @property
    def asks_a_server(self) -> bool:
        """Whether `model` is an address."""
        return self.model.startswith(("http://", "https://"))


def main(argv: Sequence[str] | None = None) -> int:
    """Predicts as the flags say; the command line's own where `argv` is `None`.

    Returns:
        0, or 2 if not one picture could be read.
    """
    command: PredictCommand = cli.parse(PredictCommand, argv, PROG)
    if command.asks_a_server and (command.num_workers or command.explain):
        raise ConfigError("--num-workers and --explain need the model here; a server only answers")
    if command.num_workers and command.out is None:
        raise ConfigError("--num-workers: say with --out where the rows go, to a place that all workers see")
    names = list_pictures(command.pictures, sys.stdin)
    with tqdm(total=len(names), unit="img", unit_scale=True, file=sys.stderr, disable=None, dynamic_ncols=True) as bar:
        report = _to_file(command, names, bar) if command.out else _in_memory(command, names, bar)
    print(report.summary())
    if command.out:
        print(f"wrote {command.out}")
    return 0 if report.named else cli.EXIT_USER_ERROR


def _in_memory(command: PredictCommand, names: Sequence[str], bar: Bar) -> Report:
    classifier = _classifier(command)
    report = Report(computed=len(names))
    for start in range(0, len(names), command.part_size):
        table = classifier(names[start : start + command.part_size])
        bar.update(len(table))
        report.add(table)
    return report


def _to_file(command: PredictCommand, names: Sequence[str], bar: Bar) -> Report:
    from cifar_ray.inference.batch.table import Results

    command, identity = _pinned(command)
    assert command.out is not None  # noqa: S101
    results = Results(command.out, names, command.part_size, identity | {"top_k": command.top_k, "abstain": command.abstain})
    missing = results.missing()
    left = sum(len(part.names) for part in missing)
    if left < len(names):
        tqdm.write(f"{len(names) - left:,} of {len(names):,} pictures were done before", file=sys.stderr)
        bar.update(len(names) - left)
    with _parts_done(command, missing, results.folder) as done:
        report = Report(computed=left)
        for part in done:
            bar.update(part["pictures"])
    report.stop()
    for table in results.tables():
        report.add(table)
    results.finish()
    return report


@contextlib.contextmanager
def _parts_done(command: PredictCommand, missing: Sequence[Part], folder: str) -> Iterator[Iterator[dict[str, int]]]:
    """Computes parts, here or on Ray, while the caller iterates; the model is loaded, or Ray connected, before that."""
    if missing and command.num_workers:
        from cifar_ray.cluster.connection import ray_cluster
        from cifar_ray.inference.batch.classify_on_ray import classify_on_ray

        with ray_cluster():
            yield classify_on_ray(_job(command), missing, folder, command.num_workers)
    elif missing:
        from cifar_ray.inference.batch.table import classify_part

        classifier = _classifier(command)
        yield (classify_part(classifier, part, folder) for part in missing)
    else:
        yield iter(())


def _classifier(command: PredictCommand) -> Classifier:
    if command.asks_a_server:
        from cifar_ray.inference.batch.served import ServerClassifier

        return ServerClassifier(command.model, command.top_k, command.abstain)
    from cifar_ray.inference.batch.classify import BundleClassifier  # brings torch, which asking a server does without

    return BundleClassifier(_job(command))


def _job(command: PredictCommand) -> ModelJob:
    from cifar_ray.inference.batch.classify import ModelJob

    model = resolve_storage(command.model) if "/" in command.model else command.model
    explain_dir = None if command.explain is None else resolve_storage(command.explain)
    return ModelJob(model, resolve_storage(command.storage), command.top_k, command.precision, command.engine, explain_dir, command.abstain)


def _pinned(command: PredictCommand) -> tuple[PredictCommand, dict[str, Any]]:
    """The command for the very version that answers now, and which that is: no other one may finish what it begins."""
    if command.asks_a_server:
        answer = Client(command.model).classes()
        return command, {"model": f"{answer.model}@{answer.version} of {command.model}"}
    from cifar_ray.store import load_model

    bundle = load_model(command.model, command.storage)
    model = command.model if "/" in command.model else bundle.reference
    return command.model_copy(update={"model": model}), {"model": bundle.reference, "weights_sha256": bundle.manifest.weights_sha256}


class Report:
    """What was predicted, as a short table, and how fast. The clock runs from its making to `stop`, or to the summary.

    Args:
        computed: pictures that the time is spent on.
    """

    def __init__(self, computed: int) -> None:
        self._computed = computed
        self._started_s = time.perf_counter()
        self._seconds: float | None = None
        self._rows: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()
        self._confidence: Counter[str] = Counter()
        self._broken = self._abstained = 0

    def add(self, table: pa.Table) -> None:
        """Counts rows."""
        self._abstained += pc.sum(table["abstain"]).as_py() or 0
        self._rows += table.slice(0, max(0, _SHOWN + 1 - len(self._rows))).to_pylist()
        for name, confidence in zip(table["class_name"].to_pylist(), table["confidence"].to_pylist(), strict=True):
            if name is None:
                self._broken += 1
            else:
                self._counts[name] += 1
                self._confidence[name] += confidence

    @property
    def named(self) -> int:
        """Pictures that could be read."""
        return self._counts.total()

    def stop(self) -> None:
        """Ends the time that counts for speed."""
        self._seconds = time.perf_counter() - self._started_s

    def summary(self) -> str:
        """A line a picture where they are few, else a line a class; then speed."""
        seconds = self._seconds or time.perf_counter() - self._started_s
        total = self._broken + self.named
        if total <= _SHOWN:
            width = max(len(row["file"]) for row in self._rows)
            lines = [f"{row['file']:{width}}  {_what(row)}" for row in self._rows]
        else:
            width = max(map(len, self._counts), default=0)
            lines = [
                f"{name:{width}}  {count:>9,}  {count / total:7.2%}  mean confidence {self._confidence[name] / count:.3f}"
                for name, count in self._counts.most_common(_SHOWN)
            ]
            if len(self._counts) > _SHOWN:
                lines.append(f"and {len(self._counts) - _SHOWN} more classes")
        rate = f" in {seconds:.1f} s: {self._computed / seconds:,.0f} images/s"
        speed = f"{self._computed:,} pictures{rate}" if self._computed else f"{total:,} pictures"
        unsure = f", not sure of {self._abstained:,}" if self._abstained else ""
        return "\n".join([*lines, f"{speed}; {self._broken:,} broken{unsure}"])


def _what(row: dict[str, Any]) -> str:
    if row["error"] is not None:
        return f"error: {row['error']}"
    return f"{row['class_name']} {row['confidence']:.1%}{', but not sure: unlike what the model knows' if row['abstain'] else ''}"


if __name__ == "__main__":
    sys.exit(cli.run(main))
