from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cifar_ray.errors import BundleError, UnknownModelError
from cifar_ray.store import Manifest, ModelStore, load_model

MakeManifest = Callable[..., Manifest]


@pytest.fixture
def filled(store: ModelStore, make_manifest: MakeManifest, weights: dict, tmp_path: Path) -> ModelStore:
    """`pets` in two versions, made by the runs `first` and `second`; the run `lost` left nothing."""
    for run in ("first", "second"):
        store.save("pets", make_manifest(train_config={"name": run}), weights)
    for run in ("first", "second", "lost"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "config.yaml").write_text("epochs: 1\n")
    return store


@pytest.mark.parametrize(
    ("reference", "version"),
    [("pets", 2), ("pets@1", 1), ("first", 1), ("second", 2), ("{}/models/pets/1", 1), ("{}/runs/first", 1), ("{}/runs/second/", 2)],
)
def test_a_model_is_found_by_name_run_or_path(filled: ModelStore, tmp_path: Path, reference: str, version: int) -> None:
    assert load_model(reference.format(tmp_path), str(tmp_path)).reference == f"pets@{version}"


def test_a_copy_of_a_bundle_is_a_model_wherever_it_lies(filled: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tmp_path / "models/pets/1", tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    bundle = load_model("./copy", "/nowhere")
    assert bundle.manifest == filled.manifest("pets@1")
    (tmp_path / "copy/model.safetensors").write_bytes(b"torn")
    with pytest.raises(BundleError, match="damaged"):
        load_model("./copy", "/nowhere")


@pytest.mark.parametrize(
    ("reference", "reason"), [("birds", "Available: pets"), ("lost", "run lost has no model"), ("{}/runs", "is not a model")]
)
def test_what_is_no_model_is_said_in_one_line(filled: ModelStore, tmp_path: Path, reference: str, reason: str) -> None:
    with pytest.raises(UnknownModelError, match=reason):
        load_model(reference.format(tmp_path), str(tmp_path))
