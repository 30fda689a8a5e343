"""How to read a model's logits: the temperature for its probabilities, and the threshold below which it abstains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from cifar_ray.metrics.accuracy import Floats, Integers, Logits, evaluate_logits, softmax
from cifar_ray.metrics.calibration import calibrate, fit_temperature

SHARE_KEPT = 0.95


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


def familiarity(logits: Logits) -> Floats:
    """How much each image is like those that the model knows: its negative energy (Liu et al. 2020, arXiv 2010.03759, section 3.1).

    The logarithm of the summed exponentials, of logits as they are, whatever the temperature: float64 `[N]`, higher for more.
    """
    largest = logits.max(axis=1, keepdims=True).astype(np.float64)
    energies: Floats = (largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True)))[:, 0]
    return energies
