"""Descriptions of classes: read from a table, part of every form of a data set, and never in the way of a table without them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data import folder, load_splits, open_splits
from cifar_ray.data.listing.tables import list_pictures
from cifar_ray.data.reading.local_cache import cache_folder
from cifar_ray.data.streamed import StreamedSplits
from cifar_ray.errors import DataError

CAT, NEWT = "A small cat, e.g. <b>Felis catus</b>.", "سمندل صغير"
CHOSEN = "description=about"


@pytest.fixture
def root(tmp_path: Path, make_pictures: Callable[..., list[Path]]) -> Path:
    """Four pictures, `000.png` to `003.png`, of the classes cat and newt in turn."""
    make_pictures(tmp_path / "pets", 4)
    return tmp_path / "pets"


def write(root: Path, texts: list[str], column: str = "about", table: str = "labels.csv") -> Path:
    rows = [f"{number:03}.png;{'newt' if number % 2 else 'cat'};{text}" for number, text in enumerate(texts)]
    (root / table).write_text("\n".join([f"image;label;{column}", *rows, ""]), encoding="utf-8")
    return root / table


def described(place: Path, columns: str | None = None) -> dict[str, str]:
    return dict(list_pictures(place, columns).class_descriptions)


@pytest.mark.parametrize("column", ["class_description", "Label Description", "description"])
def test_usual_names_are_found_cells_may_be_empty_and_texts_are_as_written(root: Path, column: str) -> None:
    table = write(root, [CAT, NEWT, f"  {CAT}", ""], column)
    assert described(table) == {"cat": CAT, "newt": NEWT}
    assert described(table, "description=") == {}
    assert described(write(root, [CAT, "", "", " "], column)) == {"cat": CAT}


def test_any_column_can_be_named_and_numbers_are_described_by_the_name_of_their_class(root: Path) -> None:
    rows = [f"{number:03}.png,{number % 2},{'newt' if number % 2 else 'cat'},{'wet' if number % 2 else 'dry'}" for number in range(4)]
    (root / "labels.csv").write_text("\n".join(["image,label,class_name,about", *rows, ""]))
    assert described(root / "labels.csv") == {}
    assert described(root / "labels.csv", CHOSEN) == {"cat": "dry", "newt": "wet"}


def test_a_column_that_the_user_named_is_not_taken_for_the_label(root: Path) -> None:
    rows = [f"{number:03}.png,wet,{'newt' if number % 2 else 'cat'}" for number in range(4)]
    (root / "labels.csv").write_text("\n".join(["image,about,what", *rows, ""]))
    assert described(root / "labels.csv", CHOSEN) == {"cat": "wet", "newt": "wet"}


UNUSABLE = [
    (["dry", "wet", "hot", "wet"], r"labels\.csv, row 3: column {} describes cat as 'hot', and elsewhere as 'dry'; use one text"),
    (["x" * 1001, "", "", ""], r"labels\.csv, row 1: column {}: the description of cat has 1,001 characters; the maximum is 1,000"),
    (["", "a\tb", "", ""], r"labels\.csv, row 2: column {}: the description of newt has unprintable characters or line breaks: 'a\\tb'"),
]


@pytest.mark.parametrize(("texts", "message"), UNUSABLE, ids=["two texts", "too long", "unprintable"])
def test_a_chosen_column_that_describes_no_class_is_an_error_and_another_one_is_left_alone(
    root: Path, texts: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError, match=message.format("about")) as error:
        list_pictures(write(root, texts), CHOSEN)
    assert "\n" not in str(error.value)
    with caplog.at_level(logging.INFO):
        listing = list_pictures(write(root, texts, "description"))
    assert listing.class_descriptions == {}
    assert listing.class_names == ("cat", "newt")
    assert "column description is not used, because it does not describe the classes" in caplog.text


def test_a_thousand_characters_are_allowed_and_two_long_texts_are_shown_where_they_differ(root: Path) -> None:
    long = "猫" * 999
    assert described(write(root, [f"{long}a", "", "", ""]), CHOSEN) == {"cat": f"{long}a"}
    with pytest.raises(DataError, match=r"'…猫{20}b', and elsewhere as '…猫{20}a'"):
        described(write(root, [f"{long}a", "", f"{long}b", ""]), CHOSEN)


def test_the_only_column_beside_the_picture_is_the_label_whatever_its_name(root: Path) -> None:
    (root / "labels.csv").write_text("image,description\n000.png,cat\n001.png,newt\n002.png,cat\n")
    listing = list_pictures(root / "labels.csv")
    assert (listing.class_names, listing.class_descriptions) == (("cat", "newt"), {})


def test_values_that_are_no_texts_and_several_labels_are_left_alone_unless_the_user_named_the_column(root: Path) -> None:
    images, lists = [f"{number:03}.png" for number in range(4)], pa.array([["a"], ["b"], [], None], pa.list_(pa.string()))
    parquet.write_table(pa.table({"image": images, "label": ["cat", "newt"] * 2, "description": lists}), root / "labels.parquet")
    assert described(root / "labels.parquet") == {}
    with pytest.raises(DataError, match="column description has no texts but list"):
        described(root / "labels.parquet", "description=description")
    (root / "labels.csv").write_text("image;label;about\n000.png;cat|newt;a\n001.png;cat;b\n002.png;newt;c\n")
    with pytest.raises(DataError, match="pictures with several labels cannot have descriptions of classes"):
        described(root / "labels.csv", CHOSEN)
    (root / "labels.csv").write_text((root / "labels.csv").read_text().replace("about", "description"))
    assert described(root / "labels.csv") == {}


def test_tables_of_several_splits_have_one_text_for_a_class(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(root, [CAT, ""], table="train.csv")
    write(root, ["", NEWT], table="val.csv")
    assert described(root, CHOSEN) == {"cat": CAT, "newt": NEWT}
    write(root, ["another", NEWT], table="val.csv")
    with pytest.raises(DataError, match=r"describes cat as 'another', and elsewhere as 'A small cat"):
        described(root, CHOSEN)
    for table in ("train.csv", "val.csv"):
        (root / table).write_text((root / table).read_text().replace("about", "description"))
    with caplog.at_level(logging.INFO):
        assert described(root) == {}
    assert caplog.text.count("is not used, because it does not describe the classes") == 1
    write(root, [CAT, NEWT, "a caption", ""], "description", table="train.csv")
    assert described(root) == {}, "val.csv alone would do"


def config(place: Path, **settings: Any) -> TrainConfig:
    fixed = {"dataset": "folder", "image_size": 8, "test_fraction": 0, "val_fraction": 0.4}
    return parse_config(TrainConfig, {**fixed, "data_dir": str(place), **settings})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"cat": CAT, "newt": NEWT}),
        ({"groups": ("felid=cat", "other=newt")}, {"felid": CAT, "other": NEWT}),
        ({"groups": ("cat=newt", "newt=cat")}, {"cat": NEWT, "newt": CAT}),
    ],
)
def test_splits_in_memory_and_streamed_ones_bring_the_descriptions(root: Path, settings: dict[str, Any], expected: dict[str, str]) -> None:
    table = write(root, [CAT, NEWT, CAT, NEWT], "description")
    for _ in range(2):  # the second time from the cache
        assert load_splits(config(table, **settings)).class_descriptions == expected
        streamed = open_splits(config(table, stream="always", **settings))
        assert isinstance(streamed, StreamedSplits)
        assert streamed.class_descriptions == expected


def test_a_group_of_several_classes_has_no_description(root: Path) -> None:
    for name in ("004.png", "005.png"):
        (root / name).write_bytes((root / "000.png").read_bytes())
    rows = [f"{number:03}.png,{name},about {name}" for number, name in enumerate(["cat", "newt", "dog"] * 2)]
    (root / "labels.csv").write_text("\n".join(["image,label,description", *rows, ""]))
    splits = load_splits(config(root / "labels.csv", groups=("cat=cat,dog", "newt=newt")))
    assert splits.class_descriptions == {"newt": "about newt"}


def test_a_changed_text_or_a_cache_of_before_decodes_nothing_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = load_splits(config(write(root, [""] * 4, "description")))
    [entry] = cache_folder().glob("labels-*px-*/entry.json")
    assert "descriptions" not in json.loads(entry.read_text())  # as an earlier release wrote it
    monkeypatch.setattr(folder, "decode_square", lambda *_, **__: pytest.fail("decoded again"))
    for text in (CAT, "another text"):
        splits = load_splits(config(write(root, [text, "", "", ""], "description")))
        assert splits.class_descriptions == {"cat": text}
        assert splits.fingerprint == without.fingerprint
        assert np.array_equal(splits.train.images, without.train.images)
