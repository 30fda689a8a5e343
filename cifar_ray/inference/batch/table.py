"""Write predictions to one file in parts: finished parts survive a crash and are not computed again."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cifar_ray.config import resolve_storage
from cifar_ray.errors import ConfigError, StoreError
from cifar_ray.inference.batch.rows import Classifier, Row, fitting
from cifar_ray.storage import FileTree

FORMATS = (".csv", ".json", ".parquet")
_JOB_FILE = "job.json"


@dataclass(frozen=True)
class Part:
    """A part of a job's pictures, whose rows are written together.

    Attributes:
        number: number of the part, from 0, in the order of the job.
        names: names of the pictures.
    """

    number: int
    names: tuple[str, ...]


class PartFiles:
    """The finished parts of a table in a folder.

    Args:
        folder: path or URI.
        count: number of parts of the whole table.
    """

    def __init__(self, folder: str, count: int) -> None:
        self.folder, self._count = folder, count
        self._tree = FileTree(folder, "")

    def missing(self) -> list[int]:
        """Numbers of the parts that are not yet written."""
        done = self._tree.have_files([part_file(number) for number in range(self._count)])
        return [number for number, is_done in enumerate(done) if not is_done]

    def tables(self) -> Iterator[pa.Table]:
        """The rows of all parts, in order.

        Raises:
            StoreError: if a part is missing.
        """
        return map(self.table, range(self._count))

    def table(self, number: int) -> pa.Table:
        """The rows of a part.

        Raises:
            StoreError: if the part is missing.
        """
        data = self._tree.read(part_file(number))
        if data is None:
            raise StoreError(f"{self.folder}/{part_file(number)} is missing; run the same command again")
        return pq.read_table(io.BytesIO(data))

    def join(self, target: str) -> None:
        """Join the parts to one file, which becomes visible only when it is complete.

        Args:
            target: path or URI ending in one of `FORMATS`.

        Raises:
            StoreError: if the file cannot be written.
        """
        files, name = FileTree.of_file(target)
        with files.writing(name) as file:
            _WRITERS[PurePosixPath(name).suffix.lower()](self.tables(), file)

    def remove(self) -> None:
        """Remove the folder."""
        self._tree.remove()


class Results:
    """A file of predictions, and the folder `<file>.parts` with its finished parts until the file is complete.

    Args:
        target: path or URI ending in one of `FORMATS`; on a cluster, all hosts must share it.
        names: names of all pictures.
        part_size: number of pictures per part.
        about: everything else on which the rows depend, for example model and top-k. A job only resumes parts with equal values.

    Raises:
        ConfigError: if the format is unknown, or the folder contains parts of another job.
        StoreError: if the target cannot be written.
    """

    def __init__(self, target: str, names: Sequence[str], part_size: int, about: dict[str, Any]) -> None:
        self.target = resolve_storage(target)
        path, mark, query = self.target.partition("?") if "://" in target else (self.target, "", "")
        self.suffix = PurePosixPath(path).suffix.lower()
        if self.suffix not in FORMATS:
            raise ConfigError(f"--out {target}: unknown format. Supported: {', '.join(FORMATS)}")
        self._names, self._part_size = names, part_size
        digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()
        job = json.dumps({"pictures": len(names), "names_sha256": digest, "part_size": part_size} | about, indent=1).encode()
        self.folder = f"{path}.parts{mark}{query}"
        self._parts = PartFiles(self.folder, -(-len(names) // part_size))
        # if two jobs start at the same time, the first one writes the job file, and the other one raises an error if it differs
        if FileTree(self.folder, "").update(_JOB_FILE, lambda present: present or job) != job:
            raise ConfigError(
                f"--out {target}: {self.folder} contains parts of another job (other pictures, model or top-k). "
                "Run that job again to finish it, delete the folder, or choose another --out"
            )

    def missing(self) -> list[Part]:
        """The parts that are not yet written."""
        size = self._part_size
        return [Part(number, tuple(self._names[number * size : (number + 1) * size])) for number in self._parts.missing()]

    def tables(self) -> Iterator[pa.Table]:
        """The rows of all parts, in order.

        Raises:
            StoreError: if a part is missing.
        """
        return self._parts.tables()

    def finish(self) -> None:
        """Join the parts to one file, which becomes visible only when it is complete, and remove the parts.

        Raises:
            StoreError: if the file cannot be written.
        """
        self._parts.join(self.target)
        self._parts.remove()


def classify_part(classifier: Classifier, part: Part, folder: str) -> dict[str, int]:
    """Compute a part and write it atomically; runs on any host that can access the folder.

    Returns:
        Number of `pictures`, and of `broken` pictures among them.
    """
    table = classifier(part.names)
    data = io.BytesIO()
    pq.write_table(table, data)
    FileTree(folder, "").replace(part_file(part.number), data.getvalue())
    return {"pictures": len(part.names), "broken": len(part.names) - table["error"].null_count}


def part_file(number: int) -> str:
    """Name of a part's file in the folder."""
    return f"{number:06d}.parquet"


def _write_parquet(tables: Iterator[pa.Table], file: IO[bytes]) -> None:
    writer: Any = None
    for table in tables:
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(fitting(table, writer.schema))
    if writer is not None:
        writer.close()


def _write_json(tables: Iterator[pa.Table], file: IO[bytes]) -> None:
    """Write a list of objects, one per line."""
    separator = b"[\n"
    for table in tables:
        for row in table.to_pylist():
            file.write(separator + json.dumps(row, ensure_ascii=False).encode(errors="surrogateescape"))
            separator = b",\n"
    file.write(b"\n]\n")


def _write_csv(tables: Iterator[pa.Table], file: IO[bytes]) -> None:
    """Write a flat table; the classes after the first are in the columns `class_2`, `probability_2` and so on.

    For several labels per picture, the given labels are in one column, separated by `|`, and their probabilities are in another; the
    classes then begin with `class_1`.
    """
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
    writer: Any = None
    for table in tables:
        rows = table.to_pylist()
        if writer is None:
            sets = "labels" in table.column_names
            width = max((len(row["top_k"] or ()) for row in rows), default=1)
            ranks = [f"{column}_{rank}" for rank in range(1 if sets else 2, width + 1) for column in ("class", "probability")]
            own = ["labels", "probabilities"] if sets else ["class_id", "class_name", "confidence"]
            writer = csv.DictWriter(text, ["file", *own, "abstain", *ranks, "error"], lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
        writer.writerows(_flat(row) for row in rows)
    text.detach()


def _flat(row: Row) -> Row:
    """Flatten a row to texts and numbers; the CSV writer ignores columns that the table does not have."""
    ranked = {
        f"{column}_{rank}": one[key]
        for rank, one in enumerate(row["top_k"] or (), start=1)
        for column, key in (("class", "class_name"), ("probability", "probability"))
    }
    labels = row.get("labels") or ()
    given = {
        "labels": "|".join(one["class_name"] for one in labels),
        "probabilities": "|".join(f"{one['probability']:.4f}" for one in labels),
    }
    return row | ranked | given


_WRITERS: dict[str, Callable[[Iterator[pa.Table], IO[bytes]], None]] = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".parquet": _write_parquet,
}
