"""Tables with several labels for each picture: what is understood, and what stays one label."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from cifar_ray.config import TaskName, TrainConfig, parse_config
from cifar_ray.data import load_splits
from cifar_ray.data.listing.tables import list_pictures
from cifar_ray.errors import DataError

LABELS = {"a.png": {"cat", "dog"}, "b.png": {"dog"}, "c.png": set(), "d.png": {"cat", "eel", "dog"}, "e.png": {"cat"}, "f.png": {"eel"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(LABELS):
        Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(tmp_path / name)
    return tmp_path


def found(place: Path, task: TaskName | None = None) -> dict[str, set[str]]:
    """Labels of each picture."""
    listing = list_pictures(place, None, task or "auto")
    part = listing.parts["train"]
    assert part.labels.dtype == np.uint8
    names = np.array(listing.class_names)
    return {os.fsdecode(name): set(names[row == 1].tolist()) for name, row in zip(part.pictures.names, part.labels, strict=True)}


def csv(*rows: str, header: str = "file,label") -> str:
    return "\n".join([header, *rows, ""])


def joined(delimiter: str, quote: str = "") -> str:
    return csv(*(f"{name},{quote}{delimiter.join(sorted(labels))}{quote}" for name, labels in LABELS.items()))


WRITTEN = {
    "pipes": ("labels.csv", joined("|")),
    "pipes with spaces": ("labels.csv", joined(" | ")),
    "semicolons": ("labels.csv", joined(";")),
    "commas": ("labels.csv", joined(", ", '"')),
    "JSON lists in CSV": (
        "labels.csv",
        csv(*(f'{n},"{json.dumps(sorted(of)).replace(chr(34), chr(34) * 2)}"' for n, of in LABELS.items())),
    ),
    "Python lists in CSV": ("labels.csv", csv(*(f'{name},"{sorted(labels)}"' for name, labels in LABELS.items()))),
    "lists": ("labels.jsonl", "".join(json.dumps({"file": n, "label": sorted(of)}) + "\n" for n, of in LABELS.items())),
    "columns of 0 and 1": (
        "labels.csv",
        csv(*(f"{n},{int('cat' in of)},{int('dog' in of)},{int('eel' in of)}" for n, of in LABELS.items()), header="file,cat,dog,eel"),
    ),
}


@pytest.mark.parametrize("form", WRITTEN)
def test_several_labels_are_understood_and_the_log_says_how(folder: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    file, content = WRITTEN[form]
    (folder / file).write_text(content)
    with caplog.at_level(logging.INFO, logger="cifar_ray"):
        assert found(folder) == LABELS
    assert "6 rows, several labels for each picture" in caplog.text
    assert "1.3 on average, 1 rows without" in caplog.text


def test_lists_in_parquet_are_understood(folder: Path) -> None:
    parquet.write_table(pa.table({"image": list(LABELS), "label": [sorted(of) for of in LABELS.values()]}), folder / "labels.parquet")
    assert found(folder) == LABELS


@pytest.mark.parametrize(
    "names",
    [
        ("Chair, wooden", "Table, oak", "Lamp"),
        ("tench, Tinca tinca", "goldfish", "crane", "crane, bird"),
        ("red, dark", "red, light", "blue, dark", "blue, light"),
        ("black|white", "grey"),
        ("AT&T; Inc.", "IBM"),
    ],
)
def test_a_comma_in_a_name_does_not_make_it_two(folder: Path, names: tuple[str, ...]) -> None:
    files = list(LABELS)
    rows = [f'{files[number]},"{names[number % len(names)]}"' for number in range(6)]
    (folder / "labels.csv").write_text(csv(*rows))
    listing = list_pictures(folder)
    assert listing.parts["train"].labels.dtype == np.int64
    assert set(listing.class_names) == set(names)


def test_a_task_decides_outright(folder: Path) -> None:
    (folder / "labels.csv").write_text(csv("a.png,cat|dog", "b.png,dog", "c.png,cat|dog", "d.png,dog"))
    assert set(found(folder)["a.png"]) == {"cat", "dog"}
    assert list_pictures(folder, None, "single-label").class_names == ("cat|dog", "dog")
    (folder / "labels.csv").write_text(csv("a.png,cat", "b.png,dog", "c.png,", "d.png,cat"))
    assert found(folder, "multi-label") == {"a.png": {"cat"}, "b.png": {"dog"}, "c.png": set(), "d.png": {"cat"}}
    with pytest.raises(DataError, match="row 3: column label is empty"):
        list_pictures(folder)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("lists", r"labels.jsonl, row 1: column label has cat, dog; expected one label; --task multi-label takes any number"),
        ("columns of 0 and 1", r"labels.csv, row 1: 2 of the columns cat, dog, eel, … are 1; expected one label"),
    ],
)
def test_several_labels_where_one_is_asked_for_are_one_line(folder: Path, form: str, message: str) -> None:
    file, content = WRITTEN[form]
    (folder / file).write_text(content)
    with pytest.raises(DataError, match=message) as refused:
        list_pictures(folder, None, "single-label")
    assert "\n" not in str(refused.value)


def test_multi_label_needs_a_table(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    with pytest.raises(DataError, match="class folders give each picture one label; for several of them, --task multi-label needs a table"):
        list_pictures(tmp_path, None, "multi-label")


def test_a_label_only_in_the_test_part_is_one_line(folder: Path) -> None:
    rows = ["a.png,cat|dog,train", "b.png,dog,train", "c.png,cat,train", "d.png,cat|eel,test"]
    (folder / "labels.csv").write_text(csv(*rows, header="file,label,split"))
    with pytest.raises(DataError, match="class 'eel' is only in test; add training images for it, or remove it from test"):
        list_pictures(folder)


def test_the_table_of_one_split_with_one_label_in_each_row_follows_the_others(folder: Path) -> None:
    (folder / "train.csv").write_text(csv("a.png,cat|dog", "b.png,dog", "c.png,cat"))
    (folder / "val.csv").write_text(csv("d.png,cat", "e.png,dog", "f.png,dog"))
    listing = list_pictures(folder)
    assert listing.parts["val"].labels.tolist() == [[1, 0], [0, 1], [0, 1]]


def test_pictures_with_label_sets_are_loaded_divided_and_streamed_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_RAY_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    rows = []
    (tmp_path / "p").mkdir()
    for number in range(60):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(tmp_path / "p" / f"{number}.png")
        rows.append(f"p/{number}.png,{'|'.join(name for name, rate in (('cat', 0.5), ('dog', 0.4), ('eel', 0.1)) if rng.random() < rate)}")
    (tmp_path / "labels.csv").write_text(csv(*rows))
    values = {"dataset": "folder", "data_dir": str(tmp_path / "labels.csv"), "image_size": 8, "val_fraction": 0.2, "test_fraction": 0.2}
    splits = load_splits(parse_config(TrainConfig, values))
    assert {name: len(part) for name, part in splits} == {"train": 38, "val": 10, "test": 12}
    counts = np.array([part.class_counts() for _, part in splits])
    np.testing.assert_allclose(counts, np.outer([0.64, 0.16, 0.2], counts.sum(axis=0)), atol=1.3)
    from cifar_ray.data.sources import open_splits

    streamed = open_splits(parse_config(TrainConfig, values | {"stream": "always"}))
    assert streamed.fingerprint == splits.fingerprint
    np.testing.assert_array_equal(streamed.train.labels, splits.train.labels)
