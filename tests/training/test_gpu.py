"""What only a GPU can show; `make test-gpu`. Rounding differs between kernels, so some results are compared within a tolerance."""

from typing import Any

import numpy as np
import pytest
import torch

from cifar_ray.config import AugmentationConfig, TrainConfig, parse_config
from cifar_ray.data.batches.device_draws import DeviceDraws
from cifar_ray.data.batches.philox import Stream
from cifar_ray.data.batches.shares import Shard, batch_slices
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.training.loop.command import Command
from cifar_ray.training.loop.fit import fit
from cifar_ray.training.loop.snapshot import Snapshot
from cifar_ray.training.loop.step_monitor import StepMonitor
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.steps.readback import Readback, copy_to_host

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 24, "stem_epochs": 2, "augmentation": {"translate_px": 1}}
SGD = {"name": "sgd", "lr": 0.05, "clip_norm": 1.0}
EVERYTHING = {
    "cutout_px": 3,
    "rotate_deg": 20,
    "brightness": 0.3,
    "hue": 0.1,
    "noise_std": 0.05,
    "erase": 0.5,
    "mixup": 0.5,
    "cutmix": 1.0,
    "policy": "autoaugment",
    "crop_scale": 0.3,
}


@pytest.fixture(autouse=True)
def repeatable() -> Any:
    """Convolutions without atomic sums, whose order differs from run to run."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False):
        yield


def trainer(splits: DatasetSplits, device: torch.device = GPU, **changes: object) -> Trainer:
    return Trainer(parse_config(TrainConfig, SETTINGS | changes), splits, device, Shard())


def weights_after(one: Trainer, epochs: int = 3) -> dict[str, torch.Tensor]:
    for epoch in range(epochs):
        one.train_epoch(epoch, lambda *_: None)
    return one.network.state_dict()


def test_draws_have_the_same_bits_on_a_cpu_and_a_gpu() -> None:
    positions = torch.arange(70_000)
    assert torch.equal(Stream(3, 1, 2).words(positions, 7), Stream(3, 1, 2).words(positions.to(GPU), 7).cpu())
    labels, config = np.arange(500) % 4, AugmentationConfig(**EVERYTHING)
    ours, theirs = (DeviceDraws(config, labels, 4, "natural", batch_slices(500, 100), 32, 1, device) for device in (CPU, GPU))
    order = ours.order(3)
    assert torch.equal(order, theirs.order(3).cpu())
    for one, two in zip(ours.augmentations(3, order, 0), theirs.augmentations(3, order.to(GPU), 0), strict=True):
        for name in ("mirrored", "shift", "cutout_corner", "codes", "noise", "kept", "patch"):
            assert torch.equal(getattr(one, name), getattr(two, name).cpu()), name
        for name in ("angle", "colour", "values"):
            torch.testing.assert_close(getattr(one, name), getattr(two, name).cpu(), atol=1e-6, rtol=1e-6)
        for name in ("erased", "crop"):  # a pixel where rounding decides
            assert (getattr(one, name) != getattr(two, name).cpu()).float().mean() < 0.01


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", [{}, SGD, SGD | {"decoupled_decay": True, "weight_decay": 0.1}], ids=["muon", "sgd", "sgdw"])
def test_a_graph_trains_as_the_steps_themselves(few_stripes: DatasetSplits, precision: str, optimizer: dict) -> None:
    eager, graph = (
        weights_after(trainer(few_stripes, precision=precision, optimizer=optimizer, cuda_graph=mode)) for mode in ("off", "on")
    )
    for name in eager:
        torch.testing.assert_close(graph[name], eager[name], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("changes", [{"augmentation": {"policy": "randaugment"}}, {"draws": 1}], ids=["policy", "draws 1"])
def test_a_graph_of_images_augmented_before_trains_as_the_steps_themselves(few_stripes: DatasetSplits, changes: dict) -> None:
    eager, graph = (weights_after(trainer(few_stripes, precision="fp32", cuda_graph=mode, **changes)) for mode in ("off", "on"))
    for name in eager:
        torch.testing.assert_close(graph[name], eager[name], atol=2e-2, rtol=2e-2)


def test_adamw_and_dropout_in_a_graph_train_as_the_steps_themselves(few_stripes: DatasetSplits) -> None:
    settings = {"model": "cnn3", "optimizer": {"name": "adamw", "lr": 0.003}, "precision": "fp32"}
    eager, graph = (weights_after(trainer(few_stripes, cuda_graph=mode, **settings)) for mode in ("off", "on"))
    for name in eager:
        torch.testing.assert_close(graph[name], eager[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("mode", ["off", "on"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_resumed_training_ends_with_the_same_weights(few_stripes: DatasetSplits, mode: str, precision: str) -> None:
    config = parse_config(TrainConfig, SETTINGS | {"precision": precision, "cuda_graph": mode, "test_time_augmentation": "none"})

    def run(start: bytes | None) -> tuple[list[bytes], dict[str, torch.Tensor]]:
        saved: list[bytes] = []
        last: dict[str, torch.Tensor] = {}
        fit(
            config,
            few_stripes,
            device=GPU,
            shard=Shard(),
            on_step=lambda *_: None,
            on_epoch=lambda _, weights: last.update({name: one.clone() for name, one in weights.items()}),
            on_snapshot=lambda snapshot: saved.append(snapshot.detach()()),
            resume=Snapshot.from_bytes(start, GPU) if start else None,
        )
        return saved, last

    saved, whole = run(None)
    _, resumed = run(saved[0])
    for name in whole:  # a resumed training runs its first steps outside of a graph
        torch.testing.assert_close(resumed[name], whole[name], atol=0 if mode == "off" else 2e-2, rtol=0 if mode == "off" else 2e-2)


@pytest.mark.parametrize("mode", ["off", "on"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_no_step_waits_for_the_gpu(few_stripes: DatasetSplits, mode: str, precision: str) -> None:
    one, monitor = trainer(few_stripes, cuda_graph=mode, precision=precision), StepMonitor(GPU)
    one.train_epoch(0, lambda *_: None)  # fills caches

    def after_step(_: int, done: int, steps: int) -> None:
        monitor.after_step("", Command.CONTINUE, one.step_sums[0])
        torch.cuda.set_sync_debug_mode("default" if done == steps else "error")

    try:
        one.train_epoch(1, after_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_snapshot_is_of_the_moment_of_its_call_though_the_steps_go_on() -> None:
    values = torch.zeros(1 << 20, device=GPU)
    torch.cuda._sleep(10_000_000)  # the stream is busy, so the copy starts later
    values.fill_(1)
    copied, event = copy_to_host({"a": [values]})
    reading = Readback(values[:2])
    values.fill_(2)
    event.synchronize()
    assert torch.equal(copied["a"][0], torch.ones(1 << 20))
    assert copied["a"][0].is_pinned()
    assert reading.read() == [1, 1]


@pytest.mark.parametrize("mode", ["default", "max-autotune"])
@pytest.mark.parametrize("graph", ["off", "on"])
def test_compiled_networks_train_with_and_without_a_graph(few_stripes: DatasetSplits, mode: str, graph: str) -> None:
    one = trainer(few_stripes, compile=mode, cuda_graph=graph)
    first = one.train_epoch(0, lambda *_: None)[0]
    assert one.train_epoch(1, lambda *_: None)[0] < first


def test_evaluation_data_stay_on_the_gpu(few_stripes: DatasetSplits) -> None:
    one = trainer(few_stripes)
    assert few_stripes.val is not None
    first = one.evaluate(few_stripes.val)
    used = torch.cuda.memory_allocated()
    assert one.evaluate(few_stripes.val).accuracy == first.accuracy
    assert torch.cuda.memory_allocated() <= used
