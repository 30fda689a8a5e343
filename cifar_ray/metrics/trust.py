"""What a model's logits are worth: the temperature that makes its probabilities honest, and which pictures it had rather not name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from cifar_ray.metrics.accuracy import Integers, calibrate, evaluate_logits

Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

SHARE_KEPT = 0.95
_COLDEST, _HOTTEST = 0.01, 100.0


@dataclass(frozen=True)
class Trust:
    """How to read the logits of one model; as it stands, as they are.

    Attributes:
        temperature: logits are divided by it before softmax.
        abstain_threshold: images of less `familiarity` are not to be believed; `None` believes all.
    """

    temperature: float = 1.0
    abstain_threshold: float | None = None

    @classmethod
    def fit(cls, logits: Logits, labels: Integers) -> Self:
        """Learns both from images that the model did not learn from.

        Args:
            logits: `[N, C]`, N ≥ 1.
            labels: `[N]`.
        """
        threshold = float(np.quantile(familiarity(logits), 1 - SHARE_KEPT, method="lower"))
        return cls(fit_temperature(logits, labels), threshold)

    def abstains(self, logits: Logits) -> npt.NDArray[np.bool_]:
        """Whether each image is less familiar than 95 % of those that the threshold was fitted on: bool `[N]`."""
        if self.abstain_threshold is None:
            return np.zeros(len(logits), np.bool_)
        unfamiliar: npt.NDArray[np.bool_] = familiarity(logits) < self.abstain_threshold
        return unfamiliar

    def metrics(self, logits: Logits, labels: Integers) -> dict[str, float]:
        """Figures of images that it was not fitted on: loss, calibration error without and with the temperature, share abstained from."""
        return {
            "test_loss": evaluate_logits(logits, labels, self.temperature).loss,
            "test_ece_uncalibrated": calibrate(softmax(logits), labels).error,
            "test_ece": calibrate(softmax(logits, self.temperature), labels).error,
            "test_abstained": float(self.abstains(logits).mean()),
        }

    def describe(self, metrics: dict[str, float]) -> str:
        """In a line, with what `metrics` says."""
        if self.abstain_threshold is None:
            return "probabilities are as the network gives them, and it never abstains: there were no validation images to fit on"
        fitted = f"temperature {self.temperature:.3g}"
        if "test_ece" not in metrics:
            return f"{fitted}; there are no test images to say how well it fits"
        return (
            f"{fitted}: calibration error {metrics['test_ece_uncalibrated']:.2%} → {metrics['test_ece']:.2%}; "
            f"abstains from {metrics['test_abstained']:.2%} of the test images"
        )


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


def familiarity(logits: Logits) -> Floats:
    """How much each image is like those that the model knows: its negative energy (Liu et al. 2020, arXiv 2010.03759, section 3.1).

    The logarithm of the summed exponentials, of logits as they are, whatever the temperature: float64 `[N]`, higher for more.
    """
    largest = logits.max(axis=1, keepdims=True).astype(np.float64)
    energies: Floats = (largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True)))[:, 0]
    return energies


def softmax(logits: Logits, temperature: float = 1.0) -> Logits:
    """Probabilities of logits ÷ temperature, float32 `[N, C]`."""
    exponentials = np.exp((logits - logits.max(axis=1, keepdims=True)) / np.float32(temperature))
    probabilities: Logits = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
