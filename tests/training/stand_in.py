"""Runs whole training steps on a device that computes nothing, and prints what they do: `python stand_in.py '{"draws": 2}' …`.

Fake tensors have shapes and devices and no values, so any step that needs a value on the host fails. torch's autograd asks the driver of
a GPU for its stream also for fake tensors. A device of torch's for Python backends takes its place here; it is registered for a whole
process. Each argument is a config; each line of output is the JSON of its second step: `launches` and `copies`, or the `error`. With
`"augmented_before": true`, only what follows the augmentation is recorded; with `"serving": true`, a forward pass of a server.
"""

import json
import sys
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.batches import transforms
from cifar_ray.data.batches.loader import Step
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.inference.engines.conversion import NetworkInput
from cifar_ray.inference.engines.engine import TorchEngine
from cifar_ray.models import create_model
from cifar_ray.models.precision import Precision
from cifar_ray.training.loop.command import Command
from cifar_ray.training.loop.step_monitor import StepMonitor
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.steps.readback import Readback

_NO_KERNEL = ("prim", "profiler", "empty", "new_empty", "detach", "alias", "_unsafe_view", "lift_fresh")


class Recorded(TorchDispatchMode):
    """Counts the operations that would start a kernel, and names those with tensors of two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.copies: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        name = operation.name().removeprefix("aten::")
        self.launches += not (operation.is_view or name.startswith(_NO_KERNEL))
        tensors = [one for one in (*args, result) if isinstance(one, torch.Tensor) and one.ndim]
        if name.startswith(("_to_copy", "copy_")) and len({one.device.type for one in tensors}) > 1:
            self.copies.append(name)
        return result


def move(network: nn.Module, *where: Any, **layout: Any) -> nn.Module:
    """In place of `Module.to`, which cannot change the device of fake weights."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None and where:
                module._parameters[name] = nn.Parameter(weight.detach().to(*where), weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and where:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype, device=where[0])
    return network


def images(count: int) -> ImageDataset:
    rng = np.random.default_rng(0)
    return ImageDataset(rng.integers(0, 256, (count, 32, 32, 3), np.uint8), np.arange(count) % 10, tuple("abcdefghij"))


def record(settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    splits = DatasetSplits("made up", images(96), None, images(20))
    with FakeTensorMode(allow_non_fake_inputs=True):
        if settings.pop("serving", False):
            return record_serving(device)
        augmented_before = settings.pop("augmented_before", False)
        config = parse_config(TrainConfig, {"batch_size": 24, "precision": "fp32", **settings})
        trainer, monitor = Trainer(config, splits, device, Shard()), StepMonitor(device)
        if augmented_before:
            return record_after_augmentation(trainer)
        modes: list[Recorded] = []

        def after_step(*_: object) -> None:
            monitor.after_step("", Command.CONTINUE, trainer.step_sums[0])
            if modes:
                modes.pop().__exit__(None, None, None)
                raise StopIteration
            recorded.__enter__()
            modes.append(recorded)

        recorded = Recorded()
        try:  # recorded from the end of the first step to the end of the second
            trainer.train_epoch(0, after_step)
        except StopIteration:
            return {"launches": recorded.launches, "copies": recorded.copies}
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            while modes:
                modes.pop().__exit__(None, None, None)
            return {"error": str(error)}
    raise AssertionError("an epoch has more than two steps")


def record_after_augmentation(trainer: Trainer) -> dict[str, Any]:
    first, second = (Step(step.global_size, step.num_pieces, iter(list(step.pieces))) for step in islice(trainer.loader.epoch(0), 2))
    trainer.train_step(first)
    with Recorded() as recorded:
        trainer.train_step(second)
    return {"launches": recorded.launches, "copies": recorded.copies}


def record_serving(device: torch.device) -> dict[str, Any]:
    network = create_model("airnet", num_classes=10, image_size=32).to(device).eval()
    engine = TorchEngine(network, NetworkInput(32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), Precision("fp32", device))
    pixels = torch.zeros((8, 32, 32, 3), dtype=torch.uint8, device=device)
    engine.compute(pixels)
    with Recorded() as recorded:
        engine.compute(pixels)
    return {"launches": recorded.launches, "copies": recorded.copies}


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend("standin")
    nn.Module.to = move  # type: ignore[assignment,method-assign]
    Readback.read = lambda self: [0.0, 1.0]  # type: ignore[method-assign]  # the one place that may wait, for the step before
    matrices = cache(lambda device: (torch.zeros(3, 3, device=device),) * 2)  # fake tensors cannot be made from real ones on this device
    transforms.yiq_matrices = matrices  # type: ignore[assignment]
    for argument in sys.argv[1:]:
        print(json.dumps(record(json.loads(argument), torch.device("standin"))), flush=True)
