"""Tables of labels: what is understood without a flag, and what ends in one line with row and value."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from cifar_ray.data.listing.tables import list_pictures
from cifar_ray.data.reading.picture_source import Pictures
from cifar_ray.errors import DataError

LABELS = {"a.jpg": "cat", "b.png": "dog", "deep/c.jpg": "cat", "deep/d.jpg": "dog"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures in `photos/`."""
    for number, name in enumerate(LABELS):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 60 * number, np.uint8)).save(path)
    return tmp_path / "photos"


def found(place: Path, columns: str = "") -> dict[str, dict[str, str]]:
    """Class of each picture by split."""
    listing = list_pictures(place, columns)
    return {
        split: {os.fsdecode(name): listing.class_names[label] for name, label in zip(part.pictures.names, part.labels, strict=True)}
        for split, part in listing.parts.items()
    }


def csv(header: str, *rows: str) -> str:
    return "\n".join([header, *rows, ""])


ROWS = [f"{name},{label}" for name, label in LABELS.items()]
LINES = "".join(json.dumps({"file_name": name, "label": label}) + "\n" for name, label in LABELS.items())
ONE_HOT = csv("filename,cat,dog", *(f"{name},{int(label == 'cat')},{int(label == 'dog')}" for name, label in LABELS.items()))
COCO = json.dumps(
    {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(LABELS)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [{"image_id": number, "category_id": 7 if label == "cat" else 9} for number, label in enumerate(LABELS.values())],
    }
)
LABEL_STUDIO = json.dumps(
    [
        {
            "data": {"image": f"/data/upload/1/0123abcd-{name.rpartition('/')[2]}"},
            "annotations": [{"result": [{"value": {"choices": [label]}}]}],
        }
        for name, label in LABELS.items()
    ]
)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("labels.csv", csv("filename,species", *ROWS)),
        ("labels.csv", csv("filename,species,width", *(f"{row},640" for row in ROWS))),
        ("labels.csv", "\ufeff" + csv("image;class", *(row.replace(",", ";") for row in ROWS)).replace("\n", "\r\n")),
        ("train.tsv", csv("path\tcategory", *(row.replace(",", "\t") for row in ROWS))),
        ("labels.csv", csv("id,breed", *(row.replace(".jpg", "").replace(".png", "").replace("deep/", "") for row in ROWS))),
        ("labels.csv", csv("where,what", *ROWS)),
        ("metadata.jsonl", LINES),
        ("_classes.csv", ONE_HOT),
        ("instances_default.json", COCO),
        ("annotations.json", LABEL_STUDIO),
        ("labels.json", json.dumps([{"image": name, "label": label} for name, label in LABELS.items()])),
    ],
    ids=[
        "csv", "more columns", "semicolons, BOM, CRLF", "tsv", "ids without folder and suffix", "unusual names", "imagefolder", "one-hot",
        "COCO", "Label Studio", "JSON",
    ],
)  # fmt: skip
def test_a_table_beside_the_pictures_says_the_labels(folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content, encoding="utf-8", newline="")
    assert found(folder) == found(folder / file) == {"train": LABELS}


def test_parquet_with_numbers_as_labels_sorts_classes_naturally(folder: Path) -> None:
    table = pa.table({"image": list(LABELS), "label": [10, 2, 10, 2]})
    parquet.write_table(table, folder / "labels.parquet")
    assert list_pictures(folder).class_names == ("2", "10")
    assert found(folder)["train"]["a.jpg"] == "10"


def test_a_column_or_a_table_for_each_split_decides_the_splits(folder: Path) -> None:
    (folder / "labels.csv").write_text(
        csv("file,label,split", *(f"{row},{split}" for row, split in zip(ROWS, ("Train", "", "VALID", "test"), strict=True)))
    )
    parts = found(folder)
    assert {split: list(files) for split, files in parts.items()} == {
        "train": ["a.jpg", "b.png"],
        "val": ["deep/c.jpg"],
        "test": ["deep/d.jpg"],
    }
    (folder / "labels.csv").unlink()
    (folder / "train.csv").write_text(csv("file,label", *ROWS[:2]))
    (folder / "val.csv").write_text(csv("file,label", *ROWS[2:]))
    (folder / "test.csv").write_text("file\na.jpg\n")  # without labels, as competitions publish it
    assert {split: list(files) for split, files in found(folder).items()} == {
        "train": ["a.jpg", "b.png"],
        "val": ["deep/c.jpg", "deep/d.jpg"],
    }


def test_split_folders_may_have_a_table_each(folder: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "set" / split).mkdir(parents=True)
        for name in ("a.jpg", "b.png"):
            (tmp_path / "set" / split / name).write_bytes((folder / name).read_bytes())
        (tmp_path / "set" / split / "metadata.csv").write_text(csv("file_name,label", *ROWS[:2]))
    assert found(tmp_path / "set") == {split: {f"{split}/a.jpg": "cat", f"{split}/b.png": "dog"} for split in ("train", "test")}


def test_class_folders_beside_a_table_of_other_files_win(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        (folder / name / "1.jpg").write_bytes((folder / "a.jpg").read_bytes())
    (folder / "labels.csv").write_text(csv("file,label", "gone1.jpg,cat", "gone2.jpg,dog", "gone3.jpg,cat"))
    (folder / "deep" / "c.jpg").unlink()
    (folder / "deep" / "d.jpg").unlink()
    (folder / "deep").rmdir()
    caplog.set_level(logging.INFO)
    assert found(folder) == {"train": {"cat/1.jpg": "cat", "dog/1.jpg": "dog"}}
    assert "class folders say the labels" in caplog.text


def test_the_user_names_columns_that_nothing_else_tells(folder: Path) -> None:
    path = folder / "labels.csv"
    path.write_text(csv("file,colour,animal", *(f"{row.split(',')[0]},red,{row.split(',')[1]}" for row in ROWS)))
    with pytest.raises(DataError, match=r"which column is the label\? colour and animal could be it. Columns: file, colour, animal; "):
        list_pictures(path)
    assert found(path, "label=animal") == found(folder, "image=file,label=animal") == {"train": LABELS}
    with pytest.raises(DataError, match=r"--columns label=kind: no such column. Available: file, colour, animal"):
        list_pictures(path, "label=kind")
    with pytest.raises(DataError, match=r"--columns kind: expected image=COLUMN,label=COLUMN,split=COLUMN,weight=COLUMN,name=COLUMN"):
        list_pictures(path, "kind")


def test_a_few_missing_pictures_are_named_and_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = ROWS * 60
    (folder / "labels.csv").write_text(csv("file,label", *rows[:100], "gone.jpg,cat", *rows[100:]))
    assert len(list_pictures(folder).parts["train"]) == 240
    assert "labels.csv: left out 1 row whose picture is missing: row 101: gone.jpg" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("file,label\n", "the table has no rows"),
        ("file,file,label\na.jpg,a.jpg,cat\n", "the header has the column 'file' twice"),
        ("file,label\na.jpg\n", "Expected 2 columns, got 1"),
        (csv("file,label", "a.jpg,cat", "b.png,"), "row 2: column label is empty"),
        (csv("file,label", "a.jpg,cat", "b.png,cat"), "all rows have the label 'cat'; at least two classes are needed"),
        (csv("file,label", *ROWS[:3], "../../other.jpg,dog"), r"row 4: \.\./\.\./other.jpg is outside .*photos; move the table"),
        (csv("file,label", *ROWS[:3], "/etc/other.jpg,dog"), "row 4: /etc/other.jpg is outside"),
        (csv("file,label", *ROWS, "gone.jpg,cat"), "1 of 5 pictures are not in .*; add them, or .*The first: row 5: gone.jpg"),
        (csv("file,label", *(f"{name},{number}" for number, name in enumerate(LABELS))), "column label has another value in each row"),
        (csv("file,label", *(f"a.jpg,{number / 7:.3f}" for number in range(50))), "predicting a number is regression"),
        (csv("file,label,split", *(f"{row},later" for row in ROWS)), "unknown split 'later'; expected train, val or test"),
        (csv("file,label,split", *(f"{row},test" for row in ROWS)), "no row belongs to the split train, only to test"),
        (csv("file,label,split", *(f"{row},train" for row in ROWS), "a.jpg,eel,test"), "class 'eel' is only in test"),
        (csv("file,label", *ROWS, "a.jpg,c\x07at"), r"the label 'c\\x07at' has unprintable characters"),
        (csv("file,cat,dog", "a.jpg,1,0", "b.png,0,0"), "row 2: 0 of the columns cat, dog, … are 1; expected one label"),
    ],
)  # fmt: skip
def test_a_bad_table_is_one_line(folder: Path, content: str, message: str) -> None:
    (folder / "some.csv").write_text(content)
    with pytest.raises(DataError, match=message) as refused:
        list_pictures(folder / "some.csv")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "a.jsonl",
            LINES + '{"file_name": "a.jpg", \n',
            r"a.jsonl, line 5: not JSON \(.*\); .* it: \{\"file_name\": \"a.jpg\",",
        ),
        ("a.jsonl", LINES + "[1]\n", "line 5: expected an object"),
        ("a.json", "{", "not JSON"),
        ("a.json", '{"a": 1}', "expected a list of objects, or an export of Label Studio or COCO"),
        ("a.json", '{"images": [{}], "categories": [], "annotations": []}', "damaged COCO export"),
        ("a.jsonl", '{"file": "a.jpg", "label": []}\n', "row 1: column label has no label; expected one label"),
        ("a.parquet", "no parquet", "a.parquet: "),
        ("a.csv", b"file,label\na.jpg,caf\xe9\n", "a.csv: .*UTF"),
    ],
)
def test_a_damaged_file_is_one_line(folder: Path, file: str, content: str | bytes, message: str) -> None:
    (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message) as refused:
        list_pictures(folder / file)
    assert "\n" not in str(refused.value)


def test_a_label_in_two_forms_of_unicode_is_one_class(folder: Path) -> None:
    rows = [*ROWS[:2], "deep/c.jpg,caf\u00e9", "deep/d.jpg,cafe\u0301"]
    (folder / "labels.csv").write_text(csv("file,label", *rows), encoding="utf-8")
    assert list_pictures(folder).class_names == ("caf\u00e9", "cat", "dog")


def test_a_listing_changes_with_its_labels(folder: Path) -> None:
    (folder / "labels.csv").write_text(csv("file,label", *ROWS))
    before = list_pictures(folder).fingerprint()
    (folder / "labels.csv").write_text(csv("file,label", *ROWS[:3], "deep/d.jpg,cat"))
    assert list_pictures(folder).fingerprint() != before


def test_a_listing_changes_with_the_names_of_its_classes(folder: Path) -> None:
    (folder / "labels.csv").write_text(csv("file,label", *ROWS))
    before = list_pictures(folder).fingerprint()
    (folder / "labels.csv").write_text(csv("file,label", *(row.replace("cat", "cow") for row in ROWS)))
    assert list_pictures(folder).fingerprint() != before


def test_names_beside_numbers_are_shown_and_the_numbers_sort(folder: Path) -> None:
    numbers = {"cat": "10", "dog": "2"}
    rows = [f"{name},{numbers[label]},{label}" for name, label in LABELS.items()]
    (folder / "labels.csv").write_text(csv("file,label,class_name", *rows))
    assert list_pictures(folder).class_names == ("dog", "cat")
    assert found(folder)["train"] == LABELS
    assert list_pictures(folder, "label=label,name=").class_names == ("2", "10")
    # where a number has two names, the names are the labels
    (folder / "labels.csv").write_text(csv("file,label,class_name", *(row.replace(",10,", ",2,") for row in rows)))
    assert list_pictures(folder).class_names == ("cat", "dog")
    with pytest.raises(DataError, match=r"row 2: label 2 is called 'dog' here and 'cat' elsewhere; use one name"):
        list_pictures(folder / "labels.csv", "label=label,name=class_name")


def test_each_picture_has_its_weight_unless_the_column_is_switched_off(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (folder / "labels.csv").write_text(csv("file,label,weight", *(f"{row},{number / 2}" for number, row in enumerate(ROWS))))
    weights = list_pictures(folder).parts["train"].weights
    assert weights is not None
    assert (weights.dtype, weights.tolist()) == (np.float32, [0.0, 0.5, 1.0, 1.5])
    assert "weights of pictures from column weight" in caplog.text
    assert list_pictures(folder, "weight=").parts["train"].weights is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("1", "-0.5", "1", "1"), r"row 2: column weight has -0.5; a weight is a number from 0 to 1e\+06"),
        (("1", "1", "heavy", "1"), "row 3: column weight has heavy; a weight is a number"),
        (("1", "", "1", "1"), "row 2: column weight has ; a weight is a number"),
        (("nan", "1", "1", "1"), "row 1: column weight has nan"),
        (("inf", "1", "1", "1"), "row 1: column weight has inf"),
        (("0", "0", "0", "0"), "column weight: all weights are 0"),
    ],
)
def test_a_bad_weight_is_one_line(folder: Path, values: tuple[str, ...], message: str) -> None:
    (folder / "labels.csv").write_text(csv("file,label,weight", *(f"{row},{value}" for row, value in zip(ROWS, values, strict=True))))
    with pytest.raises(DataError, match=message):
        list_pictures(folder / "labels.csv")


def test_of_many_rows_the_times_of_some_files_are_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "labels.csv").write_text(csv("file,label", *ROWS * 6000))
    listing = list_pictures(folder)
    asked: list[int] = []
    monkeypatch.setattr(Pictures, "states", lambda pictures: asked.append(len(pictures)) or [(1, 1)] * len(pictures))
    listing.fingerprint()
    assert 1000 <= sum(asked) < 1100
    asked.clear()
    replace(listing, is_table=False).fingerprint()
    assert sum(asked) == 24_000


def test_paths_with_dots_and_absolute_paths_inside_the_folder_are_understood(folder: Path) -> None:
    spelled = ["./a.jpg", "deep/../b.png", f"{folder}/deep/c.jpg", "deep//d.jpg"]
    (folder / "labels.csv").write_text(
        csv("file,label", *(f"{name},{label}" for name, label in zip(spelled, LABELS.values(), strict=True)))
    )
    assert found(folder)["train"] == LABELS
