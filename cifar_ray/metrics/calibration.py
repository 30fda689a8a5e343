"""How honest probabilities are, and the temperature that makes them so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cifar_ray.metrics.accuracy import Floats, Integers, Logits, ratio

_COLDEST, _HOTTEST = 0.01, 100.0


@dataclass(frozen=True)
class Calibration:
    """How often the network is right, by how sure it says it is (reliability diagram: Guo et al. 2017, arXiv 1706.04599, section 2).

    Attributes:
        counts: int64 `[B]`, images in each bin of confidence; bins are of equal width over 0…1.
        confidence: float64 `[B]`, mean of the bin; NaN where it is empty.
        accuracy: float64 `[B]`, the same.
    """

    counts: Integers
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """Expected calibration error, 0…1: mean distance of confidence from accuracy over images."""
        return float(np.nansum(self.counts * np.abs(self.confidence - self.accuracy)) / max(1, self.counts.sum()))

    @property
    def overconfidence(self) -> float:
        """Mean confidence less accuracy, -1…1."""
        return float(np.nansum(self.counts * (self.confidence - self.accuracy)) / max(1, self.counts.sum()))


def calibrate(probabilities: Logits, labels: Integers, bins: int = 15) -> Calibration:
    """Sorts images by the probability of their most probable class; 15 bins as in Guo et al. 2017."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    mean_confidence = ratio(np.bincount(bin_of, weights=confidence, minlength=bins), counts)
    accuracy = ratio(np.bincount(bin_of, weights=correct, minlength=bins), counts)
    return Calibration(counts.astype(np.int64), mean_confidence, accuracy)


def fit_temperature(logits: Logits, labels: Integers) -> float:
    """Temperature scaling (Guo et al. 2017, arXiv 1706.04599, section 4.2): the one divisor that minimises the cross-entropy.

    That is convex in the divisor's inverse, so its slope has one root, which Brent's method finds, in float64. One label in N + 2 is
    taken for wrong (as Platt 1999, section 2.2): else a network without a mistake on these few images would become infinitely sure.

    Args:
        logits: `[N, C]` of images not trained on.
        labels: `[N]`.

    Returns:
        0.01…100.
    """
    from scipy.optimize import brentq  # tenths of a second that serving does without

    scaled = logits.astype(np.float64)
    scaled -= scaled.max(axis=1, keepdims=True)
    doubt = 1 / (len(labels) + 2)
    wanted = (1 - doubt) * np.take_along_axis(scaled, labels[:, None], axis=1)[:, 0] + doubt * scaled.mean(axis=1)

    def slope(log_temperature: float) -> float:
        weights = np.exp(scaled / np.exp(log_temperature))
        expected = (weights * scaled).sum(axis=1) / weights.sum(axis=1)
        return float((expected - wanted).mean())

    coldest, hottest = np.log(_COLDEST), np.log(_HOTTEST)
    if slope(coldest) <= 0:
        return _COLDEST
    if slope(hottest) >= 0:
        return _HOTTEST
    return float(np.exp(brentq(slope, coldest, hottest)))
