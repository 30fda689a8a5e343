"""Trust: convert logits to probabilities and labels, and decide from which pictures a model abstains."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from cifar_ray.metrics.accuracy import Evaluation, Integers, Labels, Logits, evaluate_logits, softmax
from cifar_ray.metrics.calibration import calibrate, calibration_spread, fit_temperature_if_better
from cifar_ray.metrics.familiarity import SHARE_KEPT, Familiarity, energy
from cifar_ray.metrics.label_rules import LabelRules, fit_rules
from cifar_ray.metrics.label_sets import LabelSetFigures, calibrate_labels, evaluate_label_sets

Figures = Evaluation | LabelSetFigures


@dataclass(frozen=True)
class Trust:
    """Probabilities and labels of a model, and when it abstains; by default they are uncalibrated, and the model never abstains.

    Attributes:
        temperature: divisor of the logits before softmax.
        abstain_threshold: without features, the model abstains from images with a lower `energy`; `None` never abstains.
        familiarity: decides instead of the energy if features are available; `None` if it was not fitted.
        rules: for several labels per picture: one rule for each class; `None` for one class per picture.
    """

    temperature: float = 1.0
    abstain_threshold: float | None = None
    familiarity: Familiarity | None = None
    rules: LabelRules | None = None

    @classmethod
    def plain(cls, labels: Labels) -> Self:
        """Uncalibrated trust for one class per picture, labels `[N]`, or for several labels per picture, labels `[N, C]`."""
        return cls() if labels.ndim == 1 else cls(rules=LabelRules.plain(labels.shape[1]))

    @classmethod
    def fit(
        cls,
        logits: Logits,
        labels: Labels,
        features: Logits | None = None,
        groups: Integers | None = None,
        min_precision: float | None = None,
    ) -> Self:
        """Fit on images that were not in the training set.

        Args:
            logits: `[N, C]`, N ≥ 1.
            labels: `[N]`, or `[N, C]` for several labels per picture.
            features: `[N, D]`; without features, or with D = 0, the energy alone decides.
            groups: see `Familiarity.fit`.
            min_precision: for several labels per picture, see `fit_rules`.
        """
        if labels.ndim == 2:
            fitted = cls(rules=fit_rules(logits, labels, min_precision))
        else:
            threshold = float(np.quantile(energy(logits), 1 - SHARE_KEPT, method="lower"))
            fitted = cls(fit_temperature_if_better(logits, labels), threshold)
        return fitted if features is None or not features.shape[1] else fitted.with_familiarity(logits, features, groups)

    def with_familiarity(self, logits: Logits, features: Logits, groups: Integers | None = None) -> Self:
        """A copy with a familiarity that is fitted on these images, see `Familiarity.fit`."""
        return dataclasses.replace(self, familiarity=Familiarity.fit(self._energetic(logits), features, groups))

    def _energetic(self, logits: Logits) -> Logits:
        """Logits for the energy. With rules they are all 0, so that the energy has no effect: a picture without labels has low logits."""
        return logits if self.rules is None else np.zeros_like(logits)

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
            features: `[N, D]`; without features, or with D = 0, the energy alone decides.
        """
        if self.familiarity is not None and features is not None and features.shape[1]:
            return self.familiarity.abstains(self._energetic(logits), features)
        if self.abstain_threshold is None:
            return np.zeros(len(logits), np.bool_)
        unfamiliar: npt.NDArray[np.bool_] = energy(logits) < self.abstain_threshold
        return unfamiliar

    def evaluate(self, logits: Logits, labels: Labels) -> Figures:
        """Figures of logits, `[N, C]`: for the most likely class, or with rules for the labels that are given."""
        if self.rules is not None:
            return evaluate_label_sets(logits, labels, self.rules)
        return evaluate_logits(logits, labels, self.temperature)

    def metrics(self, logits: Logits, labels: Labels, features: Logits | None = None) -> dict[str, float]:
        """Metrics on test images: loss, calibration error without and with calibration, its spread, and the fraction of abstentions.

        With rules, the calibration error is over all pairs of picture and label; F1 scores and coverage replace the spread.
        """
        if self.rules is not None:
            return self._metrics_of_label_sets(self.rules, logits, labels) | {
                "test_abstained": float(self.abstains(logits, features).mean())
            }
        calibrated = softmax(logits, self.temperature)
        return {
            "test_loss": evaluate_logits(logits, labels, self.temperature).loss,
            "test_ece_uncalibrated": calibrate(softmax(logits), labels).error,
            "test_ece": calibrate(calibrated, labels).error,
            "test_ece_sd": calibration_spread(calibrated, labels),
            "test_abstained": float(self.abstains(logits, features).mean()),
        }

    def _metrics_of_label_sets(self, rules: LabelRules, logits: Logits, labels: Labels) -> dict[str, float]:
        figures = evaluate_label_sets(logits, labels, rules)
        plain = LabelRules.plain(len(rules.thresholds))
        return {
            "test_micro_f1": figures.micro_f1,
            "test_macro_f1": figures.macro_f1,
            "test_coverage": figures.coverage,
            "test_loss": figures.loss,
            "test_ece_uncalibrated": calibrate_labels(plain.probabilities(logits), labels).error,
            "test_ece": calibrate_labels(rules.probabilities(logits), labels).error,
        }

    def describe(self, metrics: dict[str, float]) -> str:
        """Describe calibration, calibration error and abstentions in one line."""
        if self.rules is not None:
            return _describe_rules(self.rules, metrics)
        if self.abstain_threshold is None:
            return "probabilities are uncalibrated and the model never abstains, because there are no validation images"
        is_one = self.temperature == 1
        fitted = "temperature 1 (no other improves the calibration)" if is_one else f"temperature {self.temperature:.3g}"
        if "test_ece" not in metrics:
            return f"{fitted}, calibration error unknown (no test images)"
        before = "" if is_one else f"{100 * metrics['test_ece_uncalibrated']:.2f} % → "
        spread = f" (± {100 * metrics['test_ece_sd']:.1f} points)" if "test_ece_sd" in metrics else ""
        return (
            f"{fitted}: calibration error {before}{100 * metrics['test_ece']:.2f} %{spread}; "
            f"abstains from {100 * metrics['test_abstained']:.2f} % of the test images"
        )


def _describe_rules(rules: LabelRules, metrics: dict[str, float]) -> str:
    if rules == LabelRules.plain(len(rules.thresholds)):
        return "probabilities are uncalibrated and each label is given from 50 % on, because there are no validation images"
    low, high = min(rules.thresholds), max(rules.thresholds)
    fitted = f"calibrated per class, thresholds {low:.2f}–{high:.2f}"
    if "test_ece" not in metrics:
        return f"{fitted}, calibration error unknown (no test images)"
    return (
        f"{fitted}: calibration error {100 * metrics['test_ece_uncalibrated']:.2f} % → {100 * metrics['test_ece']:.2f} %; "
        f"abstains from {100 * metrics['test_abstained']:.2f} % of the test images"
    )
