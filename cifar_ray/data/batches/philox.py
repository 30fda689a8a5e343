"""Random words from a counter: equal bits on a CPU and on a GPU, in any order and in parts of any size.

Philox 4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", section 3.3), in operations on int64 tensors. The
generators of torch have other streams on each device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LOW_BITS = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_WORDS = 4  # of a block
_FLOAT_BITS = 24

Block = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Block, key: tuple[int, int]) -> Block:
    """Four random words of each counter.

    Args:
        counter: int64 tensors of one shape, each value in 0 to 2³²-1.
        key: two words, 0 to 2³²-1.

    Returns:
        As `counter`. Products of more than 63 bits wrap around, as int64 does on all devices; the upper word is right nevertheless.
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
    """Random words for one purpose; each depends on seed, purpose, epoch, position and its number only.

    Attributes:
        seed: 0 to 2³²-1.
        purpose: 0 to 2³²-1.
        epoch: from 0.
    """

    seed: int
    purpose: int
    epoch: int = 0

    def words(self, positions: Tensor, count: int) -> Tensor:
        """`count` words of each position.

        Args:
            positions: int64 `[N]`, 0 to 2³²-1; the words are on their device.
            count: words of each.

        Returns:
            int64 `[N, count]`, each value in 0 to 2³²-1.
        """
        blocks = -(-count // _WORDS)
        position = positions[:, None].expand(-1, blocks)
        number = torch.arange(blocks, device=positions.device).expand_as(position)
        epoch, purpose = (torch.full_like(position, value) for value in (self.epoch, self.purpose))
        return torch.stack(philox((position, number, epoch, purpose), (self.seed, 0)), dim=2).flatten(1)[:, :count]


def integers(words: Tensor, low: int, high: int | Tensor) -> Tensor:
    """Integers from `low` to `high - 1`, int64, from random words; a bound of n is met with a bias below n / 2³²."""
    return ((words * (high - low)) >> 32) + low


def uniforms(words: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """float32 from `low` to `high`, from the upper 24 bits of random words; equal bits on all devices for 0 to 1."""
    fractions = (words >> (32 - _FLOAT_BITS)).float() * 2.0**-_FLOAT_BITS
    return fractions if (low, high) == (0.0, 1.0) else fractions * (high - low) + low
