from __future__ import annotations

import dataclasses
import importlib.util
import io
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cifar_ray import quantize
from cifar_ray.captures.capture_files import Capture
from cifar_ray.captures.reviews import Reviews
from cifar_ray.config import TrainConfig
from cifar_ray.data import load_splits
from cifar_ray.data.dataset import ImageDataset
from cifar_ray.errors import BundleError, ConfigError, MissingDependencyError
from cifar_ray.inference.engines import choice
from cifar_ray.inference.engines.openvino_engine import INT8_FILES
from cifar_ray.inference.int8 import held_out_score, with_int8
from cifar_ray.inference.predictor import Predictor
from cifar_ray.metrics.familiarity import energy
from cifar_ray.metrics.trust import Trust
from cifar_ray.models import create_model
from cifar_ray.store import Bundle, ModelStore
from cifar_ray.store.trust_file import with_trust

MakeBundle = Callable[..., Bundle]

needs_nncf = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None or importlib.util.find_spec("openvino") is None, reason="needs the quantize extra"
)
# NNCF's own use of numpy and networkx
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def gradients(count: int) -> np.ndarray:
    """Smooth pictures, as photos are."""
    ends = np.random.default_rng(1).integers(0, 256, (2, count, 1, 1, 3))
    ramp = np.linspace(0, 1, 16)[None, :, None, None]
    return np.broadcast_to(ends[0] * ramp + ends[1] * (1 - ramp), (count, 16, 16, 3)).astype(np.uint8)


@pytest.fixture
def held_out(make_bundle: MakeBundle) -> dict[str, ImageDataset]:
    """Pictures with the classes that the network sees in them."""
    images = gradients(40)
    labels = Predictor(make_bundle(), precision="fp32", engine="torch").predict(images).logits.argmax(axis=1)
    data = ImageDataset(images, labels.astype(np.int64), ("cat", "dog", "eel"))
    return {"val": data.subset(np.arange(10)), "test": data.subset(np.arange(10, 40))}


@pytest.fixture
def int8(make_bundle: MakeBundle, held_out: dict[str, ImageDataset]) -> Bundle:
    return with_int8(make_bundle(), gradients(20), held_out, tolerance=0.2)


@needs_nncf
def test_the_int8_form_answers_nearly_alike_and_says_what_it_costs(int8: Bundle, held_out: dict[str, ImageDataset], tmp_path: Path) -> None:
    kept = ModelStore(str(tmp_path)).save("pets", int8.manifest, int8.weights, int8.attachments)
    bundle = ModelStore(str(tmp_path)).load(kept.reference)
    predictor = Predictor(bundle, engine="openvino-int8")
    assert (predictor.engine, predictor.precision.name) == ("openvino-int8", "fp32")
    right = [predictor.predict(part.images).logits.argmax(axis=1) == part.labels for part in held_out.values()]
    record = bundle.manifest.quantization
    assert record is not None
    assert (record.calibration_images, record.measured_on) == (20, "10 val and 30 test images")
    assert record.accuracy == pytest.approx(np.concatenate(right).mean())
    assert record.reference_accuracy == 1
    assert record.accuracy >= 0.8
    expected = Predictor(bundle, precision="fp32", engine="torch").embed(gradients(20))
    assert (predictor.embed(gradients(20)) * expected).sum(axis=1).min() > 0.9, "the int8 form gives features, too"


@needs_nncf
def test_each_phase_is_named_and_counted(make_bundle: MakeBundle, held_out: dict[str, ImageDataset]) -> None:
    begun: list[tuple[str, int]] = []
    done: list[int] = []
    with_int8(make_bundle(), gradients(20), held_out, 0.2, lambda name, total: (begun.append((name, total)), done.append)[1])
    assert begun == [("quantizing", 0), ("evaluating fp32", 40), ("evaluating int8", 40)]
    assert done == [10, 30, 10, 30]


@needs_nncf
def test_an_int8_form_of_an_older_release_has_no_features_and_abstains_by_the_energy(
    make_bundle: MakeBundle, held_out: dict[str, ImageDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = gradients(40)
    answer = Predictor(make_bundle(), precision="fp32", engine="torch").predict(pictures)
    trust = Trust.fit(answer.logits, answer.logits.argmax(axis=1), answer.features)
    monkeypatch.setattr("cifar_ray.inference.int8.with_features", lambda network: network)
    bundle = with_int8(with_trust(make_bundle(), trust), gradients(20), held_out, tolerance=0.2)
    found = Predictor(bundle, engine="openvino-int8").predict(pictures)
    assert found.features.shape == (40, 0)
    np.testing.assert_array_equal(found.abstains, energy(found.logits) < trust.abstain_threshold)


@needs_nncf
def test_a_form_that_loses_more_than_allowed_is_refused(
    make_bundle: MakeBundle, held_out: dict[str, ImageDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifar_ray.inference.int8.held_out_score", lambda engine, *_: 0.9 if engine.name == "torch" else 0.897)
    with pytest.raises(ConfigError, match=r"int8 accuracy 89\.70 % is more than 0\.2 points below the fp32 accuracy 90\.00 %"):
        with_int8(make_bundle(), gradients(20), held_out, tolerance=0.002)


@needs_nncf
@pytest.mark.parametrize(("gain", "taken"), [(1.3, "openvino-int8"), (0.9, "torch")])
def test_auto_takes_it_where_it_was_measured_faster(int8: Bundle, monkeypatch: pytest.MonkeyPatch, gain: float, taken: str) -> None:
    monkeypatch.setattr(choice, "speedup", lambda *_: gain)
    predictor = Predictor(int8)
    assert predictor.engine == taken
    assert "openvino-int8 measured" in predictor.engine_reason


@needs_nncf
def test_who_asks_for_a_precision_does_not_get_int8(int8: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "speedup", lambda *_: 2.0)
    assert Predictor(int8, precision="fp32").engine == "openvino"


@needs_nncf
def test_an_int8_form_of_another_network_is_never_taken(int8: Bundle, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "speedup", lambda *_: 2.0)
    other = {name: -tensor if name.startswith("head") or name.startswith("fc") else tensor * 3 for name, tensor in int8.weights.items()}
    mixed = dataclasses.replace(int8, weights=other)
    assert Predictor(mixed).engine == "openvino"
    with pytest.raises(ConfigError, match="the logits of openvino-int8 deviate by"):
        Predictor(mixed, engine="openvino-int8")


@needs_nncf
def test_a_damaged_int8_form_is_a_damaged_bundle(int8: Bundle, tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    store.save("pets", int8.manifest, int8.weights, int8.attachments)
    file = tmp_path / "models" / "pets" / "1" / INT8_FILES[1]
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    for read in (store.load, store.check):
        with pytest.raises(BundleError, match=r"openvino_int8\.bin .* is damaged"):
            read("pets@1")
    file.unlink()
    with pytest.raises(BundleError, match=r"openvino_int8\.bin is missing"):
        store.promote("pets", 1)


def test_a_bundle_without_one_says_how_to_make_it(make_bundle: MakeBundle) -> None:
    with pytest.raises(ConfigError, match=r"no int8 form; create one with: cifar-ray quantize NAME"):
        Predictor(make_bundle(), engine="openvino-int8")


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the openvino extra")
def test_without_nncf_the_message_says_what_to_install(
    make_bundle: MakeBundle, held_out: dict[str, ImageDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingDependencyError, match=r"cifar-ray\[quantize\]"):
        with_int8(make_bundle(), gradients(20), held_out, tolerance=0.2)


@needs_nncf
def test_the_verb_keeps_a_new_version_and_leaves_production_alone(
    make_bundle: MakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(dataset="digits", model="small_cnn", storage=str(tmp_path))
    splits = load_splits(config)
    size = splits.train.image_size_px
    weights = create_model("small_cnn", num_classes=10, image_size=size).state_dict()
    fresh = make_bundle(
        weights=weights,
        arguments={"num_classes": 10, "image_size": size},
        class_names=splits.train.class_names,
        image_size_px=size,
        dataset_fingerprint=splits.fingerprint,
        train_config=config.model_dump(mode="json") | {"with_reviews": True},
    )
    png = io.BytesIO()
    Image.new("RGB", (40, 40)).save(png, "PNG")
    for number in range(10):  # after the training
        about = Capture(str(number), 0, datetime.now(UTC), "digits@1", "8", 0.5, abstains=False, disagrees=False, picture=png.getvalue())
        Reviews(str(tmp_path)).add(about.key, "3", "alice", about)
    store = ModelStore(str(tmp_path))
    store.save("digits", fresh.manifest, fresh.weights)
    store.promote("digits", 1)
    flags = ["--storage", str(tmp_path), "--calibration-images", "20", "--tolerance-points", "100"]
    assert quantize.main(["digits", *flags]) == 0
    assert "saved  digits@2: digits@1 with its int8 form" in capsys.readouterr().out
    assert store.aliases("digits") == {"production": 1}
    assert Predictor(store.load("digits@2"), engine="openvino-int8").engine == "openvino-int8"

    other = fresh.manifest.model_copy(update={"dataset_fingerprint": "f" * 64})
    store.save("digits", other, fresh.weights)
    with pytest.raises(ConfigError, match="the images of digits differ from the training images of digits@3"):
        quantize.main(["digits@3", *flags])


def test_with_several_labels_the_loss_is_that_of_the_map() -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    labels = (rng.random((600, 3)) < 0.3).astype(np.uint8)
    logits = rng.normal(size=(600, 3)).astype(np.float32) + labels
    images = np.zeros((600, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(600), 256)
    parts = {"val": slice(0, 300), "test": slice(300, 600)}
    held_out = {name: ImageDataset(images[part], labels[part], ("a", "b", "c")) for name, part in parts.items()}

    class Known:
        def logits(self, some: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            return logits[some[:, 0, 0, 0].astype(int) * 256 + some[:, 0, 0, 1]]

    assert held_out_score(Known(), held_out) == pytest.approx(average_precision_score(labels, logits))
