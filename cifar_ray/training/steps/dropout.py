"""Seed of the only draws that torch's own generator makes in a step."""

from __future__ import annotations

import numpy as np


def dropout_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """Seed of dropout: it depends on the step, and differs between workers."""
    return int(np.random.SeedSequence((seed, epoch, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))
