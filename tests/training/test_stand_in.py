"""A whole training step needs nothing from the host: no value, no copy, and few kernel launches. Needs no GPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_EVERYTHING = {
    "cutout_px": 3,
    "rotate_deg": 20,
    "brightness": 0.3,
    "hue": 0.1,
    "noise_std": 0.05,
    "erase": 0.5,
    "mixup": 0.5,
    "cutmix": 1.0,
    "crop_scale": 0.3,
}
_SGD = {"name": "sgd", "lr": 0.1, "weight_decay": 0.1, "clip_norm": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "all changes of images": {"augmentation": _EVERYTHING},
    "micro-batches": {"micro_batch_size": 12},
    "sgd with an average": {"model": "small_cnn", "optimizer": _SGD, "averaging": {"name": "ema"}},
    "focal loss": {"loss": "focal", "class_weights": "balanced", "model": "small_cnn", "optimizer": _SGD},
    "draws of earlier releases": {"draws": 1},
    "skipped steps": {"on_nan": "skip"},
    "randaugment": {"augmentation": {"policy": "randaugment"}},
    "images augmented before": {"augmented_before": True},
    "serving": {"serving": True},
}
_LAUNCHES = 330  # of a step with the default recipe


@pytest.fixture(scope="module")
def steps() -> dict[str, dict[str, Any]]:
    """What the second step of each case does."""
    script = Path(__file__).parent / "stand_in.py"
    command = [sys.executable, "-W", "ignore", str(script), *map(json.dumps, CASES.values())]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(zip(CASES, map(json.loads, output.splitlines()), strict=True))


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("draws of earlier releases", "skipped steps", "randaugment")])
def test_a_step_reads_nothing_back_and_copies_nothing_between_devices(steps: dict[str, dict[str, Any]], case: str) -> None:
    assert "error" not in steps[case]
    assert steps[case]["copies"] == []


def test_a_step_of_the_default_recipe_launches_few_kernels(steps: dict[str, dict[str, Any]]) -> None:
    assert 100 < steps["default"]["launches"] < _LAUNCHES


@pytest.mark.parametrize("case", ["skipped steps", "randaugment", "draws of earlier releases"])
def test_what_cannot_be_captured_is_seen(steps: dict[str, dict[str, Any]], case: str) -> None:
    """`training/steps/captured.py` keeps these out of a graph; the test would be blind if it found nothing."""
    assert steps[case].get("error") or steps[case]["copies"]
