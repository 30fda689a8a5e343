"""Counter-based random numbers: the same bits on CPU and GPU, in any order and in parts of any size.

Philox 4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", section 3.3) with operations on int64 tensors. torch's
own generators give different numbers on CPU and GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LOW_BITS = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_WORDS = 4  # per block
_FLOAT_BITS = 24

Block = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Block, key: tuple[int, int]) -> Block:
    """Four random words of each counter.

    Args:
        counter: int64 tensors of one shape, each value in 0 to 2³²-1.
        key: two words, 0 to 2³²-1.

    Returns:
        Four int64 tensors of the same shape. Products of more than 63 bits wrap around on all devices; their upper word is still correct.
    """
    one, two, three, four = counter
    first_key, second_key = key
    for _ in range(_ROUNDS):
        left, right = one * _MULTIPLIERS[0], three * _MULTIPLIERS[1]
        one = (right >> 32).bitwise_and_(_LOW_BITS).bitwise_xor_(two).bitwise_xor_(first_key)
        three = (left >> 32).bitwise_and_(_LOW_BITS).bitwise_xor_(four).bitwise_xor_(second_key)
        two, four = right.bitwise_and_(_LOW_BITS), left.bitwise_and_(_LOW_BITS)
        first_key, second_key = ((word + step) & _LOW_BITS for word, step in zip((first_key, second_key), _KEY_STEPS, strict=True))
    return one, two, three, four


@dataclass(frozen=True)
class Stream:
    """Random words for one purpose. A word depends only on seed, purpose, epoch, position and its number at this position.

    Attributes:
        seed: 0 to 2³²-1.
        purpose: 0 to 2³²-1.
        epoch: from 0.
    """

    seed: int
    purpose: int
    epoch: int = 0

    def words(self, positions: Tensor, count: int) -> Tensor:
        """Compute `count` random words for each position.

        Args:
            positions: int64 `[N]`, 0 to 2³²-1; the result is on the same device.
            count: number of words per position.

        Returns:
            int64 `[N, count]`, each value in 0 to 2³²-1.
        """
        blocks = -(-count // _WORDS)
        position = positions[:, None].expand(-1, blocks)
        number = torch.arange(blocks, device=positions.device).expand_as(position)
        epoch, purpose = (torch.full_like(position, value) for value in (self.epoch, self.purpose))
        return torch.stack(philox((position, number, epoch, purpose), (self.seed, 0)), dim=2).flatten(1)[:, :count]


def integers(words: Tensor, low: int, high: int | Tensor) -> Tensor:
    """Map random words to integers from `low` to `high - 1`, int64; the bias for n possible values is below n / 2³²."""
    return ((words * (high - low)) >> 32) + low


def uniforms(words: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Map the upper 24 bits of random words to float32 from `low` to `high`; bit-identical on all devices for 0 to 1."""
    fractions = (words >> (32 - _FLOAT_BITS)).float() * 2.0**-_FLOAT_BITS
    return fractions if (low, high) == (0.0, 1.0) else fractions * (high - low) + low
