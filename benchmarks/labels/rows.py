"""How long does it take to list a table of a million pictures, compute its fingerprint and draw splits, before training can start?"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from cifar_ray.data.listing.tables import list_pictures
from cifar_ray.data.splits import complete
from cifar_ray.data.streamed import without_pixels

CLASSES, FILES_A_FOLDER = 1000, 1000


def rows(count: int = 1_000_000, rounds: int = 3) -> None:
    """Measure a CSV and a Parquet file with `count` rows, each in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = [f"pictures/{number // FILES_A_FOLDER:04}/{number:07}.jpg" for number in range(count)]
        for name in names:
            if name.endswith("000.jpg"):
                (root / name).parent.mkdir(parents=True)
            (root / name).write_bytes(b"picture")
        labels = np.random.default_rng(0).integers(0, CLASSES, count)
        table = pa.table({"path": names, "label": [f"class {label}" for label in labels]})
        csv.write_csv(table, root / "labels.csv")
        parquet.write_table(table, root / "labels.parquet")
        del names, labels, table
        for _ in range(rounds):
            for path in (root / "labels.csv", root / "labels.parquet"):
                subprocess.run([sys.executable, "-m", "benchmarks.labels.rows", str(path)], check=True)


def measure(table: Path) -> None:
    """Print the seconds of each part and the peak memory of this process."""
    started_s = time.perf_counter()
    listing = list_pictures(table)
    listed_s = time.perf_counter()
    listing.fingerprint()
    known_s = time.perf_counter()
    splits = complete(without_pixels(listing, set()), 0.1, 0.1, seed=0)
    drawn_s = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{table.name}: {len(splits.train):,} to train on; listing {listed_s - started_s:.2f} s, fingerprint {known_s - listed_s:.2f} s, "
        f"splits {drawn_s - known_s:.2f} s, together {drawn_s - started_s:.2f} s; "
        f"with imports {used.ru_utime + used.ru_stime:.2f} s of processor time, {used.ru_maxrss / 1e3:,.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
