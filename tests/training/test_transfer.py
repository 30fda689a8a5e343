"""A folder of photographs, from the command to the saved model: probe, fine-tuning on a CPU, resuming, and what is chosen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from cifar_ray import __main__ as console
from cifar_ray.cli.training_flags import parse_tune_command
from cifar_ray.data import load_splits
from cifar_ray.data.reading.local_cache import CACHE_VARIABLE
from cifar_ray.data.task_progress import no_progress
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import ModelStore
from cifar_ray.store.trust_file import read_trust
from cifar_ray.training.probe import extraction, tail
from cifar_ray.training.weights.initial_network import load_parent
from cifar_ray.tuning.probe_start import TrialStart, start_trials
from cifar_ray.tuning.record import Record, Trial
from cifar_ray.tuning.search_job import prepare

SMALL = ["--image-size", "64"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choosing the fastest engine takes seconds for each view; other tests hold that engines agree."""
    for module in (extraction, tail):
        monkeypatch.setattr(module, "choose", lambda reference, name, **_: (reference, name))


def draw(path: Path, shape: str, number: int, size: tuple[int, int] = (160, 120)) -> None:
    """A picture of a shape at a random place, on noise."""
    random = np.random.default_rng((ord(shape[0]), number))
    picture = Image.fromarray(random.integers(0, 90, (size[1], size[0], 3)).astype(np.uint8))
    x, y = (int(random.integers(0, side - 70)) for side in size)
    pen, colour = ImageDraw.Draw(picture), tuple(random.integers(150, 255, 3).tolist())
    if shape == "disc":
        pen.ellipse((x, y, x + 60, y + 60), fill=colour)
    elif shape == "stripes":
        for offset in range(0, 60, 12):
            pen.rectangle((x + offset, y, x + offset + 5, y + 60), fill=colour)
    else:  # a hill that rises to one side; "left" is the mirror image of "right"
        low, high = (size[0], 0) if shape == "left" else (0, size[0])
        pen.polygon([(low, size[1]), (high, size[1]), (high, int(random.integers(0, 30)))], fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=90)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for shape in ("disc", "stripes"):
        for number in range(20):
            draw(tmp_path / "photos" / shape / f"{number}.jpg", shape, number)
    return tmp_path / "photos"


def train(photos: Path, tmp_path: Path, *flags: str) -> int:
    return console.main(["train", "--data-dir", str(photos), "--storage", str(tmp_path / "storage"), *SMALL, *flags])


def test_a_folder_alone_gives_a_model_that_is_promoted_and_says_what_to_type_next(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(photos, tmp_path) == 0
    printed = capsys.readouterr()
    assert "40 pictures of 2 classes, typically 160 px: a pretrained network" in printed.err
    assert "fine-tuning is left out on a CPU; --time-budget 15m tries it" in printed.err
    assert "model  photos@1: promoted to production" in printed.out
    assert printed.out.splitlines()[-1] == f"serve  serve run deployments:app model=photos storage={tmp_path / 'storage'}"
    bundle = ModelStore(str(tmp_path / "storage")).load("photos")
    assert bundle.manifest.metrics["val_accuracy"] >= 0.9
    assert bundle.manifest.pretrained is not None
    assert bundle.manifest.pretrained.license == "Apache-2.0"
    assert (bundle.manifest.resize_policy, bundle.manifest.channel_mean) == ("squash", (0.5, 0.5, 0.5))
    (run,) = (tmp_path / "storage" / "runs").iterdir()
    assert {"config.yaml", "history.csv", "history.json", "curves.png", "finished.json"} <= {path.name for path in run.iterdir()}


@pytest.mark.usefixtures("plain_torch")
@pytest.mark.slow
def test_the_saved_network_gives_the_figures_that_were_printed(photos: Path, tmp_path: Path) -> None:
    assert train(photos, tmp_path, "--views", "4", "--method", "probe") == 0
    bundle = ModelStore(str(tmp_path / "storage")).load("photos")
    assert bundle.manifest.architecture.arguments["views"] == 4
    familiarity = read_trust(bundle).familiarity
    assert familiarity is not None, "fitted on the training pictures, which the backbone has not seen"
    noise = np.random.default_rng(0).integers(0, 256, (20, *2 * (bundle.manifest.image_size_px,), 3), dtype=np.uint8)
    assert Predictor(bundle, engine="torch").predict(noise).abstains.all()
    assert console.main(["evaluate", "photos", "--storage", str(tmp_path / "storage"), "--robustness-images", "0", "--no-leakage"]) == 0
    (report,) = (tmp_path / "storage" / "evaluations").rglob("evaluation.json")
    assert report.parent.name == "photos-val", "there are no test pictures"
    assert json.loads(report.read_text())["accuracy"] == bundle.manifest.metrics["val_accuracy"]


@pytest.mark.usefixtures("plain_torch")
def test_fine_tuning_keeps_the_better_of_both_and_prints_both(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--method", "finetune", "--epochs", "2", "--batch-size", "8", "--name", "both"]
    assert train(photos, tmp_path, *flags) == 0
    assert "validation accuracy: probe " in capsys.readouterr().err
    metrics = ModelStore(str(tmp_path / "storage")).load("photos").manifest.metrics
    assert {"val_accuracy", "probe_val_accuracy"} <= set(metrics)


@pytest.mark.usefixtures("plain_torch")
def test_an_interrupted_fine_tuning_resumes_and_ends_with_the_same_weights(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cifar_ray.errors import Interrupted
    from cifar_ray.training.probe.tail import TailTrainer

    flags = ["--method", "finetune", "--epochs", "3", "--batch-size", "8", "--name", "one"]
    assert train(photos, tmp_path, *flags) == 0
    whole = ModelStore(str(tmp_path / "storage")).load("photos@1").weights
    run_epoch = TailTrainer.run_epoch

    def interrupted(self: TailTrainer, *arguments: object) -> tuple[float, float]:
        if self.epoch == 1:
            raise Interrupted("interrupted", 2)
        return run_epoch(self, *arguments)  # type: ignore[arg-type]

    again = [*flags[:-1], "two"]
    monkeypatch.setattr(TailTrainer, "run_epoch", interrupted)
    assert train(photos, tmp_path, *again) == 130
    monkeypatch.setattr(TailTrainer, "run_epoch", run_epoch)
    assert train(photos, tmp_path, *again) == 0
    resumed = ModelStore(str(tmp_path / "storage")).load("photos@2").weights
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.usefixtures("plain_torch")
def test_classes_that_are_mirror_images_are_found_and_mirroring_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shape in ("left", "right"):
        for number in range(40):
            draw(tmp_path / "arrows" / shape / f"{number}.jpg", shape, number)
    assert train(tmp_path / "arrows", tmp_path, "--method", "probe", "--views", "2") == 0
    assert "mirrored pictures look like another class: views and augmentation do without mirroring" in capsys.readouterr().err
    assert ModelStore(str(tmp_path / "storage")).load("arrows").manifest.architecture.arguments["mirror_views"] is False


@pytest.mark.usefixtures("plain_torch")
def test_classes_that_are_turns_of_each_other_are_found_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mirror image of what is turned by 90° is what is turned by 270°. No augmentation turns by so much by itself."""
    for degrees in (0, 90, 270):
        for number in range(30):
            path = tmp_path / "turned" / str(degrees) / f"{number}.jpg"
            draw(path, "left", number, (140, 140))
            Image.open(path).convert("RGB").rotate(degrees).save(path, quality=90)
    assert train(tmp_path / "turned", tmp_path, "--method", "probe", "--views", "2") == 0
    assert "mirrored pictures look like another class" in capsys.readouterr().err


@pytest.mark.usefixtures("plain_torch")
def test_ordinary_classes_keep_their_mirrored_views(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(photos, tmp_path, "--method", "probe", "--views", "2") == 0
    assert "mirrored pictures" not in capsys.readouterr().err


@pytest.mark.usefixtures("plain_torch")
def test_wide_pictures_whose_ends_matter_are_not_cropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shape in ("disc", "stripes"):
        for number in range(24):
            draw(tmp_path / "wide" / shape / f"{number}.jpg", shape, number, (130, 75))
            source = Image.open(tmp_path / "wide" / shape / f"{number}.jpg")
            wide = Image.new("RGB", (520, 75))
            wide.paste(source, (390 * (number % 2), 0))  # at one of the ends, which the centre does not show
            wide.save(tmp_path / "wide" / shape / f"{number}.jpg")
    assert train(tmp_path / "wide", tmp_path, "--method", "probe") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("resize policy")]
    assert not line.startswith("resize policy crop")
    assert ModelStore(str(tmp_path / "storage")).load("wide").manifest.resize_policy in ("pad", "squash")


def test_a_second_run_and_an_added_class_compute_only_what_is_new(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cifar_ray.inference.engines.engine import TorchEngine
    from cifar_ray.training.probe import extraction as features

    computed: list[int] = []
    choose = features.choose

    class Counting:
        def __init__(self, engine: TorchEngine) -> None:
            self.engine, self.name, self.precision = engine, engine.name, engine.precision

        def logits(self, images: np.ndarray) -> np.ndarray:
            computed.append(len(images))
            return self.engine.logits(images)

    monkeypatch.setattr(features, "choose", lambda reference, name, **_: (Counting(choose(reference, "torch")[0]), ""))  # type: ignore[arg-type]
    assert train(photos, tmp_path, "--method", "probe") == 0
    assert sum(computed) == 40
    assert train(photos, tmp_path, "--method", "probe", "--name", "again") == 0
    assert sum(computed) == 40
    for number in range(10):
        draw(photos / "left" / f"{number}.jpg", "left", number)
    assert train(photos, tmp_path, "--method", "probe") == 0
    assert sum(computed) == 50
    assert ModelStore(str(tmp_path / "storage")).load("photos").manifest.class_names == ("disc", "left", "stripes")


@pytest.mark.usefixtures("plain_torch")
def test_few_pictures_are_judged_by_cross_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shape in ("disc", "stripes"):
        for number in range(4):
            draw(tmp_path / "few" / shape / f"{number}.jpg", shape, number)
    assert train(tmp_path / "few", tmp_path) == 0
    assert "accuracy  cross-validated" in capsys.readouterr().out
    manifest = ModelStore(str(tmp_path / "storage")).load("few").manifest
    assert manifest.image_counts == {"train": 8, "cv": 8}
    assert Predictor(ModelStore(str(tmp_path / "storage")).load("few")).network is not None


@pytest.mark.usefixtures("plain_torch")
def test_the_trials_of_a_search_start_from_the_probe_and_the_best_recipe_fine_tunes_it(photos: Path, tmp_path: Path) -> None:
    argv = ["--data-dir", str(photos), "--storage", str(tmp_path / "storage"), *SMALL, "--epochs", "2", "--name", "search"]
    command = parse_tune_command(argv, "tune")
    job = prepare(command.train_config(), command.search_config())
    splits = load_splits(job.fixed)
    start = start_trials(job, Record("val_accuracy", 2, 1), splits, no_progress)
    bundle = load_parent(start.trials)
    assert bundle is not None
    assert bundle.manifest.metrics["val_accuracy"] >= 0.9
    assert start.score is not None
    assert "trials start from it" in start.description
    assert (start.trials.method, start.result.method) == ("scratch", "finetune")
    trial = Trial(1, "a", "a", {}, "finished", epochs=[{"epoch": epoch, "val_accuracy": 0.5} for epoch in (1, 2)])
    shown = start.notes(Record("val_accuracy", 2, 1, [trial]))
    assert len(shown) == 1
    assert "no trial is better than the probe" in shown[0]
    trial = Trial(1, "a", "a", {}, "finished", epochs=[{"epoch": epoch, "val_accuracy": 1.1} for epoch in (1, 2)])
    assert start.notes(Record("val_accuracy", 2, 1, [trial])) == []
    saved = {path: path.stat().st_mtime_ns for path in (tmp_path / "storage" / "tunings" / "search" / "probe").iterdir()}
    begun = Record("val_accuracy", 2, 1, [trial])
    assert start_trials(job, begun, splits, no_progress).trials == start.trials
    assert {path: path.stat().st_mtime_ns for path in saved} == saved, "a resumed search keeps the start of its first trials"
    shutil.rmtree(tmp_path / "storage" / "tunings" / "search" / "probe")
    assert start_trials(job, begun, splits, no_progress) == TrialStart(job.fixed, job.fixed), "an earlier release began it"


def test_a_search_for_the_network_has_no_probe_to_start_from(photos: Path, tmp_path: Path) -> None:
    argv = ["--data-dir", str(photos), "--storage", str(tmp_path / "storage"), *SMALL, "--epochs", "2"]
    command = parse_tune_command(argv, "tune")
    job = prepare(command.train_config(), command.search_config(), {"model": {"choice": ["airnet", "timm:tf_efficientnet_lite0"]}})
    assert start_trials(job, Record("val_accuracy", 2, 1), load_splits(job.fixed), no_progress) == TrialStart(job.fixed, job.fixed)
