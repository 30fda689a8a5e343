"""Passes of a network over a split, clean and spoilt, block by block: any number of workers gives the same figures."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cifar_ray.evaluation.corruptions import CORRUPTIONS, LEVELS, corrupt
from cifar_ray.inference.features import embed
from cifar_ray.inference.predictor import Predictor

Images = npt.NDArray[np.uint8]
OnProgress = Callable[[int], None]

BLOCK = 250  # images a pass; what is drawn at random depends on the block alone


@dataclass(frozen=True, eq=False)
class BlockScores:
    """What one block of images gave.

    Attributes:
        logits: float32 `[n, C]`.
        rows: int64 `[m]`, those images of the block that were spoilt too, counted from its first.
        spoilt: int64 `[kinds, 5, m]`, the class predicted for each of them by kind and level of `CORRUPTIONS`.
    """

    logits: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    spoilt: npt.NDArray[np.int64]


def device_here() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def count_blocks(images: int) -> int:
    """Blocks that hold so many images."""
    return -(-images // BLOCK)


def score_block(predictor: Predictor, images: Images, block: int, spoil_every: int | None) -> BlockScores:
    """Runs the network over one block.

    Args:
        predictor: the model.
        images: uint8 `[N, S, S, 3]`, the whole split.
        block: in `0…count_blocks(N)-1`.
        spoil_every: every so many images of the split are spoilt too; `None` for none.
    """
    start = block * BLOCK
    part = images[start : start + BLOCK]
    rows = np.flatnonzero(np.arange(start, start + len(part)) % spoil_every == 0) if spoil_every else np.zeros(0, np.int64)
    spoilt = np.zeros((len(CORRUPTIONS), LEVELS, len(rows)), np.int64)
    for kind, name in enumerate(CORRUPTIONS if len(rows) else ()):
        for level in range(LEVELS):
            seed = zlib.crc32(f"{name}/{level}/{block}".encode())
            spoilt[kind, level] = predictor.predict(corrupt(part[rows], name, level + 1, seed)).logits.argmax(axis=1)
    return BlockScores(predictor.predict(part).logits, rows, spoilt)


def embed_all(predictor: Predictor, images: Images, on_progress: OnProgress = lambda _: None) -> npt.NDArray[np.float32]:
    """Embeddings of all images, float32 `[N, D]`, rows of length 1."""
    parts = []
    for start in range(0, len(images), BLOCK):
        parts.append(embed(predictor, images[start : start + BLOCK]))
        on_progress(len(parts[-1]))
    return np.concatenate(parts)
