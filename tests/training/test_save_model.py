"""From trained weights to a model in the store, without Ray."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.batches.loader import EvaluationLoader
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.inference.predictor import Predictor
from cifar_ray.metrics.calibration import calibrate
from cifar_ray.metrics.trust import Trust
from cifar_ray.store import ModelStore
from cifar_ray.store.gallery import GALLERY_FILE
from cifar_ray.store.trust_file import read_trust
from cifar_ray.training import save_model as saving
from cifar_ray.training.job import JobResult
from cifar_ray.training.loop.fit import fit
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.records.results import EpochReport, FitResult, TrainedRun, Weights
from cifar_ray.training.save_model import save_model

CPU = torch.device("cpu")


def train(splits: DatasetSplits, config: TrainConfig) -> TrainedRun:
    kept: Weights = {}

    def on_epoch(report: EpochReport, weights: Weights) -> None:
        if report.improved:
            kept.update({name: tensor.clone() for name, tensor in weights.items()})

    result: FitResult = fit(config, splits, device=CPU, shard=Shard(), on_step=lambda *_: None, on_epoch=on_epoch)
    return TrainedRun("run", "runs/run", result, [], kept)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["airnet", "small_cnn"])
def test_predictor_and_training_agree_on_every_test_image(stripes: DatasetSplits, tmp_path: Path, model: str, precision: str) -> None:
    values = {"model": model, "epochs": 1, "batch_size": 40, "precision": precision, "storage": str(tmp_path), "micro_batch_size": 20}
    config = parse_config(TrainConfig, values)
    run = train(stripes, config)
    kept = save_model(run, config, stripes)

    trainer = Trainer(config, stripes, CPU, Shard())
    trainer.model.load_state_dict(run.weights)
    trainer.model.eval()
    loader = EvaluationLoader(stripes.test, batch_size=20, normalization=trainer.normalization, shard=Shard(), device=CPU)
    with torch.inference_mode(), trainer.precision.autocast():
        in_training = torch.cat([trainer.model(inputs).float() for inputs, _ in loader]).numpy()

    predictor = Predictor(ModelStore(str(tmp_path)).load("stripes"), precision=precision, engine="torch")
    served = np.concatenate([predictor.predict(images).logits for images in np.split(stripes.test.images, 3)])
    np.testing.assert_array_equal(served, in_training)
    accuracy = np.mean(served.argmax(1) == stripes.test.labels)
    assert kept.bundle.manifest.metrics["test_accuracy"] == accuracy


def test_a_manifest_says_how_the_model_came_to_be(stripes: DatasetSplits, tmp_path: Path) -> None:
    values = {"model": "small_cnn", "epochs": 1, "batch_size": 40, "storage": str(tmp_path), "save_as": "mine", "seed": 3}
    config = parse_config(TrainConfig, values)
    manifest = save_model(train(stripes, config), config, stripes).bundle.manifest
    assert manifest.class_names == ("horizontal", "vertical", "plain")
    assert parse_config(TrainConfig, manifest.train_config) == config
    assert manifest.dataset_fingerprint == stripes.fingerprint
    assert manifest.test_fingerprint == stripes.test.fingerprint
    assert {"python", "torch", "ray", "cifar-ray"} <= set(manifest.library_versions)
    ours = {
        "val_accuracy",
        "test_accuracy",
        "test_loss",
        "test_accuracy_tta",
        "test_ece",
        "test_ece_sd",
        "test_ece_uncalibrated",
        "test_abstained",
    }
    assert set(manifest.metrics) == ours


def test_a_kept_model_is_calibrated_on_validation_and_abstains_from_few_of_its_images(stripes: DatasetSplits, tmp_path: Path) -> None:
    values = {"model": "small_cnn", "epochs": 4, "batch_size": 40, "storage": str(tmp_path), "label_smoothing": 0.3, "precision": "fp32"}
    config = parse_config(TrainConfig, values | {"optimizer": {"name": "adamw", "lr": 0.01}})
    manifest = save_model(train(stripes, config), config, stripes).bundle.manifest
    predictor = Predictor(ModelStore(str(tmp_path)).load("stripes"), precision="fp32", engine="torch")
    val, test = (predictor.predict(part.images) for part in (stripes.val, stripes.test))
    fitted = Trust.fit(val.logits, stripes.val.labels, val.features)
    kept = read_trust(ModelStore(str(tmp_path)).load("stripes")).familiarity
    assert fitted.familiarity is not None
    assert kept is not None
    assert kept.threshold == pytest.approx(fitted.familiarity.threshold, rel=1e-2)
    assert manifest.temperature == pytest.approx(fitted.temperature) != 1
    assert manifest.abstain_threshold == pytest.approx(fitted.abstain_threshold)
    assert 0 < val.abstains.mean() <= 0.05
    assert manifest.metrics["test_abstained"] == pytest.approx(test.abstains.mean())
    assert manifest.metrics["test_ece"] == pytest.approx(calibrate(test.probabilities, stripes.test.labels).error, abs=1e-6)
    assert manifest.metrics["test_ece"] < manifest.metrics["test_ece_uncalibrated"]  # smoothed labels make it too modest


@pytest.mark.parametrize(("promote", "second_is_promoted"), [("auto", False), ("always", True), ("never", False)])
def test_a_worse_model_replaces_the_one_in_production_only_when_told_to(
    stripes: DatasetSplits, tmp_path: Path, promote: str, second_is_promoted: bool
) -> None:
    values = {"model": "small_cnn", "batch_size": 40, "storage": str(tmp_path), "optimizer": {"name": "adamw", "lr": 0.01}}
    good, bad = (parse_config(TrainConfig, values | changes) for changes in ({"epochs": 4}, {"epochs": 1, "promote": promote}))
    assert save_model(train(stripes, good), good, stripes).promoted
    second = save_model(train(stripes, bad), bad, stripes)
    assert second.promoted == second_is_promoted
    assert ModelStore(str(tmp_path)).aliases("stripes")["production"] == (2 if second_is_promoted else 1)


def test_a_run_that_was_killed_after_it_kept_its_model_keeps_it_once(stripes: DatasetSplits, tmp_path: Path) -> None:
    config = parse_config(TrainConfig, {"model": "small_cnn", "epochs": 1, "batch_size": 40, "storage": str(tmp_path), "name": "run"})
    run = train(stripes, config)
    first = save_model(run, config, stripes, resumed=True)
    again = save_model(run, config, stripes, resumed=True)
    assert (again.bundle.reference, again.promoted) == (first.bundle.reference, True)
    other = config.model_copy(update={"name": "other"})
    assert save_model(dataclasses.replace(run, name="other"), other, stripes, resumed=True).bundle.version == 2
    assert save_model(run, config, stripes).bundle.version == 3


def test_a_kept_model_brings_along_what_it_gets_wrong(stripes: DatasetSplits, tmp_path: Path) -> None:
    values = {"model": "small_cnn", "epochs": 1, "batch_size": 40, "storage": str(tmp_path), "micro_batch_size": 20}
    config = parse_config(TrainConfig, values)
    run = train(stripes, config)
    bundle = save_model(run, config, stripes).bundle
    gallery = json.loads(bundle.attachments[GALLERY_FILE])
    matrix = np.diag(gallery["correct"])
    for one in gallery["confusions"]:
        matrix[one["true"], one["predicted"]] = one["count"]
    np.testing.assert_array_equal(matrix, run.result.test_confusion)
    judged = Predictor(bundle, precision=run.result.precision, engine="torch").predict(stripes.test.images).probabilities
    for mistake in gallery["mistakes"]:
        row = int(mistake["name"].removeprefix("#"))
        assert (mistake["true"], mistake["predicted"]) == (stripes.test.labels[row], judged[row].argmax())
        assert mistake["confidence"] == pytest.approx(judged[row].max(), abs=0.02)
    assert len(gallery["mistakes"]) == min(12 * len(gallery["confusions"]), sum(one["count"] for one in gallery["confusions"]))


def test_gallery_0_keeps_the_matrix_and_no_picture_of_the_user(stripes: DatasetSplits, tmp_path: Path) -> None:
    values = {"model": "small_cnn", "epochs": 1, "batch_size": 40, "storage": str(tmp_path), "gallery": 0}
    config = parse_config(TrainConfig, values)
    run = train(stripes, config)
    saved = save_model(run, config, stripes)
    assert (saved.pictures, saved.bundle.manifest.image_counts) == (0, {"train": 240, "val": 60, "test": 60})
    assert json.loads(saved.bundle.attachments[GALLERY_FILE])["mistakes"] == []
    some = parse_config(TrainConfig, values | {"gallery": 1000, "dataset": "folder", "data_dir": str(tmp_path)})
    saved = save_model(run, some, stripes)
    assert saved.pictures == len(json.loads(saved.bundle.attachments[GALLERY_FILE])["mistakes"]) > 0
    summary = JobResult(some, run, saved).summary()
    line = f"gallery  the model contains {saved.pictures} of your test pictures for the server's page; --gallery 0 leaves them out"
    assert line in summary.splitlines()
    assert "60 pictures)" in summary
    built_in = JobResult(config, run, saved).summary()
    assert "of your test pictures" not in built_in


def test_a_gallery_that_cannot_be_made_does_not_cost_the_model(
    stripes: DatasetSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = parse_config(TrainConfig, {"model": "small_cnn", "epochs": 1, "batch_size": 40, "storage": str(tmp_path)})
    run = train(stripes, config)

    def fail(*_: object) -> bytes:
        raise UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed")

    monkeypatch.setattr(saving, "encode_gallery", fail)
    saved = save_model(run, config, stripes)
    assert (saved.bundle.reference, saved.promoted, saved.pictures) == ("stripes@1", True, 0)
    assert "the model is saved without its gallery: UnicodeEncodeError" in caplog.text


def test_names_of_old_archives_are_shown_escaped_in_the_gallery(stripes: DatasetSplits, tmp_path: Path) -> None:
    config = parse_config(TrainConfig, {"model": "small_cnn", "epochs": 1, "batch_size": 40, "storage": str(tmp_path)})
    run = train(stripes, config)
    assert stripes.test is not None
    named = dataclasses.replace(stripes.test, files=np.array([b"caf\xe9-%d.jpg" % row for row in range(60)]))
    bundle = save_model(run, config, dataclasses.replace(stripes, test=named)).bundle
    mistakes = json.loads(bundle.attachments[GALLERY_FILE])["mistakes"]
    assert mistakes
    assert all(one["name"].startswith("caf\\xe9-") for one in mistakes)
