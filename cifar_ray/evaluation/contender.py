"""A model in a comparison."""

from __future__ import annotations

from dataclasses import dataclass

from cifar_ray.evaluation.selection import Selected
from cifar_ray.inference.predictor import Predictor
from cifar_ray.metrics.intervals import SIGNIFICANT


@dataclass(frozen=True, eq=False)
class Contender:
    """One of the two models, with its images.

    Attributes:
        reference: `name@version`.
        predictor: the model.
        data: the images, at the model's input size.
    """

    reference: str
    predictor: Predictor
    data: Selected


def verdict(a: Contender, b: Contender, difference: float, p_value: float) -> str:
    """State which model is better, or that the difference is not significant; `difference` is the second model minus the first."""
    if p_value >= SIGNIFICANT:
        return "no significant difference"
    better, worse = (b, a) if difference > 0 else (a, b)
    return f"{better.reference} is better than {worse.reference}"
