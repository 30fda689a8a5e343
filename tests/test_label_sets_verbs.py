"""Several labels for each picture, as a user types it: the example of docs/your-data.md, then every verb on its model."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from pyarrow import parquet

from cifar_ray import __main__ as console
from cifar_ray.data.decode import decode_square
from cifar_ray.data.reading.local_cache import CACHE_VARIABLE
from cifar_ray.inference.batch.pictures import read_picture
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import ModelStore
from cifar_ray.training.probe import extraction

PAGE = Path(__file__).parent.parent / "docs" / "your-data.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the example was executed."""
    folder = tmp_path_factory.mktemp("example")
    program, commands = re.search(r"```python\n(.*?)```.*?```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL).groups()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv(CACHE_VARIABLE, str(folder / "cache"))
        patch.setattr(extraction, "choose", lambda reference, name, **_: (reference, name))  # others hold that engines agree
        exec(compile(program, "example", "exec"), {})  # noqa: S102
        for line in commands.splitlines():
            assert console.main(shlex.split(line)[1:]) == 0, line
    return folder


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv(CACHE_VARIABLE, str(place / "cache"))


def truth(place: Path) -> dict[str, set[str]]:
    with (place / "shapes.csv").open() as file:
        return {row["file"]: set(filter(None, row["labels"].split("|"))) for row in csv.DictReader(file)}


def test_the_example_gives_a_model_that_says_its_task(place: Path) -> None:
    manifest = ModelStore(str(place / "storage")).manifest("shapes")
    assert (manifest.task, manifest.class_names) == ("multi-label", ("cross", "disc"))
    assert manifest.label_rules is not None
    assert manifest.metrics["cv_map"] > 0.9
    assert not [name for name in manifest.metrics if "accuracy" in name]
    (run,) = (place / "storage" / "runs").iterdir()
    assert yaml.safe_load((run / "config.yaml").read_text())["task"] == "multi-label"


def test_the_report_has_the_figures_of_scikit_learn_and_nothing_that_needs_one_class(place: Path) -> None:
    (folder,) = (place / "storage" / "evaluations" / "shapes@1").iterdir()
    figures = json.loads((folder / "evaluation.json").read_text())
    assert figures["task"] == "multi-label"
    assert {"accuracy", "confusion", "slices", "robustness", "prediction_bias"}.isdisjoint(figures)
    assert np.trace(figures["co_occurrence"]) == sum(one["images"] for one in figures["classes"])
    page = (folder / "report.html").read_text()
    assert "Labels that occur together" in page
    assert "Most confident mistakes by class" in page
    assert "Confusion" not in page


def test_predictions_are_the_labels_above_their_thresholds_with_an_overlay_for_each(place: Path) -> None:
    with (place / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    predictor = Predictor(ModelStore(str(place / "storage")).load("shapes"), engine="torch")
    size, policy = predictor.manifest.image_size_px, predictor.manifest.resize_policy
    images = np.stack([decode_square(read_picture(f"shapes/{number}.png"), size, policy) for number in range(2)])
    found = predictor.predict(images)
    for row, given, probabilities in zip(rows, found.labels, found.probabilities, strict=True):
        order = [label for label in np.argsort(-probabilities) if given[label]]
        assert row["labels"] == "|".join(predictor.manifest.class_names[label] for label in order)
        assert [float(text) for text in row["probabilities"].split("|") if text] == pytest.approx(probabilities[order], abs=0.01)
    overlays = {path.name for path in (place / "overlays").iterdir()}
    expected = {f"shapes__{number}.png-{name}.png" for number in range(2) for name in rows[number]["labels"].split("|") if name}
    assert expected <= overlays
    assert len(overlays) == sum(max(1, given.sum()) for given in found.labels)


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_json_and_parquet_have_lists_of_labels_also_beside_broken_pictures(place: Path, suffix: str, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    out = tmp_path / f"rows.{suffix}"
    pictures = [str(tmp_path / "broken.png"), *(f"shapes/{number}.png" for number in range(12))]
    assert console.main(["predict", "shapes", *pictures, "--storage", "storage", "--out", str(out), "--part-size", "1"]) == 0
    rows = json.loads(out.read_text()) if suffix == "json" else parquet.read_table(out).to_pylist()
    assert rows[0]["labels"] is None
    assert rows[0]["error"]
    right = [{one["class_name"] for one in row["labels"]} == truth(place)[f"shapes/{number}.png"] for number, row in enumerate(rows[1:])]
    assert np.mean(right) > 0.8


@pytest.mark.slow
def test_compare_and_calibrate_go_by_map_and_thresholds(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["calibrate", "shapes@1", "--storage", "storage", "--min-precision", "0.95"]) == 0
    assert "thresholds" in capsys.readouterr().out
    store = ModelStore(str(place / "storage"))
    assert store.manifest("shapes@2").label_rules != store.manifest("shapes@1").label_rules
    assert console.main(["compare", "shapes@1", "shapes@2", "--storage", "storage", "--out", "compared"]) == 0
    printed = capsys.readouterr().out
    assert "mAP" in printed
    assert "no significant difference" in printed
    assert "McNemar" not in printed
    figures = json.loads((place / "compared" / "comparison.json").read_text())
    assert figures["difference"] == 0


@pytest.mark.slow
def test_a_gallery_and_class_folders_are_refused_in_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["evaluate", "shapes", "--storage", "storage", "--no-leakage", "--attach"]) == 2
    assert "gives several labels per picture; the gallery shows one class for each" in capsys.readouterr().err.splitlines()[-1]
    assert console.main(["evaluate", "shapes", "--storage", "storage", "--data-dir", "shapes"]) == 2
    assert (
        console.main(["train", "--data-dir", "shapes.csv", "--task", "multi-label", "--sampling", "balanced", "--storage", "storage"]) == 2
    )
    assert "sampling balanced needs one label per picture" in capsys.readouterr().err
    assert console.main(["train", "--dataset", "digits", "--loss", "asymmetric", "--storage", "storage"]) == 2
    assert "loss asymmetric is for several labels per picture; use cross_entropy or focal" in capsys.readouterr().err.splitlines()[-1]


def test_an_ensemble_averages_calibrated_probabilities(place: Path) -> None:
    from cifar_ray.store.ensembling import save_ensemble

    store = ModelStore(str(place / "storage"))
    bundle = store.load("shapes@1")
    rules = bundle.manifest.label_rules
    assert rules is not None
    changed = bundle.manifest.model_copy(update={"label_rules": type(rules)((0.1, 0.9), rules.slopes, (1.0, -1.0))})
    other = store.save("others", changed, bundle.weights, bundle.attachments)
    both = save_ensemble(store, "both", ["shapes@1", "others"])
    images = np.random.default_rng(0).integers(0, 256, (4, *2 * (bundle.manifest.image_size_px,), 3)).astype(np.uint8)
    one, two, mean = (Predictor(part, precision="fp32", engine="torch").predict(images) for part in (bundle, other, both))
    np.testing.assert_allclose(mean.probabilities, (one.probabilities + two.probabilities) / 2, atol=1e-5)
    assert both.manifest.rules is not None
    assert both.manifest.rules.thresholds == pytest.approx([(a + b) / 2 for a, b in zip(rules.thresholds, (0.1, 0.9), strict=True)])


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_an_exported_file_gives_the_calibrated_probabilities(place: Path, tmp_path: Path) -> None:
    import torch

    from cifar_ray.inference.exporting.export import export

    bundle = ModelStore(str(place / "storage")).load("shapes@1")
    export(bundle, "torchscript", str(tmp_path / "model.pt"))
    images = np.random.default_rng(0).integers(0, 256, (2, *2 * (bundle.manifest.image_size_px,), 3)).astype(np.uint8)
    with torch.inference_mode():
        _, probabilities = torch.jit.load(str(tmp_path / "model.pt"))(torch.from_numpy(images))
    expected = Predictor(bundle, precision="fp32", engine="torch").predict(images).probabilities
    np.testing.assert_allclose(probabilities.numpy(), expected, atol=1e-4)
