"""From logits to probabilities and labels, and the pictures from which a model abstains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from cifar_ray.metrics.accuracy import Integers, Logits, evaluate_logits, softmax
from cifar_ray.metrics.calibration import calibrate, calibration_spread, fit_temperature_if_better
from cifar_ray.metrics.familiarity import SHARE_KEPT, Familiarity, energy
from cifar_ray.metrics.label_rules import LabelRules


@dataclass(frozen=True)
class Trust:
    """Probabilities and labels of a model, and when it abstains; by default they are uncalibrated, and the model never abstains.

    Attributes:
        temperature: divisor of the logits before softmax.
        abstain_threshold: without features, the model abstains from images with a lower `energy`; `None` never abstains.
        familiarity: with features, decides instead of the energy; `None` leaves it to the energy.
        rules: several labels per picture: one rule for each class; `None` for one class per picture.
    """

    temperature: float = 1.0
    abstain_threshold: float | None = None
    familiarity: Familiarity | None = None
    rules: LabelRules | None = None

    @classmethod
    def fit(cls, logits: Logits, labels: Integers, features: Logits | None = None, groups: Integers | None = None) -> Self:
        """Fit on images that were not in the training set.

        Args:
            logits: `[N, C]`, N ≥ 1.
            labels: `[N]`.
            features: `[N, D]`; without them, or with D = 0, the energy alone decides.
            groups: see `Familiarity.fit`.
        """
        threshold = float(np.quantile(energy(logits), 1 - SHARE_KEPT, method="lower"))
        familiarity = Familiarity.fit(logits, features, groups) if features is not None and features.shape[1] else None
        return cls(fit_temperature_if_better(logits, labels), threshold, familiarity)

    def probabilities(self, logits: Logits) -> Logits:
        """Probabilities, float32 `[N, C]`: a softmax that sums to 1, or with rules one independent probability per label."""
        return softmax(logits, self.temperature) if self.rules is None else self.rules.probabilities(logits)

    def labels(self, probabilities: Logits) -> npt.NDArray[np.bool_]:
        """Labels that are given, bool `[N, C]`: the most likely class, or with rules any number of labels."""
        if self.rules is not None:
            return self.rules.labels(probabilities)
        most_likely: npt.NDArray[np.bool_] = np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None]
        return most_likely

    def abstains(self, logits: Logits, features: Logits | None = None) -> npt.NDArray[np.bool_]:
        """Whether the model abstains from each image, because it is less familiar than 95 % of the images of the fit: bool `[N]`.

        Args:
            logits: `[N, C]`.
            features: `[N, D]`; without them, or with D = 0, the energy alone decides.
        """
        if self.familiarity is not None and features is not None and features.shape[1]:
            return self.familiarity.abstains(logits, features)
        if self.abstain_threshold is None:
            return np.zeros(len(logits), np.bool_)
        unfamiliar: npt.NDArray[np.bool_] = energy(logits) < self.abstain_threshold
        return unfamiliar

    def metrics(self, logits: Logits, labels: Integers, features: Logits | None = None) -> dict[str, float]:
        """Metrics on test images: loss, calibration error without and with the temperature and its spread, and fraction of abstentions."""
        calibrated = softmax(logits, self.temperature)
        return {
            "test_loss": evaluate_logits(logits, labels, self.temperature).loss,
            "test_ece_uncalibrated": calibrate(softmax(logits), labels).error,
            "test_ece": calibrate(calibrated, labels).error,
            "test_ece_sd": calibration_spread(calibrated, labels),
            "test_abstained": float(self.abstains(logits, features).mean()),
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
