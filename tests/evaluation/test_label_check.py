"""check_labels finds labels that are probably wrong, and writes a table in which they are corrected."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cifar_ray import check_labels, cli
from cifar_ray.data.listing.tables import list_pictures
from cifar_ray.evaluation.label_check import out_of_fold
from cifar_ray.evaluation.label_check.confident_learning import wrong_labels
from cifar_ray.evaluation.label_check.corrections import corrected_table
from cifar_ray.evaluation.label_check.suspects import unlike_their_class
from cifar_ray.metrics.accuracy import softmax
from cifar_ray.metrics.familiarity import unit
from cifar_ray.training.probe.head import assign_folds, cross_validate, fit_head


@pytest.fixture(scope="module")
def mislabelled(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stripes with three pictures in the folder of another class, and a copy of a fourth in two folders."""
    root = tmp_path_factory.mktemp("data") / "mislabelled"
    shutil.copytree(pictures / "train", root)
    for name in sorted((root / "vertical").iterdir())[:3]:
        name.rename(root / "plain" / f"wrong-{name.name}")
    original = sorted((root / "vertical").iterdir())[0]
    shutil.copy(original, root / "horizontal" / "copy.png")
    return root


@pytest.fixture(scope="module")
def report(mislabelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on them."""
    out = tmp_path_factory.mktemp("report")
    assert cli.run(lambda: check_labels.main([str(mislabelled), "--out", str(out)])) == 0
    return out


def rows_of(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))


def test_wrong_labels_come_first_and_copies_with_two_labels_before_them(report: Path) -> None:
    rows = rows_of(report / "suspects.csv")
    copy = rows[0]
    assert copy["reason"] == "duplicate"
    assert (copy["image"], copy["label"], copy["suggested"]) == ("horizontal/copy.png", "horizontal", "vertical")
    assert copy["other"].startswith("vertical/")
    wrong = [row for row in rows if row["reason"] == "label"][:2]
    assert {row["image"].partition("-")[0] for row in wrong} == {"plain/wrong"}
    assert {(row["label"], row["suggested"]) for row in wrong} == {("plain", "vertical")}
    assert all(float(row["probability_of_label"]) < float(row["probability_of_suggested"]) for row in wrong)


def test_the_page_shows_each_suspect_with_its_suggestion(report: Path) -> None:
    page = (report / "check_labels.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp") == sum(1 + (row["reason"] == "duplicate") for row in rows_of(report / "suspects.csv"))
    assert "change to <bdi>vertical</bdi>" in page
    assert "http" not in page.replace("http-equiv", "")


def test_decisions_become_a_table_that_train_reads_and_no_picture_moves(
    mislabelled: Path, report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path for path in mislabelled.rglob("*") if path.is_file())
    suspects = [row["image"] for row in rows_of(report / "suspects.csv")]
    assert any("wrong" in name for name in suspects)
    wrong = sorted(f"plain/{path.name}" for path in (mislabelled / "plain").glob("wrong-*"))
    decisions = report / "decisions.csv"
    lines = ["image,decision", "horizontal/copy.png,remove", *(f"{name},vertical" for name in wrong[:2]), f"{wrong[2]},keep"]
    decisions.write_text("\n".join(lines), encoding="utf-8")
    assert cli.run(lambda: check_labels.main([str(mislabelled), "--apply", str(decisions)])) == 0
    table = mislabelled / "corrected_labels.csv"
    assert f"cifar-ray train --data-dir {table} --save-as {mislabelled.name}" in capsys.readouterr().out
    label_of = {row["image"]: row["label"] for row in rows_of(table)}
    assert [label_of[name] for name in wrong] == ["vertical", "vertical", "plain"]
    assert "horizontal/copy.png" not in label_of
    assert len(label_of) == len(before) - 1
    assert list_pictures(table).class_names == ("horizontal", "plain", "vertical")
    assert sorted(path for path in mislabelled.rglob("*") if path.is_file() and path != table) == before
    assert cli.run(lambda: check_labels.main([str(mislabelled), "--apply", str(decisions)])) == 2
    assert "exists; remove it" in capsys.readouterr().err
    table.unlink()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "image,decision\nhorizontal/copy.png,keep\nvertical/010.png,vertcal\n",
            "row 2: unknown decision 'vertcal'; expected one of horizontal",
        ),
        ("image,decision\nhorizontal/other.png,keep\n", "row 1: horizontal/other.png is not in"),
        ("image,decision\nhorizontal/copy.png,keep\nhorizontal/copy.png,remove\n", "row 2: horizontal/copy.png comes twice"),
        ("image,decision\nhorizontal/copy.png,\n", "no decision in it"),
        ("image,verdict\nhorizontal/copy.png,keep\n", "no column decision"),
        ('image,decision\n"horizontal/copy.png,keep\n', "after line 1: "),
    ],
)
def test_decisions_that_cannot_be_meant_are_refused_and_nothing_is_written(
    mislabelled: Path, tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    decisions = tmp_path / "decisions.csv"
    decisions.write_text(content, encoding="utf-8")
    assert cli.run(lambda: check_labels.main([str(mislabelled), "--apply", str(decisions)])) == 2
    assert message in capsys.readouterr().err
    assert not (mislabelled / "corrected_labels.csv").exists()


def test_a_corrected_table_outside_the_pictures_is_refused(mislabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "labels.csv"
    assert cli.run(lambda: check_labels.main([str(mislabelled), "--apply", str(out), "--out", str(out)])) == 2
    assert "in the folder of its pictures or above" in capsys.readouterr().err


def test_pictures_of_all_splits_are_checked(pictures: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "split", tmp_path / "out"
    for split, removed in (("train", 40), ("val", 70)):
        for folder in sorted((pictures / "train").iterdir()):
            shutil.copytree(folder, root / split / folder.name)
            for file in sorted((root / split / folder.name).iterdir())[:removed]:
                file.unlink()
    assert cli.run(lambda: check_labels.main([str(root), "--out", str(out)])) == 0
    assert json.loads((out / "check_labels.json").read_text())["images"] == sum(path.is_file() for path in root.rglob("*"))


def test_the_corrected_table_keeps_weights_and_the_numbers_of_classes(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(b"")
    rows = ["0.png,0,disc,train,2", "1.png,1,cross,train,1", "2.png,1,cross,train,1", "3.png,0,disc,val,1"]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,class_name,split,weight", *rows, ""]))
    listing = list_pictures(tmp_path / "labels.csv")
    table, changed, removed = corrected_table(listing, {"1.png": ("disc", "row 1"), "2.png": ("keep", "row 2")}, tmp_path)
    assert (changed, removed) == (1, 0)
    assert table.decode().splitlines() == ["image,label,class_name,split,weight", rows[0], "1.png,0,disc,train,1", *rows[2:]]


def test_the_corrected_table_keeps_the_descriptions_of_classes(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"")
    rows = ["0.png,cross,", '1.png,disc,"round, flat"', "2.png,cross,"]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,description", *rows, ""]))
    table, _, _ = corrected_table(list_pictures(tmp_path / "labels.csv"), {"2.png": ("disc", "row 1")}, tmp_path)
    expected = ["image,label,split,class_description", "0.png,cross,train,", *(f'{n}.png,disc,train,"round, flat"' for n in (1, 2))]
    assert table.decode().splitlines() == expected


def test_decisions_need_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda: check_labels.main(["digits", "--apply", str(tmp_path / "decisions.csv")])) == 2
    assert "digits has no files" in capsys.readouterr().err


def test_the_labels_that_were_flipped_are_the_most_suspicious() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, 2000)
    logits = rng.normal(size=(2000, 4)).astype(np.float32) + 5 * np.eye(4, dtype=np.float32)[true]
    labels = true.copy()
    flipped = rng.choice(2000, 100, replace=False)
    labels[flipped] = (true[flipped] + 1) % 4
    found = wrong_labels(labels, softmax(logits).astype(np.float32))
    assert np.isin(found[:80], flipped).mean() >= 0.95
    assert np.isin(flipped, found).mean() >= 0.8


def test_honest_labels_bring_few_suspects() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2000, 4)).astype(np.float32) * 3
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    assert len(wrong_labels(labels, softmax(logits).astype(np.float32))) < 0.2 * (labels != logits.argmax(axis=1)).sum() * 5


def test_a_picture_unlike_its_class_is_found_and_a_usual_one_is_not() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    features = rng.normal(size=(120, 32)) * 0.3 + np.repeat(rng.normal(size=(2, 32)), 60, axis=0)
    groups = rng.normal(size=(6, 32))  # each class consists of three kinds of pictures
    features += groups[np.arange(120) % 3 + 3 * labels]
    features[7] = 2 * rng.normal(size=32)
    assert unlike_their_class(labels, unit(features.astype(np.float32))).tolist() == [7]


def test_every_row_is_predicted_without_it_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    features = (rng.normal(size=(300, 8)) + np.eye(8)[labels]).astype(np.float32)
    folds = assign_folds(labels, np.arange(300), seed=0)
    whole = cross_validate(features.copy(), labels, 3, folds)
    assert np.array_equal(whole, fit_head(features.copy(), labels, 3, folds).held_out)
    monkeypatch.setattr("cifar_ray.training.probe.head._MAX_FOLD_LOGITS", 1)  # now cross-validation alone takes one fold
    np.testing.assert_allclose(cross_validate(features.copy(), labels, 3, folds), whole, atol=0.3)


def test_later_rounds_fit_without_the_labels_that_looked_wrong_and_all_rounds_count(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 60)
    features = (np.eye(3)[labels] * 4 + rng.normal(size=(180, 3))).astype(np.float32)
    given = labels.copy()
    given[:8] = 1
    seen, rounds = [], []

    def recorded(*arguments: Any) -> npt.NDArray[np.float32]:
        seen.append(arguments[4].copy())
        rounds.append(cross_validate(*arguments))
        return rounds[-1]

    monkeypatch.setattr(out_of_fold, "cross_validate", recorded)
    probabilities = out_of_fold.judge(features, given, 3, np.arange(180), 0)
    assert [weights.min() for weights in seen] == [1, 0, 0]
    assert (seen[1][:8] == 0).mean() > 0.6
    assert (seen[1][8:] == 0).mean() < 0.05
    np.testing.assert_allclose(probabilities, np.mean([softmax(logits) for logits in rounds], axis=0), atol=1e-6)
    assert not np.allclose(rounds[0], rounds[1], atol=1e-3)
