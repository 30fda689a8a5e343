"""Captured steps. Without a GPU, a function that runs the work in place of a graph shows what goes in and out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.batches.loader import Step
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.steps import captured
from cifar_ray.training.steps.captured import is_augmented_in_graph, why_not_captured
from cifar_ray.training.steps.readback import Readback, copy_to_host

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SETTINGS = {
    "batch_size": 10,  # 72 images make batches of 9
    "precision": "fp32",
    "stem_epochs": 1,
    "augmentation": {"mixup": 0.3, "translate_px": 1},
    "averaging": {"name": "ema"},
}


def trainer(splits: DatasetSplits, on_message: Callable[[str], None] = lambda _: None, **changes: object) -> Trainer:
    return Trainer(parse_config(TrainConfig, SETTINGS | changes), splits, CPU, Shard(), on_message=on_message)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Captures work on a CPU; the list counts the replays of each graph."""
    counts: list[int] = []

    def capture(work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        number = len(counts)
        counts.append(0)

        def replay() -> torch.Tensor:
            counts[number] += 1
            return work()

        return replay

    monkeypatch.setattr(captured, "capture", capture)
    monkeypatch.setattr(captured, "run_on_side_stream", lambda work: work())
    monkeypatch.setattr(captured, "why_not_captured", lambda *_: "")
    return counts


def weights_after(one: Trainer, epochs: int = 2) -> dict[str, torch.Tensor]:
    for epoch in range(epochs):
        one.train_epoch(epoch, lambda *_: None)
    return one.network.state_dict()


@pytest.mark.usefixtures("narrow_airnet")
@pytest.mark.parametrize(("batch_size", "replayed_steps"), [(9, 10), (11, 4)])
@pytest.mark.parametrize(
    "changes",
    [{}, {"augmentation": {"policy": "randaugment", "mixup": 0.3}}, {"draws": 1}, {"micro_batch_size": 5}],
    ids=["in the graph", "policy", "draws 1", "micro-batches"],
)
def test_a_replay_trains_as_the_step_itself(
    few_stripes: DatasetSplits, replays: list[int], batch_size: int, replayed_steps: int, changes: dict[str, Any]
) -> None:
    """The input of each step reaches the memory of the graph, also with batches of two sizes and after the stem freezes."""
    plain = weights_after(trainer(few_stripes, cuda_graph="off", batch_size=batch_size, **changes))
    assert replays == []
    replayed = weights_after(trainer(few_stripes, batch_size=batch_size, **changes))
    assert all(torch.equal(plain[name], replayed[name]) for name in plain)
    assert len(replays) == 2  # one of each epoch: the stem is frozen in the second
    assert sum(replays) == replayed_steps  # not the first three of each shape


@pytest.mark.usefixtures("narrow_airnet", "replays")
def test_a_step_that_cannot_be_captured_runs_all_the_same(few_stripes: DatasetSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    plain = weights_after(trainer(few_stripes, cuda_graph="off"), 1)
    monkeypatch.setattr(captured, "capture", refuse)
    messages: list[str] = []
    refused = weights_after(trainer(few_stripes, messages.append), 1)
    assert messages == ["cuda_graph: a step cannot be captured (operation not permitted when stream is capturing); training without"]
    assert all(torch.equal(plain[name], refused[name]) for name in plain)


@pytest.mark.parametrize(
    ("changes", "device", "workers", "reason"),
    [
        ({}, CPU, 1, "no GPU"),
        ({}, GPU, 2, "several workers"),
        ({"on_nan": "skip"}, GPU, 1, "on_nan skip"),
        ({}, GPU, 1, "^$"),
    ],
)
def test_steps_that_need_the_host_are_not_captured(changes: dict, device: torch.device, workers: int, reason: str) -> None:
    config = parse_config(TrainConfig, SETTINGS | changes)
    found = why_not_captured(config, device, Shard(0, workers))
    assert (found == "") if reason == "^$" else (reason in found)


@pytest.mark.parametrize(
    ("changes", "is_inside"),
    [({}, True), ({"draws": 1}, False), ({"augmentation": {"policy": "randaugment"}}, False)],
)
@pytest.mark.usefixtures("narrow_airnet")
def test_augmentation_that_needs_the_host_stays_outside_the_graph(few_stripes: DatasetSplits, changes: dict, is_inside: bool) -> None:
    one = trainer(few_stripes, **changes)
    assert is_augmented_in_graph(one.config, one.loader) == is_inside


@pytest.mark.usefixtures("narrow_airnet")
def test_a_cpu_says_why_only_if_asked_for_a_graph(few_stripes: DatasetSplits) -> None:
    messages: list[str] = []
    trainer(few_stripes, messages.append)
    assert messages == []
    trainer(few_stripes, messages.append, cuda_graph="on")
    assert messages == ["cuda_graph: off, because there is no GPU"]


@pytest.mark.usefixtures("narrow_airnet")
def test_a_share_gives_its_pieces_again_and_streamed_images_have_none(few_stripes: DatasetSplits) -> None:
    loader = trainer(few_stripes, micro_batch_size=4).loader
    step: Step = next(loader.epoch(0))
    assert step.share is not None
    first, again = list(step.pieces), list(loader.pieces(step.share.clone()))
    assert len(first) == step.num_pieces > 1
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one[0], two[0])


def test_on_a_cpu_nothing_is_copied() -> None:
    values = torch.tensor([1.0, 2.0])
    assert Readback(values).read() == [1.0, 2.0]
    state = {"a": [values, 3]}
    assert copy_to_host(state) == (state, None)
