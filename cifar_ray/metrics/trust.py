"""Temperature of a model's probabilities, and the threshold below which it abstains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from cifar_ray.metrics.accuracy import Floats, Integers, Logits, evaluate_logits, softmax
from cifar_ray.metrics.calibration import calibrate, calibration_spread, fit_temperature_if_better

SHARE_KEPT = 0.95


@dataclass(frozen=True)
class Trust:
    """Temperature and abstain threshold of a model; by default the probabilities are uncalibrated and the model never abstains.

    Attributes:
        temperature: divisor of the logits before softmax.
        abstain_threshold: the model abstains from images with less `familiarity`; `None` never abstains.
    """

    temperature: float = 1.0
    abstain_threshold: float | None = None

    @classmethod
    def fit(cls, logits: Logits, labels: Integers) -> Self:
        """Fit both on images that were not in the training set.

        Args:
            logits: `[N, C]`, N ≥ 1.
            labels: `[N]`.
        """
        threshold = float(np.quantile(familiarity(logits), 1 - SHARE_KEPT, method="lower"))
        return cls(fit_temperature_if_better(logits, labels), threshold)

    def abstains(self, logits: Logits) -> npt.NDArray[np.bool_]:
        """Whether the model abstains from each image, because it is less familiar than 95 % of the images of the fit: bool `[N]`."""
        if self.abstain_threshold is None:
            return np.zeros(len(logits), np.bool_)
        unfamiliar: npt.NDArray[np.bool_] = familiarity(logits) < self.abstain_threshold
        return unfamiliar

    def metrics(self, logits: Logits, labels: Integers) -> dict[str, float]:
        """Metrics on test images: loss, calibration error without and with the temperature and its spread, and fraction of abstentions."""
        calibrated = softmax(logits, self.temperature)
        return {
            "test_loss": evaluate_logits(logits, labels, self.temperature).loss,
            "test_ece_uncalibrated": calibrate(softmax(logits), labels).error,
            "test_ece": calibrate(calibrated, labels).error,
            "test_ece_sd": calibration_spread(calibrated, labels),
            "test_abstained": float(self.abstains(logits).mean()),
        }

    def describe(self, metrics: dict[str, float]) -> str:
        """Describe temperature, calibration error and abstentions in one line."""
        if self.abstain_threshold is None:
            return "probabilities are uncalibrated and the model never abstains, because there are no validation images"
        is_one = self.temperature == 1
        fitted = "temperature 1 (no other improves the calibration)" if is_one else f"temperature {self.temperature:.3g}"
        if "test_ece" not in metrics:
            return f"{fitted}, calibration error unknown (no test images)"
        before = "" if is_one else f"{metrics['test_ece_uncalibrated']:.2%} → "
        spread = f" (± {100 * metrics['test_ece_sd']:.1f} points)" if "test_ece_sd" in metrics else ""
        return (
            f"{fitted}: calibration error {before}{metrics['test_ece']:.2%}{spread}; "
            f"abstains from {metrics['test_abstained']:.2%} of the test images"
        )


def familiarity(logits: Logits) -> Floats:
    """Similarity of each image to the training images: its negative energy (Liu et al. 2020, arXiv 2010.03759, section 3.1).

    This is the logsumexp of the logits, without the temperature: float64 `[N]`, higher for more similar images.
    """
    largest = logits.max(axis=1, keepdims=True).astype(np.float64)
    energies: Floats = (largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True)))[:, 0]
    return energies
