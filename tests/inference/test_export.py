"""Files for other programs, run by those programs' own means."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cifar_ray import cli
from cifar_ray.errors import BundleError, StoreError
from cifar_ray.inference.exporting import export as exporting
from cifar_ray.inference.exporting.export import export
from cifar_ray.inference.exporting.file_formats import FORMATS
from cifar_ray.inference.exporting.import_weights import Meaning, import_weights
from cifar_ray.inference.predictor import Predictor
from cifar_ray.models import create_model, list_models
from cifar_ray.store import Bundle, ModelStore
from cifar_ray.store.__main__ import main
from cifar_ray.store.manifest import MANIFEST_KEY

MakeBundle = Callable[..., Bundle]
Pixels = npt.NDArray[np.uint8]


def logits_of(bundle: Bundle, images: Pixels) -> npt.NDArray[np.float32]:
    return Predictor(bundle, precision="fp32", engine="torch").predict(images).logits


@pytest.fixture
def kept(tmp_path: Path, make_bundle: MakeBundle) -> Bundle:
    bundle = make_bundle("airnet", temperature=1.5, metrics={"test_accuracy": 0.5})
    return ModelStore(str(tmp_path)).save("pets", bundle.manifest, bundle.weights)


@pytest.mark.parametrize("architecture", sorted({*list_models()} - {"resnet18", "resnet50"}))  # which take long to write
def test_every_architecture_is_written_and_read_back(make_bundle: MakeBundle, tmp_path: Path, architecture: str) -> None:
    pytest.importorskip("onnxruntime")
    assert export(make_bundle(architecture), "onnx", str(tmp_path / "pets.onnx")).deviation < 1e-3


def test_onnx_takes_pixels_and_gives_the_logits_and_probabilities_of_the_bundle(
    make_bundle: MakeBundle, images: Pixels, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    bundle = make_bundle("airnet", temperature=1.5)
    written = export(bundle, "onnx", str(tmp_path / "pets.onnx"))
    assert written.deviation < 1e-3
    session = onnxruntime.InferenceSession(tmp_path / "pets.onnx", providers=["CPUExecutionProvider"])
    for batch in (images, images[:1]):
        logits, probabilities = session.run(None, {"images": batch})
        expected = Predictor(bundle, precision="fp32", engine="torch").predict(batch)
        np.testing.assert_allclose(logits, expected.logits, atol=1e-4)
        np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["cifar_ray.class_names"]) == ["cat", "dog", "eel"]
    assert json.loads(about[MANIFEST_KEY])["channel_mean"] == [0.4, 0.5, 0.6]


def test_torchscript_and_pt2_run_in_plain_torch(make_bundle: MakeBundle, images: Pixels, tmp_path: Path) -> None:
    bundle = make_bundle(temperature=1.5)
    expected = Predictor(bundle, precision="fp32", engine="torch").predict(images)
    export(bundle, "torchscript", str(tmp_path / "pets.pt"))
    export(bundle, "pt2", str(tmp_path / "pets.pt2"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of TorchScript, by torch itself
        script = torch.jit.load(tmp_path / "pets.pt")
    for loaded in (script, torch.export.load(tmp_path / "pets.pt2").module()):
        logits, probabilities = loaded(torch.from_numpy(images))
        np.testing.assert_allclose(logits.detach().numpy(), expected.logits, atol=1e-4)
        np.testing.assert_allclose(probabilities.detach().numpy(), expected.probabilities, atol=1e-5)


def test_safetensors_comes_back_through_import_as_the_same_model(kept: Bundle, images: Pixels, tmp_path: Path) -> None:
    export(kept, "safetensors", str(tmp_path / "pets.safetensors"))
    again = import_weights(ModelStore(str(tmp_path)), tmp_path / "pets.safetensors", "copy", Meaning())
    assert again.reference == "copy@1"
    assert again.manifest == kept.manifest
    np.testing.assert_array_equal(logits_of(again, images), logits_of(kept, images))


def test_a_file_that_computes_something_else_is_not_written(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pets.pt").write_bytes(b"older")
    read = exporting._FORMATS["torchscript"][1]

    def off_by_a_little(path: Path, bundle: Bundle) -> object:
        engine = read(path, bundle)
        return exporting._FileEngine(engine.name, lambda images: engine.logits(images) * 1.01)

    monkeypatch.setitem(exporting._FORMATS, "torchscript", (exporting._FORMATS["torchscript"][0], off_by_a_little))
    with pytest.raises(BundleError, match="deviate by"):
        export(make_bundle(), "torchscript", str(tmp_path / "pets.pt"))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("pets.pt", b"older")]


def test_an_ensemble_is_exported_too(tmp_path: Path, kept: Bundle) -> None:
    from cifar_ray.store.ensembling import save_ensemble

    both = save_ensemble(ModelStore(str(tmp_path)), "both", ["pets@1", "pets@1"])
    assert export(both, "torchscript", str(tmp_path / "both.pt")).deviation < 1e-3


def test_the_commands_say_what_they_did(kept: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out" / f"pets{SUFFIXES['safetensors']}"
    assert main(["export", "pets", "--format", "safetensors", "--output", str(target), "--storage", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "pets@1 as safetensors" in shown
    assert "0.00000%" in shown
    assert main(["import", str(target), "copy", "--storage", str(tmp_path)]) == 0
    assert "copy@1: airnet, 3 classes, 16 px" in capsys.readouterr().out


@pytest.mark.parametrize("architecture", ["small_cnn", "resnet18"])
def test_a_torch_state_dict_becomes_a_model(tmp_path: Path, architecture: str) -> None:
    state = create_model(architecture, num_classes=3, image_size=32).state_dict()
    torch.save({"epoch": 3, "model_state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "theirs.pth")
    meaning = Meaning(class_names=("a", "b", "c"), channel_mean=(0.1, 0.2, 0.3), channel_std=(0.4, 0.5, 0.6))
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
    bundle = import_weights(ModelStore(str(tmp_path)), tmp_path / "weights.pt", "twin", Meaning(like=kept.manifest))
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
