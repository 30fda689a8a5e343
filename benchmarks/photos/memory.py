"""Peak memory of fitting the head, without its features, and of `train` for growing numbers of pictures."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from itertools import cycle, islice
from pathlib import Path

import folders
import numpy as np
from commands import ROOT, read_memory, train
from PIL import Image
from records import Records

WIDTH, CLASSES = 1280, 10
TRAIN_COUNTS = (500, 2000, 8000)
_STATUS = Path("/proc/self/status")


def measure(options: argparse.Namespace, work: Path, records: Records) -> None:
    """Measure the fit in a separate process, then `train` on growing numbers of pictures, which are crops of those in the folder."""
    finished = subprocess.run(
        [sys.executable, __file__, str(options.count)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds, features_mb, above_mb = map(float, finished.stdout.split())
    records.add("memory", "fit_head", seconds, None, options.count, **{"features MB": features_mb, "peak above the features MB": above_mb})
    files = folders.pictures(options.folder, options.limit)
    peaks = {}
    for count in TRAIN_COUNTS if options.limit is None else TRAIN_COUNTS[:2]:
        data = varied(files, count, work / f"pictures-{count}")
        with tempfile.TemporaryDirectory(dir=work) as cache:
            trained = train(data, work, Path(cache), "--method", "probe")
        peaks[count] = trained.finished.peak_anonymous_bytes
        rss_mb = trained.finished.peak_rss_bytes / 1e6
        records.add(
            "memory",
            f"train, {count:,} pictures",
            trained.finished.seconds,
            None,
            count,
            **{"anonymous MB": peaks[count] / 1e6, "RSS MB": rss_mb},
        )
    (few, low), (many, high) = list(peaks.items())[-2:]
    slope = (high - low) / (many - few)
    more = {"anonymous MB": (high + slope * (options.count - many)) / 1e6, "kB per picture": slope / 1e3}
    records.add("memory", "train, extrapolated", None, None, options.count, **more)


def varied(files: folders.Files, count: int, target: Path) -> Path:
    """Class folders with `count` pictures in all: each is a random crop of one of the folder's, so that none are near-duplicates."""
    rng = np.random.default_rng(0)
    each = count // len(files)
    for label, members in files.items():
        (target / label).mkdir(parents=True)
        for number, path in enumerate(islice(cycle(members), each)):
            with Image.open(path) as image:
                width, height = image.size
                left, top = rng.integers(0, width // 3 + 1), rng.integers(0, height // 3 + 1)
                crop = image.convert("RGB").crop((left, top, left + 2 * width // 3, top + 2 * height // 3))
            crop.save(target / label / f"{number}.jpg", quality=90)
    return target


def measure_fit(count: int) -> None:
    """Fit a head on random features that depend on the class; print seconds, MB of the features, and peak MB without the features."""
    from cifar_ray.training.probe.head import assign_folds, fit_head

    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, count)
    features = rng.standard_normal((count, WIDTH), np.float32)
    features += 0.1 * rng.standard_normal((CLASSES, WIDTH), np.float32)[labels]
    fold_of = assign_folds(labels, np.arange(count), 0)
    fit_head(features[:2000].copy(), labels[:2000], CLASSES, fold_of[:2000])  # warm-up: loads libraries and starts threads
    before = _anonymous()
    peak, stop = [before], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    fit_head(features, labels, CLASSES, fold_of)
    seconds = time.perf_counter() - started
    stop.set()
    watcher.join()
    print(seconds, features.nbytes / 1e6, (peak[0] - before) / 1e6)


def _anonymous() -> int:
    found = read_memory(_STATUS)
    assert found is not None
    return found[1]


if __name__ == "__main__":
    measure_fit(int(sys.argv[1]))
