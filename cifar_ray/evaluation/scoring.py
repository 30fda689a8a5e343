"""Run a model on a split, clean and corrupted. Blocks of fixed size make the results independent of the number of workers."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cifar_ray.evaluation.measures.corruptions import CORRUPTIONS, LEVELS, corrupt
from cifar_ray.inference.predictor import Predictor

Images = npt.NDArray[np.uint8]
OnProgress = Callable[[int], None]

BLOCK = 250  # images per block; random numbers depend only on the block


@dataclass(frozen=True, eq=False)
class BlockScores:
    """Predictions for one block of images.

    Attributes:
        logits: float32 `[n, C]`.
        abstains: bool `[n]`, whether the model abstains.
        rows: int64 `[m]`, rows within the block of the images that were also corrupted.
        corrupted: int64 `[types, 5, m]`, predicted class of each corrupted image by type, in the order of `CORRUPTIONS`, and severity.
    """

    logits: npt.NDArray[np.float32]
    abstains: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.int64]
    corrupted: npt.NDArray[np.int64]


def device_here() -> str:
    """`cuda` if this process has a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def count_blocks(images: int) -> int:
    """Number of blocks for this number of images."""
    return -(-images // BLOCK)


def count_predictions(images: int, corrupt_every: int | None) -> int:
    """Number of predictions for all images, clean and corrupted; see `score_block`."""
    return images + (-(-images // corrupt_every) * len(CORRUPTIONS) * LEVELS if corrupt_every else 0)


def score_block(
    predictor: Predictor, images: Images, block: int, corrupt_every: int | None, on_progress: OnProgress = lambda _: None
) -> BlockScores:
    """Predict one block, clean and corrupted.

    Args:
        predictor: the model.
        images: uint8 `[N, S, S, 3]`, the whole split.
        block: number of the block, from 0 to `count_blocks(N) - 1`.
        corrupt_every: corrupt every n-th image of the split; `None` corrupts no image.
        on_progress: receives the number of new predictions after each step.
    """
    start = block * BLOCK
    part = images[start : start + BLOCK]
    rows = np.flatnonzero(np.arange(start, start + len(part)) % corrupt_every == 0) if corrupt_every else np.zeros(0, np.int64)
    prediction = predictor.predict(part)
    on_progress(len(part))
    corrupted = np.zeros((len(CORRUPTIONS), LEVELS, len(rows)), np.int64)
    for kind, name in enumerate(CORRUPTIONS if len(rows) else ()):
        for level in range(LEVELS):
            seed = zlib.crc32(f"{name}/{level}/{block}".encode())
            corrupted[kind, level] = predictor.predict(corrupt(part[rows], name, level + 1, seed)).logits.argmax(axis=1)
            on_progress(len(rows))
    return BlockScores(prediction.logits, prediction.abstains, rows, corrupted)


def embed_all(predictor: Predictor, images: Images, on_progress: OnProgress = lambda _: None) -> npt.NDArray[np.float32]:
    """Embeddings of all images, float32 `[N, D]`, rows of norm 1."""
    parts = []
    for start in range(0, len(images), BLOCK):
        parts.append(predictor.embed(images[start : start + BLOCK]))
        on_progress(len(parts[-1]))
    return np.concatenate(parts)
