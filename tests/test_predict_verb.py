"""`python -m cifar_ray.predict`, as a user runs it; a real server is tested with the server."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cifar_ray import __main__ as console
from cifar_ray.client import Client
from cifar_ray.data.decode import decode_image, fit
from cifar_ray.errors import ConfigError, DataError, ServerError, UnknownModelError
from cifar_ray.inference.batch import table as writing
from cifar_ray.inference.batch.classify import overlay_name
from cifar_ray.inference.batch.pictures import list_pictures
from cifar_ray.inference.predictor import Prediction, Predictor
from cifar_ray.metrics.familiarity import energy
from cifar_ray.models import create_model
from cifar_ray.store import Architecture, Bundle, Manifest, ModelStore

Shown = pytest.CaptureFixture[str]
NO_STDIN = io.BytesIO()


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """`pets`, three classes of 16 px."""
    arguments = {"num_classes": 3, "image_size": 16}
    torch.manual_seed(0)
    manifest = Manifest(
        architecture=Architecture(name="small_cnn", arguments=arguments),
        class_names=("cat", "dog", "eel"),
        image_size_px=16,
        channel_mean=(0.5, 0.5, 0.5),
        channel_std=(0.25, 0.25, 0.25),
        resize_policy="pad",
        dataset_name="pets",
        dataset_fingerprint="d" * 64,
        created_at=datetime(2025, 1, 2, tzinfo=UTC),
    )
    store = ModelStore(str(tmp_path / "storage"))
    store.save("pets", manifest, create_model("small_cnn", **arguments).state_dict())
    return store


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """25 pictures in two folders, of which `05.png` is torn, and a file that is none."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for number in range(25):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("more" if number % 2 else "") / f"{number:02}.png")
    (folder / "more" / "05.png").write_bytes(b"torn")
    (folder / "notes.txt").write_text("no picture")
    return folder


def sound_pictures(folder: Path) -> list[str]:
    return [name for name in list_pictures([str(folder)], NO_STDIN) if not name.endswith("05.png")]


def predict(bundle: Bundle, path: str) -> Prediction:
    return Predictor(bundle, precision="fp32", engine="torch").predict(fit(decode_image(Path(path)), 16, "pad")[None])


def run(store: ModelStore, *argv: object) -> int:
    return console.main(["predict", "pets", *map(str, argv), "--storage", store.storage, "--precision", "fp32", "--engine", "torch"])


def test_a_few_pictures_are_a_line_each_and_a_broken_one_stops_nothing(store: ModelStore, pictures: Path, capsys: Shown) -> None:
    assert run(store, pictures / "00.png", pictures / "more/05.png") == 0
    first, second, speed = capsys.readouterr().out.splitlines()
    probabilities = (
        Predictor(store.load("pets"), precision="fp32", engine="torch")
        .predict(fit(decode_image(pictures / "00.png"), 16, "pad")[None])
        .probabilities[0]
    )
    assert first.split()[1:] == [("cat", "dog", "eel")[probabilities.argmax()], f"{100 * probabilities.max():.1f}", "%"]
    assert "error: " in second
    assert "images/s; 1 broken" in speed


def test_pictures_of_which_not_one_can_be_read_are_the_users_mistake(
    store: ModelStore, pictures: Path, tmp_path: Path, capsys: Shown
) -> None:
    for flags in ([], ["--out", tmp_path / "rows.csv"]):
        assert run(store, pictures / "more/05.png", *flags) == 2
        assert "; 1 broken" in capsys.readouterr().out
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_every_format_holds_the_same_rows_in_order(store: ModelStore, pictures: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"rows{suffix}"
    bundle = store.load("pets")
    known = energy(np.concatenate([predict(bundle, path).logits for path in sound_pictures(pictures)]))
    threshold = float(np.sort(known)[9:11].mean())
    store.save("pets", bundle.manifest.model_copy(update={"abstain_threshold": threshold}), bundle.weights)
    assert run(store, pictures, "--out", out, "--top-k", 2, "--part-size", 10) == 0
    rows: list[dict[str, Any]] = {
        ".csv": lambda: list(csv.DictReader(io.StringIO(out.read_text()))),
        ".json": lambda: json.loads(out.read_text()),
        ".parquet": lambda: pq.read_table(out).to_pylist(),
    }[suffix]()
    assert [row["file"] for row in rows] == list_pictures([str(pictures)], NO_STDIN)
    assert len(rows) == 25
    broken = [Path(row["file"]).name for row in rows if row["error"]]
    assert broken == ["05.png"]
    sound = rows[0]
    second = float(sound["probability_2"]) if suffix == ".csv" else sound["top_k"][1]["probability"]
    assert 0 < second <= float(sound["confidence"]) < 1
    assert [str(row["abstain"]) for row in rows if not row["error"]] == [str(value) for value in known < threshold]
    assert not out.with_name(f"{out.name}.parts").exists()


def test_a_picture_that_the_model_does_not_know_is_said_to_be_one_unless_that_is_switched_off(
    store: ModelStore, pictures: Path, capsys: Shown
) -> None:
    bundle = store.load("pets")
    store.save("pets", bundle.manifest.model_copy(update={"abstain_threshold": 1e6}), bundle.weights)
    for flags, told in ([], True), (["--no-abstain"], False):
        assert run(store, pictures / "00.png", *flags) == 0
        line, speed = capsys.readouterr().out.splitlines()
        assert ("not sure: it is as unfamiliar" in line) == ("not sure of 1" in speed) == told


def test_a_summary_and_overlays_mark_what_the_model_abstains_from(store: ModelStore, pictures: Path, tmp_path: Path, capsys: Shown) -> None:
    bundle = store.load("pets")
    found = {path: predict(bundle, path) for path in sound_pictures(pictures)}
    threshold = float(np.median([energy(prediction.logits)[0] for prediction in found.values()]))
    store.save("pets", bundle.manifest.model_copy(update={"abstain_threshold": threshold}), bundle.weights)
    assert run(store, pictures, "--explain", tmp_path / "seen") == 0
    lines = capsys.readouterr().out.splitlines()
    unsure: dict[str, int] = {}
    for prediction in found.values():
        name = bundle.manifest.class_names[int(prediction.probabilities.argmax())]
        unsure[name] = unsure.get(name, 0) + int(energy(prediction.logits)[0] < threshold)
    assert sum(unsure.values()) == 12
    assert {line.split()[0]: line.rpartition("not sure of ")[2] for line in lines[:-1] if "not sure of" in line} == {
        name: str(count) for name, count in unsure.items() if count
    }
    assert sum(path.stem.endswith("-not-sure") for path in (tmp_path / "seen").iterdir()) == 12


def test_an_interrupted_job_goes_on_where_it_stopped(
    store: ModelStore, pictures: Path, tmp_path: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rows.json"
    computed: list[int] = []
    write = writing.part_file

    def stop_at_the_second(number: int) -> str:
        computed.append(number)
        if len(computed) > 3 + 2:  # three questions which are there, then two parts are written
            raise KeyboardInterrupt
        return write(number)

    monkeypatch.setattr(writing, "part_file", stop_at_the_second)
    flags = [pictures, "--out", out, "--part-size", 10]
    assert run(store, *flags) == 130
    monkeypatch.undo()
    assert not out.exists()
    assert len(list(tmp_path.glob("rows.json.parts/*.parquet"))) == 2
    capsys.readouterr()

    assert run(store, *flags, "--top-k", 1) == 2
    assert "contains parts of another job" in capsys.readouterr().err
    assert run(store, *flags) == 0
    shown = capsys.readouterr()
    assert "resuming: 20 of 25 pictures are done" in shown.err
    assert "5 pictures in" in shown.out
    assert len(json.loads(out.read_text())) == 25


def test_explain_writes_an_overlay_for_each_sound_picture(store: ModelStore, pictures: Path, tmp_path: Path) -> None:
    assert run(store, pictures / "more", "--explain", tmp_path / "seen") == 0
    overlays = list((tmp_path / "seen").iterdir())
    assert len(overlays) == 11
    assert {path.stem.rpartition("-")[2] for path in overlays} <= {"cat", "dog", "eel"}
    with Image.open(overlays[0]) as overlay:
        assert overlay.size == (160, 160)


def test_each_overlay_has_a_name_of_its_own_that_a_file_system_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = [
        "a_b/c.jpg",
        "a/b_c.jpg",
        "a/b/c.jpg",
        "a__b/c.jpg",
        "a_/b/c.jpg",
        "a/_b/c.jpg",
        "s3/x.jpg",
        *(f"{'图' * 84}/{i}.jpg" for i in "12"),
    ]
    names = [*(f"{tmp_path}/{name}" for name in relative), "/a/b/c.jpg", "s3://x.jpg", os.fsdecode(b"/caf\xe9.jpg")]
    for class_name in ("cat", "c" * 250, "猫" * 100, "a/b"):
        made = {overlay_name(name, class_name, abstains=True) for name in names}
        assert len(made) == len(names)
        for name in made:
            (tmp_path / name).touch()
            assert name.endswith("-not-sure.png")
    assert overlay_name(f"{tmp_path}/a_b/c.jpg", "cat", abstains=False) == "a_b__c.jpg-cat.png"


def test_pictures_that_once_shared_an_overlay_have_one_each(
    store: ModelStore, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = store.load("pets")
    names = tuple(character * 250 for character in "cde")
    store.save("pets", bundle.manifest.model_copy(update={"class_names": names}), bundle.weights)
    for name in ("a_b/c.png", "a/b_c.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes((pictures / "00.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert run(store, "a_b", "a", "--explain", tmp_path / "seen") == 0
    assert len(list((tmp_path / "seen").iterdir())) == 2


def test_pictures_are_named_by_files_folders_globs_uris_and_stdin(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pictures)
    assert list_pictures(["00.png", "more", "more/01.png"], NO_STDIN) == [
        str(pictures / "00.png"),
        *map(str, sorted(pictures.glob("more/*"))),
    ]
    assert list_pictures(["**/0*.png"], NO_STDIN) == sorted(str(path) for path in pictures.rglob("0*.png"))
    assert list_pictures(["-"], io.BytesIO(b"00.png\nlost.png\n")) == [str(pictures / "00.png"), str(pictures / "lost.png")]
    assert list_pictures(["-"], io.BytesIO(b"00.png\n\nmore/01.png\n")) == [str(pictures / "00.png"), str(pictures / "more/01.png")]
    assert list_pictures(["-"], io.BytesIO("\ufeff00.png\r\nmore/01.png\r\n".encode())) == [
        str(pictures / "00.png"),
        str(pictures / "more/01.png"),
    ]
    assert list_pictures([f"file://{pictures}/more"], NO_STDIN) == [f"file://{path}" for path in sorted(pictures.glob("more/*"))]
    for nothing in ("nowhere", "*.gif", "notes"):
        with pytest.raises(DataError, match=r"not found|no pictures found"):
            list_pictures([nothing], NO_STDIN)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
def test_a_list_on_stdin_may_be_utf_16_or_separated_by_nul(tmp_path: Path, encoding: str, end: str) -> None:
    names = [str(tmp_path / name) for name in ("a.png", "图片.jpg", "b c.png")]
    for ending in (end, ""):
        assert list_pictures(["-"], io.BytesIO((end.join(names) + ending).encode(encoding))) == names
    assert list_pictures(["-"], io.BytesIO(b"/caf\xe9.png\0/two\nlines.png\0")) == [os.fsdecode(b"/caf\xe9.png"), "/two\nlines.png"]


def test_each_line_of_a_list_that_names_no_file_is_a_row_with_an_error(
    store: ModelStore, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    lost = [
        f"{tmp_path}/nope [1].jpg",
        f"{tmp_path}/*.gif",
        f"{tmp_path}/{'x' * 300}.jpg",
        "~no-user-here/x.jpg",
        "nosuch://a/b.png",
        "file://a",
    ]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join([*lost, str(pictures / "00.png")]).encode())))
    assert run(store, "-", "--out", tmp_path / "rows.json") == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [bool(row["error"]) for row in rows] == [True] * 6 + [False]
    assert [Path(row["file"]).name for row in rows[:4]] == [Path(name).name for name in lost[:4]]
    capsys.readouterr()
    for name in lost[:4]:
        assert run(store, pictures / "00.png", name) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert name in line


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_what_is_left_out_of_a_folder_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture, prefix: str) -> None:
    for name in ("a.png", "IMG_1", "b.txt", ".hidden.png", "@eaDir/a.png", "deep/.thumbs/a.png", "deep/c.jfif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with caplog.at_level(logging.INFO):
        found = list_pictures([f"{prefix}{tmp_path}"], NO_STDIN)
    assert found == [f"{prefix}{tmp_path}/a.png", f"{prefix}{tmp_path}/deep/c.jfif"]
    assert "left out 2 files that are not pictures: 1 without a suffix, 1 .txt" in caplog.text
    assert "left out folders of network storage, archives or the system: 1 @eaDir" in caplog.text


def test_uris_are_read_like_paths(store: ModelStore, pictures: Path, tmp_path: Path) -> None:
    assert run(store, f"file://{pictures}", "--out", f"file://{tmp_path}/rows.parquet") == 0
    assert pq.read_table(tmp_path / "rows.parquet")["error"].null_count == 24


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--out", "rows.xlsx"], "unknown format. Supported: .csv, .json, .parquet"),
        (["--num-workers", "2"], "--num-workers needs --out"),
        (["--top-k", "0"], "top-k"),
    ],
)
def test_a_wrong_flag_is_one_line(store: ModelStore, pictures: Path, capsys: Shown, argv: list[str], reason: str) -> None:
    assert run(store, pictures, *argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line.replace("top_k", "top-k")


def test_a_server_that_is_not_there_is_one_line(pictures: Path, capsys: Shown) -> None:
    assert console.main(["predict", "http://127.0.0.1:9", str(pictures)]) == 2
    assert "server http://127.0.0.1:9: no response" in capsys.readouterr().err
    assert console.main(["predict", "http://127.0.0.1:9", str(pictures), "--num-workers", "2", "--out", "a.csv"]) == 2
    with pytest.raises(ConfigError, match="expected the address of a server"):
        Client("ftp://there")
    with pytest.raises(ServerError):
        Client("http://127.0.0.1:9").classes()


@pytest.mark.parametrize("suffix", ["", ".csv", ".json", ".parquet"])
def test_what_a_server_abstains_from_is_marked_in_every_format_unless_that_is_switched_off(
    pictures: Path, tmp_path: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    ranked = [{"class_id": 0, "class_name": "cat", "probability": 0.7}, {"class_id": 1, "class_name": "dog", "probability": 0.3}]
    sure = {
        "class_id": 0,
        "class_name": "cat",
        "confidence": 0.7,
        "abstain": False,
        "probabilities": {"cat": 0.7, "dog": 0.3},
        "top_k": ranked,
    }
    answers = {
        "/classes": {"model": "pets", "version": 1, "classes": ["cat", "dog"]},
        "/predict_batch": {"model": "pets", "version": 1, "predictions": [sure, sure | {"abstain": True}]},
    }
    monkeypatch.setattr(Client, "_ask", lambda self, method, path, *_, **__: answers[path])
    for flags, marks in ([], [False, True]), (["--no-abstain"], [False, False]):
        out = tmp_path / f"{len(flags)}{suffix}"
        command = ["predict", "http://127.0.0.1:9", str(pictures / "00.png"), str(pictures / "02.png"), *flags]
        assert console.main([*command, *(["--out", str(out)] if suffix else [])]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert ["not sure" in line for line in lines[:2]] == marks, "the terminal marks them beside a file, too"
        found = {
            "": lambda marks=marks: marks,
            ".csv": lambda out=out: [row["abstain"] == "True" for row in csv.DictReader(io.StringIO(out.read_text()))],
            ".json": lambda out=out: [row["abstain"] for row in json.loads(out.read_text())],
            ".parquet": lambda out=out: pq.read_table(out)["abstain"].to_pylist(),
        }[suffix]()
        assert found == marks


def test_a_file_has_rows_of_one_version_even_if_the_server_promotes_another_one_meanwhile(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def ask(self: Client, _: str, path: str, *__: object, **___: object) -> dict[str, object]:
        asked.append((path, self._query.get("model")))
        if path == "/classes":
            return {"model": "pets", "version": 3, "classes": ["cat", "dog"]}
        ranked = [{"class_id": 0, "class_name": "cat", "probability": 1.0}]
        one = {"class_id": 0, "class_name": "cat", "confidence": 1.0, "abstain": False, "probabilities": {"cat": 1.0}, "top_k": ranked}
        return {"model": "pets", "version": 3, "predictions": [one]}

    monkeypatch.setattr(Client, "_ask", ask)
    for url, requested in (("http://127.0.0.1:9", None), ("http://127.0.0.1:9/ai?model=pets", "pets")):
        asked.clear()
        assert console.main(["predict", url, str(pictures / "00.png"), "--out", str(tmp_path / f"{requested}.csv")]) == 0
        assert asked == [("/classes", requested), ("/predict_batch", "pets@3")]


def test_asking_a_server_needs_neither_torch_nor_ray() -> None:
    modules = "cifar_ray.predict, cifar_ray.inference.batch.served, cifar_ray.inference.batch.table"
    program = f"import sys, {modules}; print({{'torch', 'ray'}} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


@pytest.mark.ray
def test_workers_of_ray_data_write_the_same_rows_as_one_process(
    ray_cluster: None, store: ModelStore, pictures: Path, tmp_path: Path, capsys: Shown
) -> None:
    for name, flags in {"alone": [], "together": ["--num-workers", "2"]}.items():
        assert run(store, pictures, "--out", tmp_path / f"{name}.json", "--part-size", 5, *flags) == 0
    alone, together = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", "together"))
    assert [row["file"] for row in together] == [row["file"] for row in alone]
    assert [row["class_name"] for row in together] == [row["class_name"] for row in alone]
    assert "25 pictures in" in capsys.readouterr().out


@pytest.mark.ray
def test_an_error_in_a_worker_reaches_the_user_as_itself(ray_cluster: None, store: ModelStore, pictures: Path, tmp_path: Path) -> None:
    from cifar_ray.cluster.plan import plan_fixed_workers
    from cifar_ray.inference.batch.classify import ModelJob
    from cifar_ray.inference.batch.classify_on_ray import classify_on_ray
    from cifar_ray.inference.batch.table import Part

    parts = [Part(0, (str(pictures / "00.png"),))]
    with pytest.raises(UnknownModelError, match="model fish not found in"):
        list(classify_on_ray(ModelJob("fish", store.storage, 1), parts, str(tmp_path), plan_fixed_workers(1)))


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_names_that_are_no_utf_8_have_rows_like_the_others(store: ModelStore, tmp_path: Path, suffix: str, capsys: Shown) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    Image.new("RGB", (16, 16)).save(folder / "a.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes((folder / "a.png").read_bytes())
    Path(os.fsdecode(os.fsencode(folder) + b"/torn\xe9.png")).write_bytes(b"torn")
    out = tmp_path / f"rows.{suffix}"
    assert console.main(["predict", "pets", str(folder), "--storage", store.storage, "--out", str(out)]) == 0
    if suffix == "parquet":
        assert pq.read_table(out)["file"].to_pylist()[1].endswith("caf\\xe9.png")
    else:
        assert b"caf\\xe9.png" in out.read_bytes().replace(b"\\\\", b"\\")
    assert "caf\\xe9.png" in capsys.readouterr().out


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_list_may_be_lines_of_text(tmp_path: Path, end: str) -> None:
    names = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for name in names:
        Path(name).touch()
    assert list_pictures(["-"], [f"{name}{end}" for name in names]) == names
