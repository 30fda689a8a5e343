"""Size of a forward pass, and advice where memory does not suffice for it."""

from __future__ import annotations

import torch

from cifar_ray.config import TrainConfig

_CPU_MICRO_BATCH_PX = (
    250 * 32 * 32
)  # activations of such a micro-batch stay in a core's cache: about 1.7 times as fast as 2,000 images at once


def memory_advice(config: TrainConfig, device: torch.device, image_size_px: int, world_size: int = 1) -> str:
    """What to do if memory runs out in training: smaller micro-batches than those that a worker uses now, as long as there are any."""
    share = -(-config.batch_size // world_size)
    size = min(share, config.micro_batch_size or auto_micro_batch_size(device, image_size_px) or share)
    if size > 1:
        return f"pass a --micro-batch-size below {size}; it changes memory and speed, not the result"
    return "pass a smaller --image-size or --model, or free memory; --micro-batch-size is 1 already"


def auto_micro_batch_size(device: torch.device, image_size_px: int) -> int | None:
    """Images per forward pass without `--micro-batch-size`; `None` for a worker's whole share."""
    return None if device.type == "cuda" else max(1, _CPU_MICRO_BATCH_PX // image_size_px**2)
