"""Count the operations of a training step of each recipe; unlike times, the counts are the same on every machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cifar_ray.config import TrainConfig
from cifar_ray.models import count_flops, create_model
from cifar_ray.recipes import get_recipe, list_recipes
from cifar_ray.training.loop.optimizers import create_optimizers
from cifar_ray.training.steps.muon import Muon

_IMAGES = 2


class Kernels(TorchDispatchMode):
    """Counts operations that compute something; on a GPU in eager mode, the CPU launches a kernel for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation unless it is a view, and run it."""
        self.number += not func.is_view
        return func(*args, **(kwargs or {}))


def counts() -> list[dict[str, Any]]:
    """For each recipe: kernels, operations, gradients, and DDP's buckets in the order in which they are sent."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        rows = [_recipe(name, get_recipe(name)) for name in list_recipes()]
        dist.destroy_process_group()
    return rows


def _recipe(name: str, config: TrainConfig) -> dict[str, Any]:
    torch.manual_seed(0)
    model = create_model(config.model, num_classes=10, image_size=32).to(memory_format=torch.channels_last)
    buckets = _buckets(model)
    kernels, operations = _counted(lambda: _backward(model))
    optimizer_kernels = optimizer_operations = 0
    for optimizer in create_optimizers(model, config.optimizer, config.batch_size):
        launched, computed = _counted(optimizer.step)
        optimizer_operations += computed
        # On a GPU, all optimizers except Muon are fused: one kernel for each group of weights.
        optimizer_kernels += launched if isinstance(optimizer, Muon) else len(optimizer.param_groups)
    return {
        "recipe": name,
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "kernels": kernels,
        # torch's counter ignores groups in the backward pass, and these networks have many
        "image_operations": 3 * count_flops(model, config.image_size) if config.image_size else operations // _IMAGES,
        "optimizer_kernels": optimizer_kernels,
        "optimizer_operations": optimizer_operations,
        "bucket_bytes": buckets,
        "statistics": sum(buffer.is_floating_point() for buffer in model.buffers()),
    }


def _backward(model: nn.Module) -> None:
    images = torch.randn(_IMAGES, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images).float()
    F.cross_entropy(logits, torch.zeros(_IMAGES, dtype=torch.int64)).backward()


def _buckets(model: nn.Module) -> list[int]:
    """Bytes of each of DDP's buckets; DDP orders weights by the time at which their gradients are ready in the first step."""
    parallel = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    for _ in range(3):
        _backward(parallel)
    sizes = parallel._get_ddp_logging_data()["rebuilt_bucket_sizes"]
    return [int(size) for size in sizes.split(",")]


def _counted(action: Callable[[], object]) -> tuple[int, int]:
    """Number of kernels and of floating-point operations of an action."""
    kernels, operations = Kernels(), FlopCounterMode(display=False)
    with operations, kernels:
        action()
    return kernels.number, int(operations.get_total_flops())
