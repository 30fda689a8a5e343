"""Sums and means over all workers; for a single worker they change nothing."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def sum_over_workers(values: Tensor) -> Tensor:
    """Sum a tensor over all workers, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather_over_workers(values: Tensor) -> Tensor:
    """Gather a tensor from all workers: `[workers, *values.shape]`, equal on all."""
    if not dist.is_initialized():
        return values[None].clone()
    rows = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, values)
    return torch.stack(rows)


def average_buffers(model: nn.Module) -> None:
    """Average the batch-norm statistics over all workers, because each worker computes them on its own images."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if not buffers or not dist.is_initialized():
        return
    mean = torch.cat([buffer.flatten() for buffer in buffers])  # one all-reduce for all buffers, because most are small
    dist.all_reduce(mean)
    mean /= dist.get_world_size()
    for buffer, part in zip(buffers, torch.split(mean, [buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))
