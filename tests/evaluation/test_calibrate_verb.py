"""`python -m cifar_ray.calibrate`, as a user runs it, and what `evaluate` then says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cifar_ray import __main__ as console
from cifar_ray.config import TrainConfig
from cifar_ray.data import load_splits
from cifar_ray.inference.predictor import Predictor
from cifar_ray.metrics import trust as trust_module
from cifar_ray.metrics.accuracy import softmax
from cifar_ray.metrics.calibration import calibrate
from cifar_ray.metrics.trust import Trust
from cifar_ray.store import Bundle, ModelStore
from cifar_ray.store.ensembling import save_ensemble
from cifar_ray.store.trust_file import read_trust

Models = tuple[Path, Callable[..., Bundle]]
Shown = pytest.CaptureFixture[str]


def test_a_model_kept_before_is_calibrated_on_validation_and_evaluate_shows_before_and_after_on_test(
    models: Models, pictures: Path, tmp_path: Path, capsys: Shown
) -> None:
    storage, save = models
    store = ModelStore(str(storage))
    old = store.save("old", save("source").manifest, save("source").weights, {"notes.txt": b"kept"})
    assert console.main(["calibrate", "old", "--storage", str(storage)]) == 0
    shown = capsys.readouterr().out
    new = store.load("old@latest")
    assert new.reference == "old@2"
    assert "cifar-ray store promote old@2 --storage" in shown
    assert store.aliases("old") == {}

    splits = load_splits(TrainConfig(dataset="folder", data_dir=str(pictures), image_size=16, seed=3))
    assert splits.val is not None
    assert splits.test is not None
    val, tested = (Predictor(old, engine="torch").predict(part.images) for part in (splits.val, splits.test))
    test = tested.logits
    trust = Trust.fit(val.logits, splits.val.labels, val.features, splits.val.bursts)
    assert trust.familiarity is not None
    assert (new.manifest.temperature, new.manifest.abstain_threshold) == pytest.approx((trust.temperature, trust.abstain_threshold))
    assert new.attachments["notes.txt"] == b"kept"
    assert read_trust(new).familiarity.threshold == pytest.approx(trust.familiarity.threshold, rel=1e-3)
    assert all(torch.equal(new.weights[name], weights) for name, weights in old.weights.items())

    flags = ["--storage", str(storage), "--out", str(tmp_path / "out"), "--robustness-images", "0", "--no-leakage"]
    assert console.main(["evaluate", "old@2", *flags]) == 0
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    before, after = (calibrate(softmax(test, at), splits.test.labels).error for at in (1.0, trust.temperature))
    assert figures["calibration"]["expected_calibration_error_without_it"] == pytest.approx(before)
    assert figures["calibration"]["expected_calibration_error"] == pytest.approx(after) != pytest.approx(before)
    assert new.manifest.metrics["test_ece"] == pytest.approx(after)
    unsure = trust.abstains(test, tested.features)
    assert figures["abstaining"]["share"] == pytest.approx(unsure.mean())
    right = test.argmax(1) == splits.test.labels
    assert figures["abstaining"]["accuracy_of_the_rest"] == pytest.approx(right[~unsure].mean())
    assert figures["accuracy"] == right.mean()
    assert f"{100 * before:.2f} % without the temperature of {trust.temperature:.3g}" in capsys.readouterr().out
    assert f"calibration error {100 * before:.2f} % → {100 * after:.2f} %" in shown


def test_a_calibration_without_effect_says_so(models: Models, capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, save = models
    store = ModelStore(str(storage))
    save("again")
    flags = ["--storage", str(storage)]
    assert console.main(["calibrate", "again", *flags]) == 0
    assert "saved  again@2: again@1, calibrated" in capsys.readouterr().out
    assert console.main(["calibrate", "again@2", *flags]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "same   again@2 has this temperature and abstain threshold already; nothing was saved"
    assert store.versions("again") == [1, 2]
    monkeypatch.setattr(trust_module, "fit_temperature_if_better", lambda *_: 1.0)
    assert console.main(["calibrate", "again@1", *flags]) == 0
    shown = capsys.readouterr().out
    assert "temperature 1 (no other improves the calibration)" in shown
    assert "saved  again@3: again@1, same probabilities, new abstain threshold" in shown


def test_an_ensemble_never_abstains_until_it_is_calibrated_on_data_that_it_is_told(models: Models, pictures: Path, capsys: Shown) -> None:
    storage, save = models
    store = ModelStore(str(storage))
    for seed in (1, 2):
        save("part", seed=seed, abstain_threshold=0.0, temperature=2.0)
    save_ensemble(store, "parts", ["part@1", "part@2"])
    assert (store.manifest("parts").temperature, store.manifest("parts").abstain_threshold) == (1.0, None)
    assert console.main(["calibrate", "parts", "--storage", str(storage)]) == 2
    assert "does not name its training data; pass --dataset" in capsys.readouterr().err
    assert console.main(["calibrate", "parts", "--storage", str(storage), "--data-dir", str(pictures)]) == 0
    made = store.load("parts@latest")
    splits = load_splits(TrainConfig(dataset="folder", data_dir=str(pictures), image_size=16))
    assert splits.val is not None
    abstains = Predictor(made, engine="torch").predict(splits.val.images).abstains
    assert np.mean(abstains) <= 0.05
    assert read_trust(made).familiarity is not None


def test_a_data_set_with_other_classes_is_refused_in_one_line(models: Models, capsys: Shown) -> None:
    storage, save = models
    save("strange")
    assert console.main(["calibrate", "strange", "--storage", str(storage), "--dataset", "digits"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "class '0' of digits is not a class of the model" in line
    assert ModelStore(str(storage)).versions("strange") == [1]
