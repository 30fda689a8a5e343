"""An ensemble is a bundle like any other, and answers with the mean of its members' probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cifar_ray.config import EngineName
from cifar_ray.errors import StoreError
from cifar_ray.inference.predictor import Predictor
from cifar_ray.metrics.familiarity import energy
from cifar_ray.store import ModelStore
from cifar_ray.store.__main__ import main
from cifar_ray.store.ensembling import save_ensemble
from tests.inference.conftest import MakeBundle


@pytest.fixture
def store(tmp_path: Path, make_bundle: MakeBundle) -> ModelStore:
    store = ModelStore(str(tmp_path))
    for name, changes in {
        "a": {"architecture": "small_cnn", "temperature": 1.5},
        "b": {"architecture": "resnet18", "channel_mean": (0.1, 0.2, 0.3), "channel_std": (0.5, 0.4, 0.3)},
        "other": {"class_names": ("cat", "dog", "fox")},
    }.items():
        bundle = make_bundle(**changes)
        store.save(name, bundle.manifest, bundle.weights)
    return store


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_an_ensemble_answers_with_the_mean_of_its_members(store: ModelStore, images: npt.NDArray[np.uint8], engine: EngineName) -> None:
    bundle = save_ensemble(store, "both", ["a", "b@1"])
    answer = Predictor(store.load(bundle.reference), precision="fp32", engine=engine).predict(images)
    members = [Predictor(store.load(name), precision="fp32", engine="torch").predict(images) for name in ("a", "b")]
    np.testing.assert_allclose(answer.probabilities, np.mean([member.probabilities for member in members], axis=0), atol=2e-4)
    assert np.abs(members[0].probabilities - members[1].probabilities).max() > 0.01  # else the mean would prove nothing
    known = np.mean([energy(member.logits) for member in members], axis=0)
    np.testing.assert_allclose(energy(answer.logits), known, atol=2e-3)


def test_members_stay_in_the_ensemble_when_they_are_deleted(store: ModelStore, images: npt.NDArray[np.uint8]) -> None:
    save_ensemble(store, "both", ["a", "b"])
    store.delete("a@1", force=True)
    assert Predictor(store.load("both")).predict(images).probabilities.shape == (5, 3)
    assert store.manifest("both").train_config == {"ensemble_of": ["a@1", "b@1"]}


def test_an_ensemble_may_hold_ensembles(store: ModelStore, images: npt.NDArray[np.uint8]) -> None:
    save_ensemble(store, "both", ["a", "b"])
    save_ensemble(store, "more", ["both", "a"])
    rows = {
        name: Predictor(store.load(name), precision="fp32", engine="torch").predict(images).probabilities for name in ("a", "both", "more")
    }
    np.testing.assert_allclose(rows["more"], (rows["both"] + rows["a"]) / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("members", "message"), [(["a", "other"], "have different class_names"), (["a"], "at least two"), (["a", "c"], "model c not found")]
)
def test_members_that_do_not_fit_are_refused(store: ModelStore, members: list[str], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        save_ensemble(store, "both", members)
    assert "both" not in store.names()


def test_the_command_says_what_it_made(store: ModelStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ensemble", "both", "a", "b", "--storage", store.storage]) == 0
    printed = capsys.readouterr().out
    assert "both@1" in printed
    assert "serve run deployments:app model=both@1" in printed
