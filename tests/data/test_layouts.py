"""Folders as they come: their layouts, what lies beside the pictures, and what is said of a folder that does not fit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cifar_ray.data.listing import layouts
from cifar_ray.data.listing.layouts import list_folder
from cifar_ray.errors import DataError

Make = Callable[..., list[Path]]


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def tree(root: Path, splits: tuple[str, ...] = ("",), count: int = 2) -> Path:
    """Two classes in each split; listing does not open the pictures."""
    for split in splits:
        for name in ("ant", "bee"):
            touch(root / split / name, *(f"{number}.jpg" for number in range(count)))
    return root


def counts(root: Path) -> dict[str, int]:
    return {split: len(files) for split, files in list_folder(root).parts.items()}


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
@pytest.mark.parametrize("test", ["test", "Testing", "holdout"])
def test_split_folders_have_any_usual_name(tmp_path: Path, train: str, val: str, test: str) -> None:
    listing = list_folder(tree(tmp_path, (train, val, test)))
    assert {split: (len(files), Path(files.pictures.where(0)).parent.parent.name) for split, files in listing.parts.items()} == {
        "train": (4, train),
        "val": (4, val),
        "test": (4, test),
    }
    assert listing.class_names == ("ant", "bee")


@pytest.mark.parametrize(
    "pattern",
    [
        "{}_image", "{}_set_images", "{}_data_set", "{}_pics", "{}_folder", "{} photos", "{}_1", "01_{}", "{}2017", "X_{}", "dataset_{}",
        "{}_new", "{} (1)", "{}.zip", "{} ", "{}set", "{}data", "seg_{}", "seg_{}/seg_{}",
    ],
)  # fmt: skip
def test_words_and_numbers_around_the_name_of_a_split_say_nothing(tmp_path: Path, pattern: str) -> None:
    names = {split: pattern.format(*[split] * pattern.count("{}")) for split in ("train", "test")}
    listing = list_folder(tree(tmp_path, tuple(names.values())))
    assert {split: Path(files.pictures.where(0)).parent.parent for split, files in listing.parts.items()} == {
        split: tmp_path / name for split, name in names.items()
    }
    assert listing.class_names == ("ant", "bee")


@pytest.mark.parametrize("name", ["train station", "test strip", "data", "photos 1", "data 2024", "brain", "contest"])
def test_classes_whose_names_resemble_a_split_stay_classes(tmp_path: Path, name: str) -> None:
    touch(tmp_path / name / "deep", "1.jpg")
    touch(tmp_path / "other", "2.jpg")
    assert list_folder(tmp_path).class_names == tuple(sorted((name, "other")))


def test_of_two_folders_for_a_split_the_usual_one_is_taken_and_the_other_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, ("train", "Val", "val", "dev"))
    assert Path(list_folder(tmp_path).parts["val"].pictures.where(0)).parent.parent.name == "val"
    assert "ignoring folders other than train, val and test: Val, dev" in caplog.text


@pytest.mark.parametrize("inner", ["photos", "photos/raw"])
@pytest.mark.parametrize("splits", [("",), ("train", "valid")])
def test_a_lone_folder_of_folders_is_looked_into(
    tmp_path: Path, inner: str, splits: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine").mkdir()
    touch(tmp_path / "mine", "README.md", ".hidden.jpg")
    touch(tmp_path / "mine" / "__MACOSX" / "photos", "._0.jpg")
    tree(tmp_path / "mine" / inner, splits)
    with caplog.at_level(logging.INFO):
        listing = list_folder(tmp_path / "mine")
    assert listing.class_names == ("ant", "bee")
    assert listing.root == tmp_path / "mine" / inner
    assert listing.name == "mine"
    assert f"{tmp_path / 'mine'} has only the folder photos: looking there" in caplog.text


def test_a_lone_train_folder_is_a_split_and_not_looked_into(tmp_path: Path) -> None:
    assert list_folder(tree(tmp_path, ("train",))).root == tmp_path


def test_thumbnails_of_network_storage_are_no_classes_and_no_pictures(tmp_path: Path) -> None:
    tree(tmp_path)
    for place in (tmp_path, tmp_path / "ant", tmp_path / "bee"):
        for name in ("@eaDir", ".thumbnails", "__MACOSX", "#recycle"):
            touch(place / name, "thumb.jpg")
    listing = list_folder(tmp_path)
    assert listing.class_names == ("ant", "bee")
    assert len(listing.parts["train"]) == 4


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    tree(tmp_path / "data")
    touch(tmp_path / "elsewhere" / "deep", "7.jpg")
    (tmp_path / "data" / "ant" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "ant" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "bee" / "all").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "bee" / "self").symlink_to(tmp_path / "data" / "bee")
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere" / "deep")
    listing = list_folder(tmp_path / "data")
    assert listing.parts["train"].labels.tolist() == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif", ".heic", ".HEIF", ".JPG"])
def test_pictures_of_phones_and_browsers_are_found(tmp_path: Path, suffix: str) -> None:
    tree(tmp_path)
    touch(tmp_path / "ant", f"x{suffix}")
    assert counts(tmp_path) == {"train": 5}


def test_other_files_are_counted_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path)
    touch(tmp_path / "ant", *(f"{number}.txt" for number in range(10)), "Thumbs.db", ".DS_Store", "IMG_1")
    touch(tmp_path / "bee" / "more", "IMG_2")
    with caplog.at_level(logging.INFO):
        assert counts(tmp_path) == {"train": 4}
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: left out 12 files that are not pictures: 10 .txt, 2 without a suffix"
    ]


def heap(*names: str) -> Callable[[Path], None]:
    return lambda root: touch(root, *names)


def videos_in_classes(root: Path) -> None:
    for name in ("ant", "bee"):
        touch(root / name, *(f"{number}.mp4" for number in range(17)), "about.pdf")


def one_class_of_videos(root: Path) -> None:
    tree(root)
    touch(root / "cat", "a.mov", "b.mov")


EXPECTED = r"; expected DIR/<class>/… or DIR/train/<class>/… with optional val/ and test/$"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (heap(*(f"{number}.jpg" for number in range(3))), r": found 3 \.jpg files, no class folders" + EXPECTED),
        (heap("a.jpg"), r": found 1 \.jpg file, no class folders" + EXPECTED),
        (
            heap(*(f"{number}.mp4" for number in range(34)), "a.pdf", "b.pdf"),
            r"found 34 \.mp4 and 2 \.pdf files, no class folders" + EXPECTED,
        ),
        (heap("a", "b"), r": found 2 files without a suffix, no class folders" + EXPECTED),
        (heap("a", "b.pdf"), r": found 1 \.pdf file and 1 file without a suffix, no class folders" + EXPECTED),
        (heap(), r": found no files, no class folders" + EXPECTED),
        (videos_in_classes, r": found 34 \.mp4 and 2 \.pdf files, no pictures in its class folders\. Supported: \.jpg, "),
        (one_class_of_videos, r"cat: found 2 \.mov files, no pictures; add some \(\.jpg, .*\) or remove the folder$"),
        (lambda root: touch(root / "ant", "1.jpg"), r": only one class folder found \(ant\); at least two are needed" + EXPECTED),
        (lambda root: tree(root, ("val", "Test")), r": found val and Test, but no train folder" + EXPECTED),
    ],
)
def test_what_was_found_and_what_is_expected_are_said_in_one_line(tmp_path: Path, make: Any, message: str) -> None:
    root = tmp_path / "heap"
    root.mkdir()
    make(root)
    with pytest.raises(DataError, match=message) as refused:
        list_folder(root)
    assert "\n" not in str(refused.value)


def test_too_many_class_folders_are_refused_before_their_pictures_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "MAX_CLASSES", 20)
    for number in range(21):
        (tmp_path / f"{number:02}").mkdir()
    with pytest.raises(DataError, match=r": found 21 class folders; the maximum is 20; expected DIR/<class>"):
        list_folder(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "🐈",
        "cafe\u0301",
        "花",
        "می\u200cخواهم",  # zero-width non-joiner, usual in Persian
        "👩\u200d🚀",  # zero-width joiner
        "❤\ufe0f",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # the flag of England, of tag characters
        "sea\u00a0lion",
        "sea\u3000lion",
        "\u200fאבא",
        "a\u00adb",
    ],
)
def test_classes_have_names_of_any_script(tmp_path: Path, name: str) -> None:
    tree(tmp_path)
    touch(tmp_path / name, "1.jpg")
    assert name in list_folder(tmp_path).class_names


@pytest.mark.parametrize("name", ["a\nb", "a\x1bb", "a\u2028b", "a\x7fb"])
def test_a_class_name_that_would_break_a_line_or_a_terminal_is_refused(tmp_path: Path, name: str) -> None:
    touch(tree(tmp_path) / name, "1.jpg")
    with pytest.raises(DataError, match="has unprintable characters; rename it"):
        list_folder(tmp_path)


def test_composed_and_decomposed_spellings_are_one_class(tmp_path: Path) -> None:
    """macOS decomposes the names of folders that other systems compose."""
    tree(tmp_path, ("train", "val"))
    touch(tmp_path / "train" / "caf\u00e9", "1.jpg")
    touch(tmp_path / "train" / "cafe\u0301", "2.jpg", "3.jpg")
    touch(tmp_path / "val" / "cafe\u0301", "4.jpg")
    listing = list_folder(tmp_path)
    assert listing.class_names == ("ant", "bee", "caf\u00e9")
    assert {split: int((files.labels == 2).sum()) for split, files in listing.parts.items()} == {"train": 3, "val": 1}


@pytest.mark.parametrize(
    "names",
    [("Training Set", "validation_set", "TestSet"), ("train_images", "val_images", "test_images"), ("trainset", "devset", "eval-data")],
)
def test_split_folders_may_say_that_they_are_sets_of_data(tmp_path: Path, names: tuple[str, ...]) -> None:
    found = list_folder(tree(tmp_path, names)).parts
    assert set(found) == ({"train", "val", "test"} if "TestSet" in names or "test_images" in names else {"train", "val"})
    assert list_folder(tmp_path).class_names == ("ant", "bee")


def test_a_test_folder_without_classes_is_left_out_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tree(tmp_path, ("train", "val")) / "test", "1.jpg", "2.jpg")
    assert counts(tmp_path) == {"train": 4, "val": 4}
    assert f"{tmp_path / 'test'}: left out 2 pictures without class folders" in caplog.text


def test_pictures_beside_the_class_folders_are_left_out_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tree(tmp_path), "logo.png", "stray1.jpg", "stray2.jpg", "stray3.jpg", "labels.csv", ".hidden.jpg")
    assert counts(tmp_path) == {"train": 4}
    assert f"{tmp_path}: left out 4 pictures beside the class folders: logo.png, stray1.jpg, stray2.jpg, …" in caplog.text


def test_folders_of_network_storage_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for place in (tree(tmp_path), tmp_path / "ant", tmp_path / "bee" / "deep"):
        touch(place / "@eaDir", "thumb.jpg")
    touch(tmp_path / "__MACOSX", "thumb.jpg")
    with caplog.at_level(logging.INFO):
        assert counts(tmp_path) == {"train": 4}
    assert "left out folders of network storage, archives or the system: 3 @eaDir, 1 __MACOSX" in caplog.text


def test_it_is_said_which_classes_have_nothing_but_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cat", "dog", "cow", "pig"):
        touch(tmp_path / "animals" / name / "2024", "1.jpg")
    touch(tmp_path / "cars" / "old", "1.jpg")
    touch(tmp_path / "cars", "2.jpg")
    touch(tmp_path / "ships" / "only", "1.jpg")
    with caplog.at_level(logging.INFO):
        assert list_folder(tmp_path).class_names == ("animals", "cars", "ships")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: folders inside a class folder belong to its class: animals (cat, cow, dog, …)"
    ]
