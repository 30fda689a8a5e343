"""What release 0.1 saved still loads, resumes and serves; what a newer release saved is refused in one line.

`tests/saved` holds a model and two runs of `small_cnn` on the digits, made by release 0.1.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cifar_ray import __main__ as console
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.data import load_splits
from cifar_ray.errors import BundleError, ConfigError
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import ModelStore, load_model
from cifar_ray.training.records.checkpoint import Checkpoints
from cifar_ray.training.records.run_folder import Run
from cifar_ray.training.records.saved_runs import saved_settings
from deployments.replicas.live_models import LiveModels

SAVED = Path(__file__).parent / "saved"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAVED, tmp_path / "storage"))


def test_a_saved_model_loads_and_is_as_accurate_as_its_manifest_says(storage: Path) -> None:
    bundle = load_model("digits", str(storage))
    assert bundle.reference == "digits@1"
    test = load_splits(parse_config(TrainConfig, bundle.manifest.train_config)).test
    predicted = Predictor(bundle, "cpu", "fp32", "torch").predict(test.images).probabilities.argmax(axis=1)
    assert float(np.mean(predicted == test.labels)) == pytest.approx(bundle.manifest.metrics["test_accuracy"], abs=0.02)


def test_a_saved_model_serves(storage: Path) -> None:
    models = LiveModels(ServeConfig(storage=str(storage), engine="torch"), "cpu")
    models.refresh()
    assert models.status.problem == ""
    assert models.status.require().reference == "digits@1"
    assert json.loads(models.gallery(None).content)["split"] == "test"


def test_a_promotion_adds_the_format_version_to_the_aliases(storage: Path) -> None:
    store = ModelStore(str(storage))
    assert store.aliases("digits") == {"production": 1}
    bundle = store.load("digits")
    store.save("digits", bundle.manifest, bundle.weights)
    store.promote("digits", 2)
    assert store.aliases("digits") == {"production": 2, "previous": 1}
    assert json.loads((storage / "models/digits/aliases.json").read_text())["format_version"] == 1


def test_a_finished_run_is_still_finished(storage: Path) -> None:
    config = parse_config(TrainConfig, saved_settings("finished", str(storage)))
    with pytest.raises(ConfigError, match="is finished"):
        Run(config)


def test_an_interrupted_run_resumes_to_its_end(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["train", "--resume", "interrupted", "--storage", str(storage), "--cluster", "local"]) == 0
    assert "step 3 of epoch 3" in capsys.readouterr().err
    history = json.loads((storage / "runs/interrupted/history.json").read_text())
    before = json.loads((SAVED / "runs/interrupted/history.json").read_text())
    assert len(history) == 6
    assert history[:2] == before
    assert ModelStore(str(storage)).load("resumed").manifest.metrics["val_accuracy"] > before[-1]["val_accuracy"]


def test_a_run_of_an_earlier_release_continues_with_its_draws(storage: Path) -> None:
    settings = saved_settings("interrupted", str(storage))
    assert settings["draws"] == 1
    assert Run(parse_config(TrainConfig, settings | {"draws": 2}), "interrupted").config.draws == 1
    assert parse_config(TrainConfig, {}).draws == 2


def newer(path: Path) -> None:
    """Writes a file as a later release would."""
    text = path.read_text()
    if path.suffix == ".yaml":
        path.write_text(f"format_version: 2\n{text}")
    else:
        path.write_text(json.dumps(json.loads(text) | {"format_version": 2}))


def test_a_newer_run_is_refused(storage: Path) -> None:
    newer(storage / "runs/interrupted/config.yaml")
    with pytest.raises(ConfigError, match=r"config\.yaml: format_version 2 is not one that .*; upgrade cifar-ray"):
        saved_settings("interrupted", str(storage))


def test_a_newer_checkpoint_is_refused_and_not_taken_for_a_damaged_one(storage: Path) -> None:
    checkpoints = Checkpoints(str(storage), "interrupted")
    (place,) = checkpoints.places()
    newer(storage / "runs/interrupted" / place.folder / "checkpoint.json")
    with pytest.raises(ConfigError, match=r"checkpoint\.json: format_version 2"):
        checkpoints.newest()


def test_newer_aliases_are_refused(storage: Path) -> None:
    newer(storage / "models/digits/aliases.json")
    with pytest.raises(ConfigError, match=r"aliases\.json: format_version 2"):
        ModelStore(str(storage)).aliases("digits")


def test_a_newer_model_is_refused(storage: Path) -> None:
    newer(storage / "models/digits/1/manifest.json")
    with pytest.raises(BundleError, match="format_version"):
        load_model("digits", str(storage))
