"""Data sets that hold their pictures themselves: tars, Arrow and Parquet files, on a disk or an object store."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from pyarrow.fs import FileSystem

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data import StreamedImages, StreamedSplits, load_splits, open_splits
from cifar_ray.data.listing.tables import list_pictures
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.errors import DataError, ImageError
from cifar_ray.inference.batch.pictures import list_pictures as to_predict
from cifar_ray.inference.batch.pictures import read_picture

LABELS = ["2", "10", "2", "10", "2", "10"]
SIZE_PX = 16


def png(number: int) -> bytes:
    """A picture of one shade."""
    file = io.BytesIO()
    Image.fromarray(np.full((SIZE_PX, SIZE_PX, 3), 40 * number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def shades(images: npt.NDArray[np.uint8]) -> list[int]:
    """The numbers of pictures from `png`."""
    return [int(image[0, 0, 0]) // 40 for image in images]


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(rows: Iterator[int] | range, suffix: str = "cls", **more: str) -> dict[str, bytes]:
    """Members of a tar: pictures and their labels."""
    members = {}
    for row in rows:
        members |= {f"{row:04}.png": png(row), f"{row:04}.{suffix}": LABELS[row].encode()}
        members |= {f"{row:04}.{name}": text.format(LABELS[row]).encode() for name, text in more.items()}
    return members


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def cells(rows: range, names: tuple[str, ...] = ("two", "ten"), kind: pa.DataType = IMAGE, labels: list[int] | None = None) -> pa.Table:
    """A table as `datasets` has it: `two` is 0."""
    pictures: list[Any] = [png(row) if kind == pa.binary() else {"bytes": png(row), "path": f"{row}.png"} for row in rows]
    label = {"names": list(names), "_type": "ClassLabel"}
    info = json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})
    schema = pa.schema([("image", kind), ("label", pa.int64())], metadata={"huggingface": info})
    return pa.table([pa.array(pictures, kind), [int(LABELS[row] == "10") for row in rows] if labels is None else labels], schema=schema)


def save_to_disk(folder: Path, tables: list[pa.Table]) -> Path:
    """What `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    files = []
    for number, table in enumerate(tables):
        files.append({"filename": f"data-{number:05}-of-{len(tables):05}.arrow"})
        with pa.OSFile(str(folder / files[-1]["filename"]), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return folder


def tar_of_numbers(root: Path) -> Path:
    return write_tar(root / "set.tar", samples(range(6)))


def tars_of_two_splits(root: Path) -> Path:
    write_tar(root / "set-train-0000.tar", samples(range(2)))
    write_tar(root / "set-train-0001.tar", samples(range(2, 4)))
    write_tar(root / "set-val-0000.tar", samples(range(4, 6)))
    return root


def tars_with_json(root: Path) -> Path:
    members = {}
    for row in range(6):
        members |= {f"./deep/{row}.PNG": png(row), f"./deep/{row}.json": json.dumps({"label": int(LABELS[row]), "width": 16}).encode()}
    return write_tar(root / "train" / "0.tar", members).parent.parent


def dataset_dict(root: Path) -> Path:
    save_to_disk(root / "saved" / "train", [cells(range(3)), cells(range(3, 4))])
    save_to_disk(root / "saved" / "test", [cells(range(4, 6))])
    (root / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    return root / "saved"


def parquet_of_bytes(root: Path) -> Path:
    parquet.write_table(cells(range(6), kind=pa.binary()), root / "bytes.parquet", row_group_size=2)
    return root / "bytes.parquet"


def parquet_shards(root: Path) -> Path:
    (root / "hub" / "data").mkdir(parents=True)
    for number in range(2):
        parquet.write_table(cells(range(2 * number, 2 * number + 2)), root / "hub" / "data" / f"train-{number:05}-of-00002.parquet")
    parquet.write_table(cells(range(4, 6)), root / "hub" / "data" / "validation-00000-of-00001.parquet")
    return root / "hub"


SOURCES = [
    tar_of_numbers, tars_of_two_splits, tars_with_json, dataset_dict, parquet_of_bytes, parquet_shards,
    lambda root: save_to_disk(root / "one", [cells(range(6))]),
]  # fmt: skip


def config(place: Path | str, **settings: Any) -> TrainConfig:
    settings = {"image_size": SIZE_PX, "val_fraction": 0.3, "test_fraction": 0.0} | settings
    return parse_config(TrainConfig, {"dataset": "folder", "data_dir": str(place)} | settings)


@pytest.mark.parametrize("make", SOURCES, ids=["tar", "tars", "tars with JSON", "DatasetDict", "Parquet", "Parquet shards", "Dataset"])
@pytest.mark.parametrize("stream", ["never", "always"])
def test_each_picture_has_its_label_in_memory_and_streamed(tmp_path: Path, make: Any, stream: str) -> None:
    splits = open_splits(config(make(tmp_path), stream=stream))
    assert isinstance(splits, StreamedSplits) == (stream == "always")
    assert splits.train.class_names in (("2", "10"), ("two", "ten"))
    assert labels_by_number(splits) == {number: ["2", "10"].index(label) for number, label in enumerate(LABELS)}


def labels_by_number(splits: TrainingSplits) -> dict[int, int]:
    """Label of each picture by its number, over all splits."""
    found: dict[int, int] = {}
    for _, part in splits:
        images = part.pictures.read(np.arange(len(part))) if isinstance(part, StreamedImages) else part.images
        found |= dict(zip(shades(images), part.labels.tolist(), strict=True))
    return found


def test_names_of_shards_say_the_splits(tmp_path: Path) -> None:
    for make in (tars_of_two_splits, parquet_shards):
        parts = list_pictures(make(tmp_path)).parts
        assert {split: len(part) for split, part in parts.items()} == {"train": 4, "val": 2}
    assert {split: len(part) for split, part in list_pictures(dataset_dict(tmp_path)).parts.items()} == {"train": 4, "test": 2}


def test_pictures_are_named_by_shard_and_key(tmp_path: Path) -> None:
    assert list_pictures(tar_of_numbers(tmp_path)).parts["train"].pictures.names[1] == b"set.tar/0001.png"
    assert list_pictures(parquet_of_bytes(tmp_path)).parts["train"].pictures.names[1] == b"bytes.parquet/row2"


def test_a_tar_that_changes_is_indexed_again_and_another_run_takes_the_index(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    tar = tar_of_numbers(tmp_path)
    before = list_pictures(tar)
    assert list_pictures(tar).fingerprint() == before.fingerprint()
    assert caplog.text.count("reading the index of 1 tar") == 1
    write_tar(tar, samples(range(5)))
    assert len(list_pictures(tar)) == 5
    assert list_pictures(tar).fingerprint() != before.fingerprint()


def test_datasets_that_hold_paths_only_read_the_files(tmp_path: Path) -> None:
    for row in range(6):
        (tmp_path / f"{row}.png").write_bytes(png(row))
    table = cells(range(6))
    pictures = pa.array([{"bytes": None, "path": f"{row}.png"} for row in range(6)], IMAGE)
    parquet.write_table(table.set_column(0, table.schema.field("image"), pictures), tmp_path / "paths.parquet")
    assert labels_by_number(load_splits(config(tmp_path / "paths.parquet"))) == {0: 0, 1: 1, 2: 0, 3: 1, 4: 0, 5: 1}


def test_a_test_split_without_labels_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = dataset_dict(tmp_path)
    shutil.rmtree(folder / "test")
    save_to_disk(folder / "test", [cells(range(4, 6), labels=[-1, -1])])
    assert list(list_pictures(folder).parts) == ["train"]
    assert "left out the split test, because its pictures have no labels" in caplog.text


def test_the_text_beside_a_number_is_the_name_of_the_class(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", samples(range(6), txt="class {}"))
    assert list_pictures(tar).class_names == ("class 2", "class 10")


@pytest.mark.parametrize("make", [tars_of_two_splits, dataset_dict, parquet_shards], ids=["tars", "DatasetDict", "Parquet"])
@pytest.mark.parametrize("stream", ["never", "always"])
def test_an_object_store_gives_the_same_pictures_as_a_disk(tmp_path: Path, s3: Any, make: Any, stream: str) -> None:
    uri = upload(s3, make(tmp_path))
    local, remote = (open_splits(config(place, stream=stream)) for place in (make_again(tmp_path, make), uri))
    assert remote.fingerprint == local.fingerprint
    assert labels_by_number(remote) == labels_by_number(local)


def make_again(root: Path, make: Any) -> Path:
    (root / "again").mkdir()
    place: Path = make(root / "again")
    return place


def upload(s3: Any, folder: Path) -> str:
    """Copies a folder to a bucket and returns its URI."""
    uri: str = s3.uri("some/data")
    file_system, base = FileSystem.from_uri(uri)
    for path in folder.rglob("*"):
        if path.is_file():
            with file_system.open_output_stream(f"{base}/{path.relative_to(folder).as_posix()}") as stream:
                stream.write(path.read_bytes())
    return uri


@pytest.mark.parametrize("split", ["", "train/"])
def test_class_folders_of_an_object_store(tmp_path: Path, s3: Any, split: str) -> None:
    for row, label in enumerate(LABELS):
        path = tmp_path / f"{split}{label}" / "deep" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(row))
    uri = upload(s3, tmp_path)
    splits = load_splits(config(uri))
    assert splits.train.class_names == ("2", "10")
    assert labels_by_number(splits) == {0: 0, 1: 1, 2: 0, 3: 1, 4: 0, 5: 1}


def test_a_table_of_an_object_store(tmp_path: Path, s3: Any) -> None:
    for row in range(6):
        (tmp_path / f"{row}.png").write_bytes(png(row))
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{row}.png,{label}\n" for row, label in enumerate(LABELS)))
    uri = upload(s3, tmp_path)
    base, _, query = uri.partition("?")
    for place in (uri, f"{base}/labels.csv?{query}"):
        assert labels_by_number(load_splits(config(place))) == {0: 0, 1: 1, 2: 0, 3: 1, 4: 0, 5: 1}


@pytest.mark.parametrize("make", [tar_of_numbers, tars_of_two_splits, dataset_dict, parquet_of_bytes], ids=["tar", "tars", "HF", "Parquet"])
def test_prediction_reads_each_picture_of_a_source_by_its_name(tmp_path: Path, make: Any) -> None:
    names = to_predict([str(make(tmp_path))], [])
    assert sorted(names.index(name) for name in names if read_picture(name) in map(png, range(6))) == list(range(6))
    with pytest.raises(ImageError, match=r"gone.png: no such picture in the file"):
        read_picture(f"{names[0].rpartition('/')[0]}/gone.png")


def test_prediction_reads_tables_and_tars_of_an_object_store(tmp_path: Path, s3: Any) -> None:
    write_tar(tmp_path / "a.tar", samples(range(3)))
    (tmp_path / "0.png").write_bytes(png(5))
    (tmp_path / "t.csv").write_text("file,label\n0.png,2\n")
    base, _, query = upload(s3, tmp_path).partition("?")
    tar = to_predict([f"{base}/a.tar?{query}"], [])
    assert tar[1] == f"{base}/a.tar/0001.png?{query}"
    assert read_picture(tar[1]) == png(1)
    assert read_picture(*to_predict([f"{base}/t.csv?{query}"], [])) == png(5)


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


BAD = {
    "cut in a picture": (lambda root: cut(tar_of_numbers(root), 600), r"set.tar: damaged tar after 0000 \(unexpected end of data\)"),
    "cut in a header": (lambda root: cut(tar_of_numbers(root), 2048 + 100), r"set.tar: the tar is cut off after 0000; copy it again"),
    "no tar": (lambda root: cut(write_tar(root / "a.tar", {}), 0), r"a.tar: damaged tar \(empty file\)"),
    "empty tar": (lambda root: write_tar(root / "a.tar", {}), r"a.tar: no picture in 1 file"),
    "no label": (lambda root: write_tar(root / "a.tar", samples(range(5)) | {"7.png": png(1)}), r"a.tar/7.png: column cls is empty"),
    "bad JSON": (
        lambda root: write_tar(root / "a.tar", {"7.png": png(1), "7.json": b'{"label": 1'}),
        r"a.tar/7.png, member json: not JSON \(.*\); mend or remove it: \{.label.: 1",
    ),
    "two pictures": (lambda root: write_tar(root / "a.tar", {"7.png": png(1), "7.jpg": b""}), "a.tar: two pictures have the key 7"),
    "two labels": (
        lambda root: write_tar(root / "a.tar", {"7.png": png(1), "7.cls": b"4", "./7.cls": b"5"}), "a.tar: two members are called 7.cls",
    ),
    "one class": (lambda root: write_tar(root / "a.tar", {"7.png": png(1), "7.cls": b"4"}), "all rows have the label '4'"),
    "label that is no text": (
        lambda root: write_tar(root / "a.tar", {"7.png": png(1), "7.cls": b"\xff"}), "a.tar, key 7: the label is not text",
    ),
    "Arrow cut": (
        lambda root: cut(save_to_disk(root / "one", [cells(range(6))]) / "data-00000-of-00001.arrow", 1500).parent,
        "data-00000-of-00001.arrow: cannot be read",
    ),
    "Arrow missing": (lambda root: unlink(dataset_dict(root), "train/data-00001-of-00002.arrow"), "00001-of-00002.arrow: cannot be read"),
    "bad state": (lambda root: write(save_to_disk(root / "one", [cells(range(6))]), "state.json", "{"), "state.json: damaged"),
    "unknown label": (
        lambda root: save_to_disk(root / "one", [cells(range(6), labels=[0, 1, 2, 0, 1, 0])]),
        r"data-00000-of-00001.arrow/row3: column label has 2; its classes are 0–1",
    ),
    "same names": (lambda root: save_to_disk(root / "one", [cells(range(6), ("a", "a"))]), "label 1 is called 'a'; give each class"),
    "Parquet cut": (lambda root: cut(parquet_of_bytes(root), 300), "bytes.parquet: cannot be read"),
}  # fmt: skip


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder


def unlink(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_shards_are_one_line(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as refused:
        list_pictures(make(tmp_path))
    assert "\n" not in str(refused.value)


def test_a_picture_that_is_no_picture_is_named_with_its_shard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tar = write_tar(tmp_path / "a.tar", samples(range(6)) | {"0001.png": b"no picture"})
    assert len(load_splits(config(tar, val_fraction=0.0)).train) == 5
    assert "a.tar/0001.png: empty, damaged or in an unsupported format" in caplog.text
