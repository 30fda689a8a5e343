"""Figures of how well predictions fit labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Evaluation:
    """What a pass over one split gave.

    Attributes:
        loss: mean cross-entropy, nats an image.
        confusion: int64 `[C, C]`, images by true class (row) and predicted class (column).
    """

    loss: float
    confusion: npt.NDArray[np.int64]

    @property
    def count(self) -> int:
        """Images evaluated."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable class is the true one, 0…1."""
        return float(np.trace(self.confusion) / max(1, self.count))

    def per_class_accuracy(self) -> npt.NDArray[np.float64]:
        """Recall of each class, float64 `[C]`, 0…1; NaN for a class without images."""
        totals = self.confusion.sum(axis=1)
        recall = np.full(len(totals), np.nan)
        np.divide(np.diag(self.confusion), totals, out=recall, where=totals > 0)
        return recall
