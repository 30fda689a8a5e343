"""How fast does one process stream the same pictures, in random order, from class folders, tars and an Arrow file?"""

from __future__ import annotations

import io
import json
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from cifar_ray.config import TrainConfig
from cifar_ray.data import StreamedSplits, open_splits

WIDTH_PX, SIZE_PX, CLASSES, A_TAR = 320, 64, 10, 500


def shards(count: int = 2000, rounds: int = 5) -> None:
    """Decode all training pictures in turn from each source."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["CIFAR_RAY_CACHE"] = str(root / "cache")
        pictures = [make_picture(number) for number in range(count)]
        sources: dict[str, Callable[[Path, list[bytes]], None]] = {"folders": write_folders, "tars": write_tars, "Arrow": write_arrow}
        splits = {}
        for name, write in sources.items():
            (root / name).mkdir()
            write(root / name, pictures)
            started_s = time.perf_counter()
            config = TrainConfig(dataset="folder", data_dir=str(root / name), image_size=SIZE_PX, stream="always", val_fraction=0.1)
            opened = open_splits(config)
            assert isinstance(opened, StreamedSplits)
            splits[name] = opened.train
            print(f"{name}: prepared in {time.perf_counter() - started_s:.1f} s", flush=True)
        rates: dict[str, list[float]] = {name: [] for name in splits}
        for number in range(rounds):
            for name, train in splits.items():
                order = np.random.default_rng(number).permutation(len(train))
                started_s = time.perf_counter()
                train.pictures.read(order)
                rates[name].append(len(train) / (time.perf_counter() - started_s))
        for name, found in rates.items():
            each = ", ".join(f"{rate:,.0f}" for rate in found)
            print(f"{name}: {each} pictures/s, median {statistics.median(found):,.0f}")


def make_picture(number: int) -> bytes:
    """A JPEG of smooth colours with noise, similar to a photo."""
    rng = np.random.default_rng(number)
    soft = Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8)).resize((WIDTH_PX, WIDTH_PX * 3 // 4), Image.Resampling.BICUBIC)
    noisy = np.asarray(soft) + rng.normal(0, 10, (WIDTH_PX * 3 // 4, WIDTH_PX, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_folders(root: Path, pictures: list[bytes]) -> None:
    """Write one folder for each class."""
    for number, content in enumerate(pictures):
        path = root / f"class {number % CLASSES}" / f"{number:06}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def write_tars(root: Path, pictures: list[bytes]) -> None:
    """Write WebDataset shards."""
    for first in range(0, len(pictures), A_TAR):
        with tarfile.open(root / f"train-{first // A_TAR:06}.tar", "w") as tar:
            for number, content in enumerate(pictures[first : first + A_TAR], first):
                for suffix, data in (("jpg", content), ("cls", str(number % CLASSES).encode())):
                    member = tarfile.TarInfo(f"{number:06}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def write_arrow(root: Path, pictures: list[bytes]) -> None:
    """Write the files that `Dataset.save_to_disk` writes."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": content, "path": None} for content in pictures], kind)
    table = pa.table({"image": cells, "label": [number % CLASSES for number in range(len(pictures))]})
    with pa.OSFile(str(root / "data-00000-of-00001.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}), encoding="utf-8")
    (root / "dataset_info.json").write_text("{}", encoding="utf-8")
