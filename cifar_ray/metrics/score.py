"""The score by which models are compared: accuracy, or mAP for several labels per picture; its name and format for the user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cifar_ray.metrics.intervals import FEW_PICTURES, accuracy_interval, describe_accuracy

_NAMES = {"accuracy": "accuracy", "map": "mAP"}
_Z95 = 1.96


@dataclass(frozen=True)
class Score:
    """Accuracy or mAP of a model on a split.

    Attributes:
        key: `accuracy` or `map`, the ending of the score's name in metrics.
        value: 0–1.
        count: number of pictures; `None` if unknown, as for models of release 0.1.
        spread: standard error of the mAP; unused for an accuracy, whose interval follows from the count.
    """

    key: str
    value: float
    count: int | None = None
    spread: float = 0.0

    @classmethod
    def find(cls, metrics: Mapping[str, float], split: str, count: int | None = None) -> Score | None:
        """The score of a split, `cv`, `val` or `test`, in the metrics of a model; `None` if the metrics do not contain it."""
        for key in _NAMES:
            if (value := metrics.get(f"{split}_{key}")) is not None:
                return cls(key, value, count, metrics.get(f"{split}_{key}_sd", 0.0))
        return None

    @property
    def name(self) -> str:
        """Name for the user: accuracy or mAP."""
        return _NAMES[self.key]

    def interval(self, count: int) -> tuple[float, float]:
        """95 % interval; `count` is used if the number of pictures is unknown."""
        if self.key == "map":
            return max(0.0, self.value - _Z95 * self.spread), min(1.0, self.value + _Z95 * self.spread)
        known = count if self.count is None else self.count
        return accuracy_interval(round(self.value * known), known)

    def __str__(self) -> str:
        """The score; for fewer than 2,000 pictures with its 95 % interval."""
        if self.key == "accuracy" or not self.count or self.count >= FEW_PICTURES:
            return describe_accuracy(self.value, self.count)
        if not self.spread:  # all parts of the pictures have the same mAP, which does not mean that others would
            return f"{100 * self.value:.1f} % ({self.count:,} picture{'s' * (self.count != 1)})"
        low, high = self.interval(self.count)
        return f"{100 * self.value:.1f} % ({100 * low:.1f}–{100 * high:.1f} %, {self.count:,} picture{'s' * (self.count != 1)})"
