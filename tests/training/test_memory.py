"""Memory that runs out is one line with advice that helps: in training, fine-tuning, a probe, a range test and a trial."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cifar_ray import __main__ as console
from cifar_ray import cli
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.batches.loader import Normalization
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.errors import ResourceError, TrainingError, describe_out_of_memory
from cifar_ray.models import create_model
from cifar_ray.training import tail_finetuning, transfer
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.probe import extraction, linear_probe
from cifar_ray.training.probe.extraction import Backbone, ComputeHere
from cifar_ray.training.steps.micro_batches import memory_advice
from cifar_ray.tuning import trial
from cifar_ray.tuning.record import AGAIN

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nOf which 1 GiB is free")


def full(*_: object, **__: object) -> None:
    raise FULL


@pytest.mark.parametrize(
    ("settings", "device", "size_px", "workers", "size"),
    [
        ({"batch_size": 512}, GPU, 32, 1, 512),
        ({"batch_size": 512}, GPU, 32, 4, 128),
        ({"batch_size": 512}, CPU, 32, 1, 250),  # what it takes by itself
        ({"batch_size": 32}, CPU, 224, 1, 5),
        ({"batch_size": 32, "micro_batch_size": 16}, CPU, 224, 1, 16),
        ({"batch_size": 32, "micro_batch_size": 100}, GPU, 224, 1, 32),
    ],
)
def test_the_advice_is_a_smaller_micro_batch_than_the_one_that_did_not_fit(
    settings: dict[str, Any], device: torch.device, size_px: int, workers: int, size: int
) -> None:
    advice = memory_advice(parse_config(TrainConfig, settings), device, size_px, workers)
    assert advice == f"pass a --micro-batch-size below {size}; it changes memory and speed, not the result"


def test_where_the_micro_batch_cannot_be_smaller_the_advice_is_another() -> None:
    assert memory_advice(TrainConfig(micro_batch_size=1), GPU, 32).startswith("pass a smaller --image-size")


def test_the_range_test_names_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Trainer, "train_step", full)
    assert console.main(["find_lr", "--dataset", "digits", "--image-size", "8", "--storage", str(tmp_path)]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error"))
    assert line.startswith("error: out of memory: pass a --micro-batch-size below ")
    assert line.endswith("(OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.)")


def test_a_trial_without_memory_has_failed_with_the_advice_and_has_not_diverged(
    few_stripes: DatasetSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[dict[str, Any]] = []
    monkeypatch.setattr(trial, "get_ray_device", lambda: CPU)
    monkeypatch.setattr(trial.tune, "report", reported.append)
    monkeypatch.setattr(trial, "load_splits", lambda _: few_stripes)
    monkeypatch.setattr(Trainer, "train_step", full)
    config = {"dataset": "digits", "model": "small_cnn", "batch_size": 18, "precision": "fp32"}
    work = {
        "config": config,
        "storage": str(tmp_path),
        "folder": "trials/one",
        "threads": 1,
        AGAIN: False,
        "in_process": True,
        "digest": "",
    }
    with pytest.raises(ResourceError, match=r"^out of memory: pass a --micro-batch-size below 18; .*Tried to allocate 2\.00 GiB\.\)$"):
        trial.train_trial(work)
    assert reported == []


def test_a_probe_and_fine_tuning_on_a_cpu_say_what_helps(few_stripes: DatasetSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 3 GiB")

    config = TrainConfig(batch_size=18)
    about = SimpleNamespace(result=SimpleNamespace(normalization=Normalization((0.5,) * 3, (0.25,) * 3, torch.float32)))
    opened: Any = (None, None)
    for module, name in (
        (linear_probe, "open_backbone"),
        (tail_finetuning, "TailTrainer"),
        (transfer, "TailTrainer"),
        (transfer, "Trainer"),
    ):
        monkeypatch.setattr(module, name, short)
    with pytest.raises(
        TrainingError, match=r"^out of memory: pass a smaller --image-size, or free memory \(MemoryError: Unable to allocate"
    ):
        linear_probe.train_probe(config, few_stripes)
    tail = r"^out of memory: pass a --batch-size below 18, or --method probe, which needs less memory \(MemoryError"
    with pytest.raises(TrainingError, match=tail):
        tail_finetuning.finetune_tail(Any, config, about, few_stripes, opened, Any)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=tail):
        transfer._epoch_s(config, about, few_stripes, opened)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=r"^out of memory: pass a --micro-batch-size below 18; "):
        transfer._epoch_s(config, about, few_stripes, None)  # type: ignore[arg-type]


def test_features_are_computed_in_smaller_batches_where_large_ones_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    backbone = Backbone.of(create_model("small_cnn", 3, 16), "small_cnn", 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    monkeypatch.setattr(extraction, "choose", lambda reference, name, **_: (reference, name))
    whole = np.concatenate(list(ComputeHere(backbone, 0)(images)))
    compute = ComputeHere(backbone, 0)
    logits, sizes = compute._reference.logits, list[int]()

    def small(batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise FULL
        return logits(batch)

    monkeypatch.setattr(compute._reference, "logits", small)
    np.testing.assert_allclose(np.concatenate(list(compute(images))), whole, rtol=1e-3, atol=1e-4)
    assert max(sizes) > 3


def test_any_other_command_without_memory_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (FULL, MemoryError("Unable to allocate 3 GiB")):

        def command(error: Exception = error) -> int:
            raise error

        assert cli.run(command) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: out of memory: free memory, or pass a smaller --micro-batch-size")
    for other in (RuntimeError("a bug"), ValueError("out of memory")):

        def broken(other: Exception = other) -> int:
            raise other

        with pytest.raises(type(other)):
            cli.run(broken)


def test_the_reason_in_an_error_of_ray_is_its_last_line() -> None:
    text = "ray::score() (pid=1)\nTraceback (most recent call last):\n  File\ntorch.OutOfMemoryError: CUDA out of memory.\n"
    assert describe_out_of_memory(RuntimeError(text), "do") == "out of memory: do (torch.OutOfMemoryError: CUDA out of memory.)"
    assert describe_out_of_memory(MemoryError(), "do") == "out of memory: do (MemoryError)"
