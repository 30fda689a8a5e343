"""Familiarity: how similar pictures are to the pictures that a model was validated on, by the model's logits and features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cifar_ray.metrics.accuracy import Floats, Integers, Logits

SHARE_KEPT = 0.95
NEIGHBOUR = 5  # similarity means the similarity to the fifth nearest known picture

_MAX_KNOWN = 500  # more pictures cost memory and time without better results


@dataclass(frozen=True, eq=False)
class Familiarity:
    """Compares pictures with known pictures.

    The score has two parts: the energy of the logits, and the similarity to the fifth nearest known picture (Sun et al. 2022,
    arXiv 2204.06507). Similarity is the cosine between the square roots of the features. Square roots give weak features more weight,
    because unfamiliar pictures often lack detail, which shows in the weak features. Each part is measured from its median over the known
    pictures, in units of its root mean square deviation below the median. Only deviations below the median count.

    Attributes:
        known: float32 `[K, D]`, square roots of the features of known pictures; each row has length 1.
        centres: float64 `[2]`, median of each part over the known pictures.
        spreads: float64 `[2]`, root mean square deviation below the median.
        threshold: the model abstains from pictures with a lower score.
    """

    known: Logits
    centres: Floats
    spreads: Floats
    threshold: float

    @classmethod
    def fit(cls, logits: Logits, features: Logits, groups: Integers | None = None) -> Self | None:
        """Fit on pictures that were not in the training set of the network, or of its head; `None` if there are too few.

        Args:
            logits: `[N, C]`.
            features: `[N, D]`, D ≥ 1.
            groups: int64 `[N]`; equal numbers mark near-duplicates, which do not count as neighbours of each other.
        """
        roots, rows = _roots(features), draw_rows(len(features), _MAX_KNOWN)
        known, groups = roots[rows], np.arange(len(features)) if groups is None else groups
        similarity = _similarity(roots, known, groups[:, None] == groups[rows])
        if not np.isfinite(similarity).all():
            return None
        parts = np.stack([energy(logits), similarity], axis=1)
        centres = np.median(parts, axis=0)
        spreads = np.sqrt(2 * (np.minimum(parts - centres, 0) ** 2).mean(axis=0)) + np.finfo(np.float32).tiny
        scores = _below(parts, centres, spreads)
        return cls(known, centres, spreads, float(np.quantile(scores, 1 - SHARE_KEPT, method="lower")))

    def score(self, logits: Logits, features: Logits) -> Floats:
        """Familiarity of each picture, float64 `[N]`, at most 0; lower for less familiar pictures."""
        parts = np.stack([energy(logits), _similarity(_roots(features), self.known)], axis=1)
        return _below(parts, self.centres, self.spreads)

    def abstains(self, logits: Logits, features: Logits) -> npt.NDArray[np.bool_]:
        """Whether the model abstains from each picture, bool `[N]`."""
        abstains: npt.NDArray[np.bool_] = self.score(logits, features) < self.threshold
        return abstains

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays by name, to be stored; `known` in half precision."""
        return {
            "known": self.known.astype(np.float16),
            "centres": self.centres,
            "spreads": self.spreads,
            "threshold": np.array([self.threshold]),
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Create from the result of `arrays`.

        Raises:
            KeyError, ValueError: if an array is missing or has the wrong shape.
        """
        (threshold,) = arrays["threshold"].tolist()
        return cls(arrays["known"].astype(np.float32), arrays["centres"], arrays["spreads"], threshold)


def draw_rows(count: int, most: int) -> Integers:
    """Numbers of `count` rows, or of a random sample of `most` of them, ascending: int64 `[min(count, most)]`."""
    rows = np.arange(count)
    return rows if count <= most else np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def energy(logits: Logits) -> Floats:
    """Negative energy of each image (Liu et al. 2020, arXiv 2010.03759, section 3.1).

    This is the logsumexp of the logits, `[N, C]`, without the temperature: float64 `[N]`, higher for more familiar images.
    """
    largest = logits.max(axis=1, keepdims=True).astype(np.float64)
    energies: Floats = (largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True)))[:, 0]
    return energies


def unit(features: Logits) -> Logits:
    """Each row divided by its Euclidean length, float32 `[N, D]`."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    result: Logits = (features / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
    return result


def _roots(features: Logits) -> Logits:
    return unit(np.sign(features) * np.sqrt(np.abs(features)))


def _similarity(features: Logits, known: Logits, same: npt.NDArray[np.bool_] | None = None) -> Floats:
    """Cosine similarity to the fifth nearest row of `known` that is not marked as `same`, float64 `[N]`; -inf if there are fewer."""
    if len(known) < NEIGHBOUR:
        return np.full(len(features), -np.inf)
    products = features @ known.T
    if same is not None:
        products[same] = -np.inf
    similarity: Floats = np.partition(products, -NEIGHBOUR, axis=1)[:, -NEIGHBOUR].astype(np.float64)
    return similarity


def _below(parts: Floats, centres: Floats, spreads: Floats) -> Floats:
    deviations: Floats = -np.linalg.norm(np.minimum((parts - centres) / spreads, 0), axis=1)
    return deviations
