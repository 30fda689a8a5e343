"""Reviewed pictures join the training images, and never those for validation or test."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_ray.captures.capture_files import Capture, Captures
from cifar_ray.captures.reviews import Reviews
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data import load_splits, open_splits
from cifar_ray.data.dataset import ImageDataset
from cifar_ray.data.reviewed import reviewed_images, with_reviews
from cifar_ray.errors import ConfigError, DataError
from cifar_ray.training.records.run_folder import Run, unfinished_twin
from cifar_ray.training.records.saved_runs import set_reviews_until


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def label(storage: Path, count: int, name: str = "3", picture: bytes | None = None) -> None:
    for number in range(count):
        about = Capture(
            f"{name}-{number}", 0, datetime.now(UTC), "d@1", "8", 0.5, abstains=False, disagrees=False, picture=picture or png(number)
        )
        Reviews(str(storage)).add(about.key, name, "alice", about)


def config(storage: Path, **settings: object) -> TrainConfig:
    return TrainConfig.model_validate({"dataset": "digits", "image_size": 8, "storage": str(storage), "with_reviews": True} | settings)


def test_four_fifths_join_the_training_images_with_their_weight_and_the_other_splits_stay(tmp_path: Path) -> None:
    label(tmp_path, 30)
    plain, more = load_splits(config(tmp_path, with_reviews=False)), load_splits(config(tmp_path, review_weight=5))
    added = len(more.train) - len(plain.train)
    held_out = reviewed_images(str(tmp_path), plain.train, "pad", held_out=True)
    assert added + len(held_out) == 30
    assert 0 < len(held_out) < added
    assert more.train.labels[-added:].tolist() == [3] * added
    assert more.train.images[-1, 4, 4, 1:].tolist() == [0, 0]
    assert more.train.weights is not None
    assert set(more.train.weights[:-added].tolist()) == {1.0}
    assert set(more.train.weights[-added:].tolist()) == {5.0}
    for split in ("val", "test"):
        assert getattr(more, split).fingerprint == getattr(plain, split).fingerprint
    assert more.train.fingerprint != plain.train.fingerprint
    assert more.fingerprint != plain.fingerprint
    assert more.dataset_fingerprint == plain.dataset_fingerprint, "reviews arrive every day; the data set stays the same"
    assert load_splits(config(tmp_path)).train.weights is None, "all count the same"


def test_descriptions_of_classes_stay(tmp_path: Path) -> None:
    label(tmp_path, 10)
    splits = replace(load_splits(config(tmp_path, with_reviews=False)), class_descriptions={"3": "three"})
    assert with_reviews(splits, config(tmp_path)).class_descriptions == {"3": "three"}


def test_labels_given_after_the_start_of_a_run_do_not_change_its_data(tmp_path: Path) -> None:
    label(tmp_path, 10)
    started = set_reviews_until(config(tmp_path))
    before = load_splits(started)
    label(tmp_path, 10, "7")
    Reviews(str(tmp_path)).add("3-1#0", "8", "alice", None)  # another opinion about a picture that is in use
    assert load_splits(started).fingerprint == before.fingerprint
    assert len(load_splits(set_reviews_until(config(tmp_path))).train) > len(before.train)


def test_a_run_that_is_resumed_keeps_its_time(tmp_path: Path) -> None:
    started = set_reviews_until(config(tmp_path, name="nightly"))
    Run(started).begin()
    assert set_reviews_until(config(tmp_path, name="nightly")) == started
    assert set_reviews_until(config(tmp_path, name="other")).reviews_until != started.reviews_until
    assert set_reviews_until(config(tmp_path, with_reviews=False)).reviews_until is None


@pytest.mark.parametrize(
    ("given", "kept"), [("2025-11-29T09:00Z", "2025-11-29T09:00:00+00:00"), ("2025-11-29T09:00+01:00", "2025-11-29T08:00:00+00:00")]
)
def test_a_time_may_be_given_and_is_kept_in_utc(tmp_path: Path, given: str, kept: str) -> None:
    assert config(tmp_path, reviews_until=given).reviews_until == kept
    assert set_reviews_until(config(tmp_path, reviews_until=given)).reviews_until == kept


@pytest.mark.parametrize("given", ["yesterday", 2026, 1.5, True, "9999-12-31T23:59:59-05:00"])
def test_a_time_that_is_none_is_one_line(given: object) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(TrainConfig, {"reviews_until": given})
    assert str(refused.value) == f"reviews_until: expected a date or a time such as 2026-11-29 or 2026-11-29T09:00 (got {given!r})"


def test_a_date_in_a_notebook_or_a_file_is_its_first_moment() -> None:
    for given in (date(2025, 11, 29), datetime(2025, 11, 29), "2025-11-29", 20251129):
        kept = parse_config(TrainConfig, {"reviews_until": given}).reviews_until
        assert kept is not None
        assert datetime.fromisoformat(kept) == datetime(2025, 11, 29).astimezone()


def test_a_time_in_the_future_is_refused_because_labels_until_then_would_change_the_data(tmp_path: Path) -> None:
    later = datetime.now(UTC) + timedelta(days=1)
    with pytest.raises(ConfigError, match=r"^--reviews-until .*: is in the future"):
        set_reviews_until(config(tmp_path, reviews_until=later))
    begun = config(tmp_path, reviews_until=later, name="begun")
    Run(begun).begin()
    assert set_reviews_until(begun) == begun, "another host, whose clock is behind, resumes a run"


def test_a_run_of_an_earlier_release_without_a_time_is_resumed(tmp_path: Path) -> None:
    begun = config(tmp_path, name="old")
    Run(begun).begin()
    file = tmp_path / "runs" / "old" / "config.yaml"
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if "reviews_until" not in line))
    assert Run(set_reviews_until(begun)).is_resumed


def test_a_run_that_was_killed_while_it_began_begins_again_with_its_time(tmp_path: Path) -> None:
    started = set_reviews_until(config(tmp_path, name="nightly"))
    Run(started).begin()
    (tmp_path / "runs" / "nightly" / "config.yaml").unlink()
    again = set_reviews_until(config(tmp_path, name="nightly"))
    Run(again).begin()
    assert again == started


def test_an_unfinished_run_with_the_same_reviews_is_named(tmp_path: Path) -> None:
    Run(set_reviews_until(config(tmp_path, name="first")), fingerprint="same").begin()
    again = set_reviews_until(config(tmp_path, name="second"))
    twin = unfinished_twin(again, "same")
    assert twin is not None
    assert twin.name == "first"
    assert unfinished_twin(again, "other") is None, "people labelled meanwhile"


def test_a_picture_that_is_written_after_the_start_of_a_run_does_not_change_its_data(tmp_path: Path) -> None:
    about = [Capture(f"r{number}", 0, datetime.now(UTC), "d@1", "8", 0.5, False, False, png(number)) for number in range(10)]
    for one in about:
        Reviews(str(tmp_path)).add(one.key, "3", "client", None, source="feedback")  # before the server wrote the pictures
    started = set_reviews_until(config(tmp_path))
    before = load_splits(started)
    time.sleep(0.01)  # file names have milliseconds
    Captures(str(tmp_path)).write(about)
    assert load_splits(started).fingerprint == before.fingerprint
    assert len(load_splits(set_reviews_until(config(tmp_path))).train) > len(before.train)


def test_without_labels_until_the_time_the_warning_names_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    label(tmp_path, 10)
    load_splits(config(tmp_path, reviews_until="2025-11-29T09:00Z"))
    assert "had a label of this data set until 2025-11-29T09:00:00+00:00;" in caplog.text


def test_without_the_flag_no_review_is_read(tmp_path: Path) -> None:
    label(tmp_path, 10)
    assert len(load_splits(config(tmp_path, with_reviews=False)).train) == len(load_splits(config(tmp_path / "other")).train)


def test_unknown_classes_and_damaged_pictures_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    label(tmp_path, 10)
    label(tmp_path, 10, "eleven")
    label(tmp_path, 10, "4", b"no picture")
    like = ImageDataset(np.empty((0, 8, 8, 3), np.uint8), np.empty(0, np.int64), tuple("0123456789"))
    with caplog.at_level("WARNING"):
        found = reviewed_images(str(tmp_path), like, "pad", held_out=False)
    assert set(found.labels.tolist()) == {3}
    assert "classes that the data set does not have are left out: eleven" in caplog.text
    assert "reviewed pictures are damaged and left out" in caplog.text


def test_several_labels_become_a_row_of_zeros_and_ones(tmp_path: Path) -> None:
    label(tmp_path, 10, "sea, beach")
    like = ImageDataset(np.empty((0, 8, 8, 3), np.uint8), np.empty((0, 3), np.uint8), ("beach", "night", "sea"))
    found = reviewed_images(str(tmp_path), like, "pad", held_out=False)
    assert found.labels.dtype == np.uint8
    assert {tuple(row) for row in found.labels.tolist()} == {(1, 0, 1)}


def test_a_picture_with_none_of_several_labels_is_an_example_too(tmp_path: Path) -> None:
    label(tmp_path, 10, "")
    like = ImageDataset(np.empty((0, 8, 8, 3), np.uint8), np.empty((0, 3), np.uint8), ("beach", "night", "sea"))
    found = reviewed_images(str(tmp_path), like, "pad", held_out=False)
    assert len(found)
    assert not found.labels.any()
    single = ImageDataset(np.empty((0, 8, 8, 3), np.uint8), np.empty(0, np.int64), tuple("0123456789"))
    assert not len(reviewed_images(str(tmp_path), single, "pad", held_out=False)), "of classes, none is no class"


def test_names_with_commas_are_recognised_among_several_labels(tmp_path: Path) -> None:
    label(tmp_path, 10, "dog, small,sea")
    label(tmp_path, 10, "dog, large")
    like = ImageDataset(np.empty((0, 8, 8, 3), np.uint8), np.empty((0, 3), np.uint8), ("dog", "dog, small", "sea"))
    found = reviewed_images(str(tmp_path), like, "pad", held_out=False)
    assert {tuple(row) for row in found.labels.tolist()} == {(0, 1, 1)}, "and pictures with an unknown label are left out"


def test_a_streamed_data_set_refuses_reviews_in_one_line(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(8):
            (folder / f"{number}.png").write_bytes(png(number))
    settings = {"dataset": "folder", "data_dir": str(tmp_path / "photos"), "stream": "always"}
    with pytest.raises(DataError, match=r"--with-reviews: the data set is streamed, and reviewed pictures are not"):
        open_splits(config(tmp_path, **settings))
