"""Test whether recent answers of a version differ from its first ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cifar_ray.drift.windows import Window

REFERENCE_PICTURES = 1000
RECENT_PICTURES = 300
# Three tests at this level give a false alarm once in 300,000 looks; a server looks at most 4,320 times a month.
MAX_P_VALUE = 1e-6
# Minimum difference for an alarm: with many pictures, even a small difference is significant.
MIN_DISTANCE = 0.1
MIN_DISTANCE_ABSTAINING = 0.05

_MIN_EXPECTED = 5.0  # minimum expected count of a cell in the chi-square test (Cochran 1954)

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shift:
    """Difference in one figure between the first and the recent pictures.

    Attributes:
        figure: `abstentions`, `confidence` or `classes`.
        distance: total variation distance of the two distributions, 0–1.
        p_value: p-value of the chi-square test that both distributions are the same.
        limit: minimum distance for an alarm.
        text: the figure of the first and of the recent pictures, as text for the user.
    """

    figure: str
    distance: float
    p_value: float
    limit: float
    text: str

    @property
    def is_alarm(self) -> bool:
        """Whether the difference is significant and at least `limit`."""
        return self.p_value < MAX_P_VALUE and self.distance >= self.limit


@dataclass(frozen=True)
class Drift:
    """Comparison of the recent pictures of a version with its first ones.

    Attributes:
        reference: number of first pictures, the reference.
        recent: number of recent pictures.
        shifts: one shift per figure; empty while there are too few pictures.
    """

    reference: int
    recent: int
    shifts: tuple[Shift, ...] = ()

    @property
    def is_alarm(self) -> bool:
        """Whether the pictures have changed."""
        return any(shift.is_alarm for shift in self.shifts)


def detect(windows: Sequence[Window]) -> Drift:
    """Compare the most recent 300 pictures or more with the first 1,000 or more of the same version.

    Three chi-square tests compare abstentions, confidence and classes. A model abstains by the distance of a picture's features to those
    of the validation pictures.

    Args:
        windows: windows of one version, the oldest first; whole windows are compared.
    """
    first, first_count = _take(windows, REFERENCE_PICTURES)
    recent, _ = _take(windows[first_count:][::-1], RECENT_PICTURES)
    if first.pictures < REFERENCE_PICTURES or recent.pictures < RECENT_PICTURES:
        return Drift(first.pictures, recent.pictures)
    abstaining = tuple(np.array([one.abstained, one.pictures - one.abstained], float) for one in (first, recent))
    confidence = tuple(np.array(one.confidence, float) for one in (first, recent))
    names = sorted({*first.classes, *recent.classes})
    classes = tuple(np.array([one.classes.get(name, 0) for name in names], float) for one in (first, recent))
    shares = [100 * one.abstained / one.pictures for one in (first, recent)]
    means = [100 * _mean(counts) for counts in confidence]
    most = max(names, key=lambda name: abs(recent.classes.get(name, 0) / recent.pictures - first.classes.get(name, 0) / first.pictures))
    of_most = [100 * one.classes.get(most, 0) / one.pictures for one in (first, recent)]
    shifts = (
        Shift("abstentions", *_compare(*abstaining), MIN_DISTANCE_ABSTAINING, f"{shares[0]:.1f} % → {shares[1]:.1f} %"),
        Shift("confidence", *_compare(*confidence), MIN_DISTANCE, f"mean {means[0]:.0f} % → {means[1]:.0f} %"),
        Shift("classes", *_compare(*classes), MIN_DISTANCE, f"{most}: {of_most[0]:.1f} % → {of_most[1]:.1f} %"),
    )
    return Drift(first.pictures, recent.pictures, shifts)


def _take(windows: Sequence[Window], pictures: int) -> tuple[Window, int]:
    """Sum of the first windows that together have at least `pictures` pictures, and the number of these windows."""
    total = Window()
    for count, window in enumerate(windows, 1):
        total += window
        if total.pictures >= pictures:
            return total, count
    return total, len(windows)


def _mean(counts: Counts) -> float:
    middles = (np.arange(len(counts)) + 0.5) / len(counts)
    return float((counts * middles).sum() / max(1.0, counts.sum()))


def _compare(first: Counts, recent: Counts) -> tuple[float, float]:
    """Total variation distance, and the p-value of the chi-square test of homogeneity; rare cells are merged."""
    total = np.array([first.sum(), recent.sum()])
    if not total.all():
        return 0.0, 1.0
    distance = float(np.abs(first / total[0] - recent / total[1]).sum() / 2)
    expected_least = (first + recent) * total.min() / total.sum()
    rare = expected_least < _MIN_EXPECTED
    table = np.stack([np.append(counts[~rare], counts[rare].sum()) for counts in (first, recent)])
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2:
        return distance, 1.0
    expected = table.sum(axis=0) * total[:, None] / total.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    return distance, _chi_square_tail(statistic, table.shape[1] - 1)


def _chi_square_tail(statistic: float, degrees: int) -> float:
    """Approximate probability of a larger value (Wilson & Hilferty 1931, Proceedings of the National Academy of Sciences 17)."""
    z = ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))
    return 0.5 * math.erfc(z / math.sqrt(2))
