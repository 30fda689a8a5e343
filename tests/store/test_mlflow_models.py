"""A model goes to MLflow's registry and comes back the same; what it answers there is what a server answers."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cifar_ray import cli, predict
from cifar_ray.config import parse_config
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import BundleError, ConfigError, StoreError, UnknownModelError
from cifar_ray.inference.mlflow_flavour import PictureModel
from cifar_ray.inference.predictor import Predictor
from cifar_ray.inference.preprocess import preprocess
from cifar_ray.store import ModelStore, load_model
from cifar_ray.store.__main__ import main
from cifar_ray.store.gallery import GALLERY_FILE
from cifar_ray.store.mlflow_models import ADDRESS_VARIABLE, stored_reference
from cifar_ray.store.publishing import write_folder
from deployments.http.responses import prediction
from deployments.predicting.contract import ModelInfo
from deployments.predicting.pipeline import Row
from tests.deployments.conftest import SaveTiny, make_picture, save_tiny

__all__ = ["save_tiny"]


@pytest.fixture
def storage(tmp_path: Path, save_tiny: SaveTiny) -> str:
    save_tiny(str(tmp_path / "storage"), metrics={"test_accuracy": 0.9})
    return str(tmp_path / "storage")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow on SQLite, in a folder of this test."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv(ADDRESS_VARIABLE, f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    yield
    logging.getLogger("alembic").handlers.clear()


def test_the_flavour_answers_as_the_server(storage: str, tmp_path: Path) -> None:
    bundle = load_model("pets", storage)
    write_folder(bundle, str(tmp_path / "bundle"))
    answers = PictureModel(str(tmp_path / "bundle")).predict(
        [make_picture(), base64.b64encode(make_picture()).decode(), b"broken"], {"top_k": 2}
    )
    info = ModelInfo("pets", 1, bundle.manifest.class_names, 16, "pad")
    found = Predictor(bundle, "cpu").predict(preprocess(make_picture(), 16, "pad")[None])
    assert answers[0] == answers[1] == prediction(info, Row(found.probabilities[0], bool(found.abstains[0])), 2)
    assert list(answers[2]) == ["error"]


def test_references_and_a_missing_address_are_one_line(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    for reference in ("models:/pets", "models:/a/b/c", "models:/../x", "models:/pets/0"):
        with pytest.raises(UnknownModelError, match="expected models:/NAME/VERSION"):
            load_model(reference, storage)
    with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_URI"):
        load_model("models:/pets/1", storage)
    assert cli.run(lambda: main(["push", "pets", "mlflow:", "--storage", storage])) == 2
    assert stored_reference("pets@1", storage) == "pets@1"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_pushed_model_is_loaded_predicted_with_and_served(
    registry: None, storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc

    store = ModelStore(storage)
    first = store.load("pets")
    store.save("pets", first.manifest, {name: tensor + 0.01 for name, tensor in first.weights.items()}, {GALLERY_FILE: b"{}"})
    for reference in ("pets@1", "pets@2"):
        assert cli.run(lambda reference=reference: main(["push", reference, "mlflow:animals", "--storage", storage])) == 0
    assert "pushed pets@2 to models:/animals/2" in capsys.readouterr().out

    for reference, expected in {"models:/animals/1": "pets@1", "models:/animals/2": "pets@2", "models:/animals/latest": "pets@2"}.items():
        pulled, own = load_model(reference, storage), store.load(expected)
        assert (pulled.name, pulled.manifest.weights_sha256) == ("animals", own.manifest.weights_sha256)
        assert GALLERY_FILE not in pulled.attachments
        assert all(torch.equal(pulled.weights[name], own.weights[name]) for name in own.weights)
    mlflow.MlflowClient().set_registered_model_alias("animals", "champion", "1")
    assert load_model("models:/animals@champion", storage).version == 1
    with pytest.raises(StoreError):
        load_model("models:/animals/9", storage)
    with pytest.raises(UnknownModelError):
        load_model("models:/fish/latest", storage)

    (tmp_path / "a.jpg").write_bytes(make_picture())
    assert cli.run(lambda: predict.main(["models:/animals/1", "a.jpg", "--out", "a.csv", "--storage", storage])) == 0
    assert (tmp_path / "a.csv").read_text().count("\n") == 2

    assert [stored_reference("models:/animals/1", str(tmp_path / "other")) for _ in range(2)] == ["animals@1"] * 2
    assert parse_config(ServeConfig, {"model": "animals@1"}).model == "animals@1"

    model = mlflow.pyfunc.load_model("models:/animals/1")
    pandas = pytest.importorskip("pandas")
    [answer] = model.predict(pandas.DataFrame({"image": [make_picture()]}))
    assert answer["class_name"] in first.manifest.class_names
    assert np.isclose(sum(answer["probabilities"].values()), 1, atol=1e-5)

    weights = next((tmp_path / "mlruns").rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8] + b"damaged!")
    broken = 0
    for number in (1, 2):
        try:
            load_model(f"models:/animals/{number}", storage)
        except BundleError:
            broken += 1
    assert broken == 1
