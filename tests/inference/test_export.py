"""Files for other programs, run by those programs' own means."""

from __future__ import annotations

import json
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from cifar_ray import cli
from cifar_ray.config import ResizePolicy
from cifar_ray.data.decode import fit
from cifar_ray.errors import BundleError, StoreError
from cifar_ray.inference.exporting import answers
from cifar_ray.inference.exporting.export import export
from cifar_ray.inference.exporting.file_formats import FORMATS, FileFormat
from cifar_ray.inference.exporting.import_weights import WeightsMetadata, import_weights
from cifar_ray.inference.exporting.resampling import Square
from cifar_ray.inference.predictor import Prediction, Predictor
from cifar_ray.metrics.trust import Trust
from cifar_ray.models import create_model, list_models
from cifar_ray.store import Bundle, LabelRules, ModelStore, Quantization
from cifar_ray.store.__main__ import main
from cifar_ray.store.manifest import MANIFEST_KEY
from cifar_ray.store.trust_file import read_trust, with_trust

MakeBundle = Callable[..., Bundle]
Pixels = npt.NDArray[np.uint8]
CLIENT = Path(__file__).parents[2] / "examples" / "classify_onnx.py"


def logits_of(bundle: Bundle, images: Pixels) -> npt.NDArray[np.float32]:
    return Predictor(bundle, precision="fp32", engine="torch").predict(images).logits


@pytest.fixture
def kept(tmp_path: Path, make_bundle: MakeBundle) -> Bundle:
    bundle = make_bundle("airnet", temperature=1.5, metrics={"test_accuracy": 0.5})
    return ModelStore(str(tmp_path)).save("pets", bundle.manifest, bundle.weights)


@pytest.mark.usefixtures("without_resizing")
@pytest.mark.parametrize("architecture", sorted({*list_models()} - {"resnet18", "resnet50"}))  # which take long to write
def test_every_architecture_is_written_and_read_back(make_bundle: MakeBundle, tmp_path: Path, architecture: str) -> None:
    pytest.importorskip("onnxruntime")
    assert export(make_bundle(architecture), "onnx", str(tmp_path / "pets.onnx")).deviation < 1e-3


def pictures(*sides: tuple[int, int]) -> list[Pixels]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sides]


def trusting(bundle: Bundle, rules: LabelRules | None = None) -> Bundle:
    """The bundle with a temperature or rules, and with known pictures, one of which the model abstains from."""
    predictor = Predictor(bundle, precision="fp32", engine="torch")
    known = predictor.predict(np.stack(pictures(*40 * [(bundle.manifest.image_size_px,) * 2])))
    trust = Trust(temperature=1.5, rules=rules).with_familiarity(known.logits, known.features)
    return with_trust(bundle, trust)


def expected_of(bundle: Bundle, images: list[Pixels]) -> Prediction:
    manifest = bundle.manifest
    squares = np.stack([fit(Image.fromarray(image), manifest.image_size_px, manifest.resize_policy) for image in images])
    return Predictor(bundle, precision="fp32", engine="torch").predict(squares)


SIDES = ((16, 16), (1, 1), (5, 40), (40, 5), (30, 20), (97, 130), (200, 96))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, torch compiles both branches of `torch.cond`, which takes seconds."""
    monkeypatch.setattr(torch, "cond", lambda condition, yes, no, operands: (yes if condition else no)(*operands))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("policy", ["crop", "pad", "squash"])
def test_resizing_in_the_graph_gives_the_pixels_of_the_server(policy: ResizePolicy) -> None:
    for image in pictures(*SIDES, (33, 49), (320, 215), (12, 500), (500, 12), (96, 400)):
        found = Square(16, policy)(torch.from_numpy(image)[None])[0].numpy()
        np.testing.assert_array_equal(found, fit(Image.fromarray(image), 16, policy), f"{policy} {image.shape}")


RULES = LabelRules((0.45, 0.5, 0.55), (1.0, 2.0, 0.5), (0.1, 0.0, -0.2))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("rules", [None, RULES])
@pytest.mark.parametrize("threshold", [None, 1.0, "familiarity"])
def test_the_graph_gives_every_field_of_a_prediction(make_bundle: MakeBundle, rules: LabelRules | None, threshold: Any) -> None:
    bundle = make_bundle(task="single-label" if rules is None else "multi-label")
    trust = Trust(1.5, None if threshold == "familiarity" else threshold, None, rules)
    bundle = trusting(bundle, rules) if threshold == "familiarity" else with_trust(bundle, trust)
    images = [*pictures(*(30 * [(16, 16)])), np.zeros((16, 16, 3), np.uint8)]
    predictor = Predictor(bundle, precision="fp32", engine="torch")
    expected = predictor.predict(np.stack(images))
    with torch.inference_mode():
        found = answers.PredictionGraph(predictor.network, bundle.manifest, read_trust(bundle))(torch.from_numpy(np.stack(images)))
    logits, probabilities, labels, score, abstains = (output.numpy() for output in found)
    np.testing.assert_allclose(logits, expected.logits, atol=1e-5)
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-6)
    np.testing.assert_array_equal(labels, expected.labels)
    np.testing.assert_array_equal(abstains, expected.abstains)
    if threshold == "familiarity":
        assert expected.abstains[-1]  # black, which no known picture is
        known = read_trust(bundle).familiarity
        assert known is not None
        energetic = logits if rules is None else np.zeros_like(logits)
        np.testing.assert_allclose(score, known.score(energetic, expected.features), rtol=1e-3, atol=1e-4)


def test_onnx_takes_pictures_of_any_size_and_answers_as_the_server(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    bundle = trusting(make_bundle(resize_policy="crop"))
    written = export(bundle, "onnx", str(tmp_path / "pets.onnx"))
    assert (written.deviation < 1e-3, written.pictures, written.latency_ms > 0) == (True, 6, True)
    session = onnxruntime.InferenceSession(tmp_path / "pets.onnx", providers=["CPUExecutionProvider"])
    batches = [image[None] for image in pictures(*SIDES)] + [np.stack(pictures((20, 30), (20, 30), (20, 30)))]
    for batch in batches:
        logits, probabilities, labels, _, abstains = session.run(None, {"images": batch})
        expected = expected_of(bundle, list(batch))
        np.testing.assert_allclose(logits, expected.logits, atol=1e-4)
        np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-5)
        np.testing.assert_array_equal(labels, expected.labels)
        np.testing.assert_array_equal(abstains, expected.abstains)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["cifar_ray.class_names"]) == ["cat", "dog", "eel"]
    assert about["cifar_ray.model"] == "pets@7"
    assert json.loads(about[MANIFEST_KEY])["channel_mean"] == [0.4, 0.5, 0.6]
    assert [output.name for output in session.get_outputs()] == [*json.loads(about["cifar_ray.outputs"])]
    assert [taken.name for taken in session.get_inputs()] == [*json.loads(about["cifar_ray.input"])]
    familiarity = read_trust(bundle).familiarity
    assert familiarity is not None
    assert json.loads(about["cifar_ray.score_threshold"]) == familiarity.threshold

    # the client without torch in examples/
    (image,) = pictures((40, 30))
    expected = expected_of(bundle, [image])
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "black.png")
    monkeypatch.setattr(sys, "argv", [str(CLIENT), str(tmp_path / "pets.onnx"), str(tmp_path / "a.png"), str(tmp_path / "black.png")])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        runpy.run_path(str(CLIENT))
    first, second = capsys.readouterr().out.splitlines()
    best = int(expected.probabilities[0].argmax())
    assert first.endswith(f"{['cat', 'dog', 'eel'][best]} {100 * expected.probabilities[0, best]:.1f} %")
    assert "black.png: not sure, perhaps" in second


@pytest.mark.usefixtures("without_resizing")
def test_torchscript_and_pt2_run_in_plain_torch(make_bundle: MakeBundle, images: Pixels, tmp_path: Path) -> None:
    bundle = with_trust(make_bundle(task="multi-label"), Trust(rules=RULES))
    expected = Predictor(bundle, precision="fp32", engine="torch").predict(images)
    export(bundle, "torchscript", str(tmp_path / "pets.pt"))
    export(bundle, "pt2", str(tmp_path / "pets.pt2"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of TorchScript, by torch itself
        script = torch.jit.load(tmp_path / "pets.pt")
    about = {"cifar_ray.label_thresholds": ""}
    exported = torch.export.load(tmp_path / "pets.pt2", extra_files=about).module()
    assert json.loads(about["cifar_ray.label_thresholds"]) == list(RULES.thresholds)
    for loaded in (script, exported):
        logits, probabilities, *_ = loaded(torch.from_numpy(images))
        np.testing.assert_allclose(logits.detach().numpy(), expected.logits, atol=1e-4)
        np.testing.assert_allclose(probabilities.detach().numpy(), expected.probabilities, atol=1e-5)


@pytest.mark.slow
def test_pt2_takes_pictures_of_any_size(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    export(bundle, "pt2", str(tmp_path / "pets.pt2"))
    loaded = torch.export.load(tmp_path / "pets.pt2").module()
    for image in pictures(*SIDES):
        logits, *_ = loaded(torch.from_numpy(image[None]))
        np.testing.assert_allclose(logits.detach().numpy(), expected_of(bundle, [image]).logits, atol=1e-4)


def test_safetensors_comes_back_through_import_as_the_same_model(kept: Bundle, images: Pixels, tmp_path: Path) -> None:
    export(kept, "safetensors", str(tmp_path / "pets.safetensors"))
    again = import_weights(ModelStore(str(tmp_path)), tmp_path / "pets.safetensors", "copy", WeightsMetadata())
    assert again.reference == "copy@1"
    assert again.manifest == kept.manifest
    np.testing.assert_array_equal(logits_of(again, images), logits_of(kept, images))


def running(run: Callable[[Pixels], Any]) -> FileFormat:
    """A format whose files answer what a function returns."""
    return FileFormat(".any", True, lambda bundle, predictor, path: path.write_bytes(b"newer") and None, lambda bundle, path: ("test", run))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("wrong", ["policy", "logits", "probabilities", "labels", "abstains"])
def test_a_file_that_answers_something_else_is_not_written(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    bundle, target = make_bundle(), tmp_path / "pets.onnx"
    target.write_bytes(b"older")
    network = Predictor(bundle, precision="fp32", engine="torch").network
    right = answers.PredictionGraph(network, bundle.manifest, read_trust(bundle))

    def run(images: Pixels) -> list[npt.NDArray[Any]]:
        with torch.inference_mode():
            outputs = [output.numpy() for output in right(torch.from_numpy(images))]
        if wrong in right.OUTPUTS:
            output = outputs[right.OUTPUTS.index(wrong)]
            output[0] = ~output[0] if output.dtype == bool else output[0] * 1.01
        return outputs

    monkeypatch.setitem(FORMATS, "onnx", running(run))
    if wrong == "policy":
        right.square.policy = "crop"
    with pytest.raises(BundleError, match="the onnx file is wrong: its " + {"policy": "logits"}.get(wrong, wrong)):
        export(bundle, "onnx", str(target))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("pets.onnx", b"older")]


def test_a_network_that_cannot_be_exported_is_refused_with_the_first_reason(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(bundle: Bundle, predictor: Predictor, path: Path) -> None:
        raise RuntimeError("step 1/3\nadvice") from NotImplementedError("no\nsuch operation")

    monkeypatch.setitem(FORMATS, "onnx", FileFormat(".onnx", True, write, FORMATS["onnx"].read))
    with pytest.raises(BundleError, match=r"^pets@7 cannot be exported as onnx: no such operation; try another --format$"):
        export(make_bundle(), "onnx", str(tmp_path / "pets.onnx"))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_resizing")
def test_an_ensemble_is_exported_too(tmp_path: Path, kept: Bundle) -> None:
    from cifar_ray.store.ensembling import save_ensemble

    both = save_ensemble(ModelStore(str(tmp_path)), "both", ["pets@1", "pets@1"])
    assert export(both, "pt2", str(tmp_path / "both.pt2")).deviation < 1e-3


def test_the_commands_say_what_they_did(kept: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    int8 = Quantization(calibration_images=1, measured_on="val", accuracy=0.5, reference_accuracy=0.5, tolerance=0.1, deviation=0.1)
    ModelStore(str(tmp_path)).save("pets", kept.manifest.model_copy(update={"quantization": int8}), kept.weights)
    target = tmp_path / "out" / f"pets{FORMATS['safetensors'].suffix}"
    assert main(["export", "pets@2", "--format", "safetensors", "--output", str(target), "--storage", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "pets@2 as safetensors" in shown
    assert "the file computes in fp32" in shown
    assert "0.00000 %" in shown
    assert "ms for a picture of 16 × 16 px" in shown
    assert main(["import", str(target), "copy", "--storage", str(tmp_path)]) == 0
    assert "copy@1: airnet, 3 classes, 16 px" in capsys.readouterr().out


@pytest.mark.parametrize("architecture", ["small_cnn", "resnet18"])
def test_a_torch_state_dict_becomes_a_model(tmp_path: Path, architecture: str) -> None:
    state = create_model(architecture, num_classes=3, image_size=32).state_dict()
    torch.save({"epoch": 3, "model_state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "theirs.pth")
    meaning = WeightsMetadata(class_names=("a", "b", "c"), channel_mean=(0.1, 0.2, 0.3), channel_std=(0.4, 0.5, 0.6))
    bundle = import_weights(ModelStore(str(tmp_path)), tmp_path / "theirs.pth", "theirs", meaning)
    assert bundle.manifest.architecture.name == architecture
    assert (bundle.manifest.class_names, bundle.manifest.channel_mean, bundle.manifest.image_size_px) == (
        ("a", "b", "c"),
        (0.1, 0.2, 0.3),
        32,
    )
    assert bundle.manifest.metrics == {}
    assert all(torch.equal(bundle.weights[name], tensor) for name, tensor in state.items())


def test_like_brings_classes_and_normalisation_of_another_model(kept: Bundle, tmp_path: Path) -> None:
    torch.save(kept.weights, tmp_path / "weights.pt")
    bundle = import_weights(ModelStore(str(tmp_path)), tmp_path / "weights.pt", "twin", WeightsMetadata(like=kept.manifest))
    assert (bundle.manifest.class_names, bundle.manifest.channel_std) == (kept.manifest.class_names, kept.manifest.channel_std)
    assert bundle.manifest.image_size_px == 16


class Code:
    """Something that a pickle would run."""


@pytest.mark.parametrize(
    ("content", "flags", "reason"),
    [
        ({"conv.weight": torch.zeros(2)}, ["--classes", "a,b"], "unknown architecture"),
        (create_model("small_cnn", 3, 32).state_dict(), [], "pass --classes or --like"),
        (create_model("small_cnn", 3, 32).state_dict(), ["--classes", "a,b"], "3 classes, got 2 class names"),
        ({"epoch": 3}, ["--classes", "a,b"], "no state dict found"),
        (Code(), ["--classes", "a,b"], "not loaded for security"),
        (None, ["--classes", "a,b"], "not a torch file"),
    ],
)
def test_what_cannot_be_imported_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object, flags: list[str], reason: str
) -> None:
    path = tmp_path / "theirs.pth"
    path.write_bytes(b"no") if content is None else torch.save(content, path)
    assert cli.run(lambda: main(["import", str(path), "theirs", *flags, "--storage", str(tmp_path)])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
    assert not ModelStore(str(tmp_path)).names()


def test_a_folder_that_cannot_be_written_is_named(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*file/pets\.safetensors"):
        export(make_bundle(), "safetensors", str(tmp_path / "file" / "pets.safetensors"))
