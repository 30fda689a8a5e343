"""The learning-rate range test: what it suggests for known curves, and that it runs on the real loop."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from cifar_ray import __main__ as console
from cifar_ray.cli.training_flags import flags_of_train, parse_train_command
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.errors import ConfigError
from cifar_ray.tuning.lr_range import RangeTest, learning_rate_flags, longest_fall, run_range_test

CPU = torch.device("cpu")


def known_curve(noise: float) -> RangeTest:
    """Flat below 1e-3, falling fastest at 1e-2, lowest at 1e-1, then rising."""
    rates = np.geomspace(1e-5, 1, 200)
    decades = np.log10(rates)
    losses = 2.0 - 1.2 / (1 + np.exp(-6 * (decades + 2))) + np.maximum(0, decades + 1) ** 2 * 3
    return RangeTest(rates, losses + np.random.default_rng(0).normal(0, noise, 200), False)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_suggestions_lie_where_the_curve_says(noise: float) -> None:
    test = known_curve(noise)
    assert 5e-3 < test.steepest < 2e-2
    assert 3e-2 < test.edge < 2e-1
    assert 1e-4 < test.valley < 3e-2


def test_the_longest_fall_may_be_interrupted() -> None:
    assert longest_fall([3, 6, 5, 9, 4, 2, 8]) == (1, 5)
    assert longest_fall([1, 2, 3]) == (0, 0)


@pytest.mark.parametrize(("optimizer", "model"), [("sgd", "small_cnn"), ("adamw", "small_cnn"), ("muon", "airnet")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_runs_with_every_optimizer_in_the_precision_asked_for(
    stripes: DatasetSplits, narrow_airnet: None, optimizer: str, model: str, precision: str
) -> None:
    config = parse_config(TrainConfig, {"model": model, "optimizer": {"name": optimizer}, "batch_size": 60, "precision": precision})
    seen: list[tuple[int, float, float]] = []
    test = run_range_test(config, stripes, device=CPU, lowest=1e-4, highest=10, steps=30, on_step=lambda *step: seen.append(step))
    assert len(test.rates) == len(test.losses) == len(seen)
    assert test.rates[0] == pytest.approx(1e-4)
    assert [rate for _, rate, _ in seen] == pytest.approx(test.rates.tolist())
    assert test.losses[:20].min() < test.losses[0]


def test_it_stops_when_the_loss_explodes(stripes: DatasetSplits) -> None:
    config = parse_config(TrainConfig, {"model": "small_cnn", "optimizer": {"name": "sgd", "momentum": 0.9}, "batch_size": 60})
    test = run_range_test(config, stripes, device=CPU, lowest=1e-3, highest=1e6, steps=60, on_step=lambda *_: None)
    assert test.diverged
    assert len(test.rates) < 60
    assert np.isfinite(test.losses).all()
    assert test.edge < test.rates[-1]


def test_a_range_that_is_none_is_refused(stripes: DatasetSplits) -> None:
    with pytest.raises(ConfigError, match="0 < lowest < highest"):
        run_range_test(TrainConfig(), stripes, device=CPU, lowest=1, highest=0.1, steps=30, on_step=lambda *_: None)


def test_the_verb_prints_a_suggestion_and_leaves_curve_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "40", "--name", "look", "--storage", str(tmp_path)]
    assert console.main(["find_lr", "--dataset", "digits", *options]) == 0
    about = json.loads((tmp_path / "find_lr" / "look" / "find_lr.json").read_text())
    assert about["rates"][0] == pytest.approx(3e-6)
    assert 1e-4 < about["suggestion"] < 0.3
    assert len(about["losses"]) == len(about["rates"])
    assert (tmp_path / "find_lr" / "look" / "find_lr.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in (tmp_path / "find_lr" / "look" / "find_lr.html").read_text()
    shown = capsys.readouterr().out
    (use,) = [line for line in shown.splitlines() if line.startswith("use ")]
    command = parse_train_command(shlex.split(use)[3:], "train")
    assert command.optimizer.lr == pytest.approx(about["suggestion"], rel=0.05)
    assert (command.dataset, command.storage) == ("digits", str(tmp_path))
    assert use.split()[1:5] == ["cifar-ray", "train", "--dataset", "digits"]
    assert use.endswith(f"--storage {tmp_path} --optimizer.lr {about['suggestion']:.2g}")
    assert console.main(["find_lr", "--dataset", "digits", "--optimizer.lr", "-1"]) == 2


@pytest.mark.parametrize(
    ("typed", "method", "flags"),
    [
        ("--dataset digits --steps 40 --optimizer.lr 0.1 --lowest=1e-6 --name look", "scratch", "--dataset digits --name look"),
        (
            "--data-dir 'my pictures' --optimizer.head_lr 3 --optimizer.lr-scaling none",
            "scratch",
            "--data-dir 'my pictures' --optimizer.lr-scaling none",
        ),
        ("--data-dir photos", "auto", "--data-dir photos --method finetune"),
        ("--method probe --data-dir photos", "probe", "--data-dir photos --method finetune"),
        ("--data-dir photos --method=finetune", "finetune", "--data-dir photos --method finetune"),
    ],
)
def test_the_line_to_use_is_the_train_command_of_the_same_training_at_the_suggested_rate(typed: str, method: str, flags: str) -> None:
    """A probe has no learning rate: for photographs the line would be without effect."""
    found = flags_of_train(shlex.split(typed), method)
    assert found == [shlex.quote(flag) for flag in shlex.split(flags)]


def test_for_muon_the_line_scales_all_three_rates() -> None:
    config = parse_config(TrainConfig, {"optimizer": {"name": "muon", "lr": 0.24, "head_lr": 0.67, "bias_lr": 0.054}})
    assert learning_rate_flags(config, 0.12) == "--optimizer.lr 0.12 --optimizer.head-lr 0.34 --optimizer.bias-lr 0.027"
