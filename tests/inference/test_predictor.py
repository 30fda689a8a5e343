from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cifar_ray.config import EngineName, PrecisionName
from cifar_ray.data.batches.transforms import normalize
from cifar_ray.errors import BundleError
from cifar_ray.inference.predictor import Predictor
from cifar_ray.metrics.familiarity import energy
from cifar_ray.metrics.label_rules import LabelRules
from cifar_ray.models import create_model
from cifar_ray.models.precision import Precision
from cifar_ray.store import Architecture, Bundle

MakeBundle = Callable[..., Bundle]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_logits_are_those_of_the_network_that_was_kept(
    make_bundle: MakeBundle, images: npt.NDArray[np.uint8], precision: PrecisionName
) -> None:
    bundle = make_bundle()
    model = create_model("small_cnn", num_classes=3, image_size=16).eval().to(memory_format=torch.channels_last)
    model.load_state_dict(bundle.weights)
    formats = Precision.resolve(precision, torch.device("cpu"))
    with torch.inference_mode(), formats.autocast():
        expected = model(normalize(torch.from_numpy(images), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), formats.dtype)).float()
    logits = Predictor(bundle, precision=precision, engine="torch").predict(images).logits
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, expected.numpy())


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_images_below_the_threshold_are_abstained_from_by_every_engine_and_none_without_one(
    make_bundle: MakeBundle, images: npt.NDArray[np.uint8], engine: EngineName
) -> None:
    known = energy(Predictor(make_bundle(), precision="fp32", engine="torch").predict(images).logits)
    threshold = float(np.sort(known)[1:3].mean())
    answers = [Predictor(make_bundle(abstain_threshold=at), precision="fp32", engine=engine).predict(images) for at in (threshold, None)]
    np.testing.assert_array_equal(answers[0].abstains, known < threshold)
    assert answers[0].abstains.sum() == 2
    assert not answers[1].abstains.any()
    np.testing.assert_array_equal(answers[0].probabilities, answers[1].probabilities)


def test_probabilities_are_the_softmax_of_logits_over_temperature(make_bundle: MakeBundle, images: npt.NDArray[np.uint8]) -> None:
    prediction = Predictor(make_bundle(temperature=2.0), precision="fp32").predict(images)
    exponentials = np.exp(prediction.logits / 2)
    np.testing.assert_allclose(prediction.probabilities, exponentials / exponentials.sum(1, keepdims=True), rtol=1e-5)


def test_batch_norm_neither_mixes_images_nor_learns_from_them(make_bundle: MakeBundle, images: npt.NDArray[np.uint8]) -> None:
    predictor = Predictor(make_bundle("resnet18"), precision="fp32", engine="torch")
    together = predictor.predict(images).logits
    alone = np.concatenate([predictor.predict(images[i : i + 1]).logits for i in range(len(images))])
    np.testing.assert_allclose(alone, together, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(predictor.predict(images).logits, together)


def test_read_only_images_are_taken_without_a_warning(make_bundle: MakeBundle, images: npt.NDArray[np.uint8]) -> None:
    images.flags.writeable = False
    predictor = Predictor(make_bundle())
    predictor.warm_up(4)
    assert predictor.predict(images).probabilities.shape == (5, 3)


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 15, 16, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)]
)
def test_images_of_another_shape_or_dtype_are_refused(make_bundle: MakeBundle, wrong: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[N, 16, 16, 3\]"):
        Predictor(make_bundle()).predict(wrong)


def nan_weights() -> dict[str, torch.Tensor]:
    return {name: tensor * torch.nan for name, tensor in create_model("small_cnn", 3, 16).state_dict().items()}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weights": {}}, "pets@7: the weights do not match small_cnn: .*Missing key"),
        ({"weights": create_model("small_cnn", 4, 16).state_dict()}, "size mismatch"),
        ({"weights": nan_weights()}, "not finite"),
        ({"class_names": ("cat", "dog")}, "3 outputs, but the manifest has 2 class names"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(make_bundle: MakeBundle, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BundleError, match=reason) as refusal:
        Predictor(make_bundle(**changes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        (Architecture(name="perceptron", arguments={"num_classes": 3, "image_size": 16}), "pets@7: .*perceptron"),
        (Architecture(name="small_cnn", arguments={"num_classes": 3, "image_size": 16, "depth": 9}), "depth"),
        (Architecture(name="small_cnn"), "num_classes"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(make_bundle: MakeBundle, architecture: Architecture, reason: str) -> None:
    bundle = make_bundle()
    manifest = bundle.manifest.model_copy(update={"architecture": architecture})
    with pytest.raises(BundleError, match=reason):
        Predictor(Bundle(manifest, bundle.weights, bundle.name, bundle.version))


def test_a_multi_label_model_gives_each_label_by_its_own_rule(make_bundle: MakeBundle, images: npt.NDArray[np.uint8]) -> None:
    rules = LabelRules(thresholds=(0.5, 0.2, 1.5), slopes=(2.0, 1.0, 0.5), offsets=(0.1, -0.3, 4.0))
    found = Predictor(make_bundle(task="multi-label", label_rules=rules), precision="fp32", engine="torch").predict(images)
    expected = 1 / (1 + np.exp(-(found.logits.astype(np.float64) * rules.slopes + rules.offsets)))
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    np.testing.assert_array_equal(found.labels, found.probabilities >= np.float32(rules.thresholds))
    assert not found.labels[:, 2].any(), "a threshold above 1 never gives the label"
    plain = Predictor(make_bundle(task="multi-label"), precision="fp32", engine="torch").predict(images)
    np.testing.assert_array_equal(plain.labels, plain.logits >= 0)


def test_with_one_label_per_picture_exactly_the_most_likely_class_is_given(make_bundle: MakeBundle, images: npt.NDArray[np.uint8]) -> None:
    found = Predictor(make_bundle(), precision="fp32", engine="torch").predict(images)
    np.testing.assert_array_equal(found.labels.sum(axis=1), 1)
    np.testing.assert_array_equal(found.labels.argmax(axis=1), found.logits.argmax(axis=1))
