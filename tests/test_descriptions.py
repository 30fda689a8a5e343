"""Descriptions of classes travel from a table to the model, its card, its exported files and `GET /models`, without Ray."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.data import open_splits
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.errors import BundleError
from cifar_ray.inference.exporting.file_formats import _about
from cifar_ray.inference.exporting.import_weights import WeightsMetadata, import_weights
from cifar_ray.models import create_model
from cifar_ray.store import Architecture, Bundle, Manifest, ModelStore
from cifar_ray.store.bundle import decode_manifest, encode
from cifar_ray.store.ensembling import save_ensemble
from cifar_ray.store.manifest import MANIFEST_KEY
from cifar_ray.store.publishing import model_card, model_card_html
from cifar_ray.training.loop.fit import fit
from cifar_ray.training.records.results import TrainedRun, Weights
from cifar_ray.training.save_model import save_model
from deployments.http.routes import create_app
from tests.web.conftest import LocalClassifier, NoObserver

CAT = "Cats | tigers, <b>not</b> *lynxes*"


def save(storage: Path, name: str = "pets", descriptions: Mapping[str, str] | None = None) -> Bundle:
    arguments = {"num_classes": 2, "image_size": 16}
    manifest = Manifest(
        architecture=Architecture(name="small_cnn", arguments=arguments),
        class_names=("cat", "newt"),
        class_descriptions=descriptions or {},
        image_size_px=16,
        channel_mean=(0.5, 0.5, 0.5),
        channel_std=(0.25, 0.25, 0.25),
        resize_policy="pad",
        dataset_name="pets",
        dataset_fingerprint="d" * 64,
        created_at=datetime(2025, 1, 2, tzinfo=UTC),
    )
    return ModelStore(str(storage)).save(name, manifest, create_model("small_cnn", **arguments).state_dict())


def train(splits: DatasetSplits, storage: Path, **settings: Any) -> Bundle:
    values = {"model": "small_cnn", "epochs": 1, "batch_size": 4, "precision": "fp32", "val_fraction": 0.3, "storage": str(storage)}
    config = parse_config(TrainConfig, values | settings)
    kept: Weights = {}

    def on_epoch(_: object, weights: Weights) -> None:
        kept.update({name: tensor.clone() for name, tensor in weights.items()})

    bundle = ModelStore(str(storage)).load(config.start.model) if config.start else None
    result = fit(config, splits, device=torch.device("cpu"), shard=Shard(), parent=bundle, on_step=lambda *_: None, on_epoch=on_epoch)
    return save_model(TrainedRun("run", "runs/run", result, [], kept), config, splits).bundle


def listed(storage: Path) -> dict[str, Any]:
    """The answer to `GET /models`, by name."""
    config = ServeConfig(storage=str(storage), engine="torch", max_batch_size=2)
    app = create_app(LocalClassifier(config), config, NoObserver())

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.get("/models")

    return {entry["name"]: entry for entry in asyncio.run(ask()).json()["models"]}


@pytest.fixture
def splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetSplits:
    """Twelve pictures of two classes, of which one has a description."""
    monkeypatch.setenv("CIFAR_RAY_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png;{'newt' if number % 2 else 'cat'};{'' if number % 2 else CAT}")
    (tmp_path / "pets.csv").write_text("\n".join(["image;label;description", *rows, ""]))
    values = {"dataset": "folder", "data_dir": str(tmp_path / "pets.csv"), "image_size": 16, "test_fraction": 0, "val_fraction": 0.3}
    found = open_splits(parse_config(TrainConfig, values))
    assert isinstance(found, DatasetSplits)
    return found


def test_a_column_of_a_table_reaches_the_model_and_get_models(splits: DatasetSplits, tmp_path: Path) -> None:
    assert train(splits, tmp_path / "storage").manifest.class_descriptions == {"cat": CAT}
    assert listed(tmp_path / "storage")["pets"]["class_descriptions"] == {"cat": CAT}


def test_fine_tuning_keeps_descriptions_for_the_same_classes_only_and_new_ones_win(splits: DatasetSplits, tmp_path: Path) -> None:
    parent = save(tmp_path, descriptions={"newt": "wet"})
    start = {"start": {"model": parent.reference}, "save_as": "child"}
    plain = dataclasses.replace(splits, class_descriptions={})
    assert train(plain, tmp_path, **start).manifest.class_descriptions == {"newt": "wet"}
    assert train(splits, tmp_path, **start).manifest.class_descriptions == {"cat": CAT}
    other = {name: dataclasses.replace(part, class_names=("cat", "eel")) for name, part in plain}
    assert train(dataclasses.replace(plain, **other), tmp_path, **start).manifest.class_descriptions == {}


def test_a_manifest_without_descriptions_stays_readable_for_older_releases_and_an_older_one_for_this(tmp_path: Path) -> None:
    plain, told = save(tmp_path), save(tmp_path, descriptions={"cat": CAT})
    written = [json.loads(encode(one.manifest, one.weights, {})["manifest.json"]) for one in (plain, told)]
    assert "class_descriptions" not in written[0]
    assert written[1]["class_descriptions"] == {"cat": CAT}
    assert decode_manifest(json.dumps(written[0]).encode(), "pets@1").class_descriptions == {}
    for wrong, message in (({"eel": "long"}, "no class is called 'eel'"), ({"cat": "x" * 1001}, "at most 1000 characters")):
        with pytest.raises(BundleError, match=message):
            decode_manifest(json.dumps(written[1] | {"class_descriptions": wrong}).encode(), "pets@2")


def test_an_ensemble_has_those_of_its_first_member_and_exported_files_have_them(tmp_path: Path) -> None:
    save(tmp_path, "first", {"cat": CAT})
    save(tmp_path, "second", {"cat": "another"})
    ensemble = save_ensemble(ModelStore(str(tmp_path)), "both", ["first", "second"])
    assert ensemble.manifest.class_descriptions == {"cat": CAT}
    about = _about(ensemble)
    assert json.loads(about["cifar_ray.class_descriptions"]) == {"cat": CAT}
    assert json.loads(about[MANIFEST_KEY])["class_descriptions"] == {"cat": CAT}
    assert "cifar_ray.class_descriptions" not in _about(save(tmp_path))


def test_weights_that_are_imported_like_a_model_have_its_descriptions_if_they_have_its_classes(tmp_path: Path) -> None:
    store, like = ModelStore(str(tmp_path)), save(tmp_path, descriptions={"cat": CAT})
    torch.save(like.weights, tmp_path / "weights.pt")
    for names, expected in ((None, {"cat": CAT}), (("cat", "eel"), {})):
        meaning = WeightsMetadata(like=like.manifest, class_names=names)
        assert import_weights(store, tmp_path / "weights.pt", "twin", meaning).manifest.class_descriptions == expected


def test_the_card_lists_descriptions_as_text(tmp_path: Path) -> None:
    bundle = save(tmp_path, descriptions={"cat": CAT})
    assert "\n| class | description |\n|---|---|\n| cat | Cats \\| tigers, \\<b\\>not\\</b\\> \\*lynxes\\* |\n\nNetwork" in model_card(
        bundle
    )
    assert "<td>Cats | tigers, &lt;b&gt;not&lt;/b&gt; *lynxes*</td>" in model_card_html(bundle)
    assert "| class |" not in model_card(save(tmp_path))
