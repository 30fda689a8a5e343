"""Calibration error of probabilities, and temperature scaling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cifar_ray.metrics.accuracy import Floats, Integers, Logits, cross_entropies, ratio, softmax

_COLDEST, _HOTTEST = 0.01, 100.0
_FOLDS, _PRIOR_IMAGES, _RESAMPLES = 5, 50, 200


@dataclass(frozen=True)
class Calibration:
    """Accuracy by confidence (reliability diagram: Guo et al. 2017, arXiv 1706.04599, section 2).

    Attributes:
        counts: int64 `[B]`, number of images in each bin of confidence; bins have equal width over 0–1.
        confidence: float64 `[B]`, mean confidence in the bin; NaN for an empty bin.
        accuracy: float64 `[B]`, accuracy in the bin; NaN for an empty bin.
    """

    counts: Integers
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """Expected calibration error, 0–1: distance between confidence and accuracy of a bin, averaged over the images."""
        return float(np.nansum(self.counts * np.abs(self.confidence - self.accuracy)) / max(1, self.counts.sum()))

    @property
    def overconfidence(self) -> float:
        """Mean confidence minus accuracy, from -1 to 1."""
        return float(np.nansum(self.counts * (self.confidence - self.accuracy)) / max(1, self.counts.sum()))


def calibrate(probabilities: Logits, labels: Integers, bins: int = 15) -> Calibration:
    """Bin images by the probability of their most probable class; 15 bins as in Guo et al. 2017.

    Args:
        probabilities: float32 `[N, C]`.
        labels: int64 `[N]`.
        bins: number of bins.
    """
    return bin_by_confidence(probabilities.max(axis=1).astype(np.float64), probabilities.argmax(axis=1) == labels, bins)


def bin_by_confidence(confidence: Floats, correct: npt.NDArray[np.bool_], bins: int) -> Calibration:
    """Bin predictions by their confidence, float64 `[N]`, 0–1; `correct`, bool `[N]`, marks the right predictions."""
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    mean_confidence = ratio(np.bincount(bin_of, weights=confidence, minlength=bins), counts)
    accuracy = ratio(np.bincount(bin_of, weights=correct, minlength=bins), counts)
    return Calibration(counts.astype(np.int64), mean_confidence, accuracy)


def calibration_spread(probabilities: Logits, labels: Integers) -> float:
    """Standard deviation of the expected calibration error over bootstrap samples of the images: 0–1."""
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(_RESAMPLES):
        rows = rng.integers(0, len(labels), len(labels))
        errors.append(calibrate(probabilities[rows], labels[rows]).error)
    return float(np.std(errors))


def fit_temperature_if_better(logits: Logits, labels: Integers) -> float:
    """`fit_temperature`, shrunk towards 1; exactly 1 if the temperature does not help on held-out images.

    With few images the temperature fits noise. Therefore it is shrunk more for fewer images, and used only if in five-fold
    cross-validation it lowers the cross-entropy by more than the standard error, and does not raise the calibration error.

    Args:
        logits: `[N, C]`, of images not trained on.
        labels: `[N]`.

    Returns:
        0.01–100.
    """
    if len(labels) < 2 * _FOLDS:
        return 1.0
    fold_of = np.random.default_rng(0).permutation(len(labels)) % _FOLDS
    held_out = np.empty(logits.shape, np.float32)
    for fold in range(_FOLDS):
        part = fold_of == fold
        held_out[part] = logits[part] / np.float32(_shrunk(logits[~part], labels[~part]))
    gains: Floats = cross_entropies(logits, labels) - cross_entropies(held_out, labels)
    helps = gains.mean() > gains.std() / np.sqrt(len(labels))
    is_worse = calibrate(softmax(held_out), labels).error > calibrate(softmax(logits), labels).error
    return _shrunk(logits, labels) if helps and not is_worse else 1.0


def _shrunk(logits: Logits, labels: Integers) -> float:
    """The fitted temperature, shrunk towards 1 on a logarithmic scale, as if `_PRIOR_IMAGES` more images supported 1."""
    return float(fit_temperature(logits, labels) ** (len(labels) / (len(labels) + _PRIOR_IMAGES)))


def fit_temperature(logits: Logits, labels: Integers) -> float:
    """Temperature scaling (Guo et al. 2017, arXiv 1706.04599, section 4.2): the divisor of the logits that minimises the cross-entropy.

    The cross-entropy is convex in the inverse of the divisor, so its slope has one root. Brent's method finds the root in float64. One
    label in N + 2 counts as wrong (Platt 1999, section 2.2): otherwise a network without mistakes on these images would get
    infinite confidence.

    Args:
        logits: `[N, C]`, of images not trained on.
        labels: `[N]`.

    Returns:
        0.01–100.
    """
    from scipy.optimize import brentq  # the import takes tenths of a second, and serving does not need it

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
