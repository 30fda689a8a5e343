"""Plots of a run: learning curves and a confusion matrix."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from cifar_ray.training.records.results import Confusion, EpochReport

_MAX_COUNTED = 25  # up to this number of classes, counts are printed into the confusion matrix


def draw_curves(history: Sequence[EpochReport], title: str) -> bytes:
    """Plot loss and accuracy, or mAP, over epochs as PNG."""
    from matplotlib.figure import Figure  # the import takes half a second

    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    epochs = [report.epoch for report in history]
    marker = "o" if len(epochs) < 30 else None
    score = "accuracy" if all(report.val_map is None for report in history) else "mAP"
    for axes, quantity, scale, unit in zip(figure.subplots(1, 2), ("loss", score), (1, 100), ("nats", "%"), strict=True):
        for split, label in (("train", "training, as optimised"), ("val", "validation")):
            points = [(report.epoch, getattr(report, f"{split}_{quantity.lower()}", None)) for report in history]
            known = [(epoch, value * scale) for epoch, value in points if value is not None]
            if known:
                axes.plot(*zip(*known, strict=True), marker=marker, label=label)
        axes.set(xlabel="epoch", ylabel=f"{quantity} ({unit})")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def draw_confusion(confusion: Confusion, class_names: Sequence[str], title: str) -> bytes:
    """Plot a confusion matrix as PNG: colours show fractions of the true class; counts are printed if there is room."""
    from matplotlib.figure import Figure

    counts = np.array(confusion)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = min(20.0, 2.5 + 0.45 * len(class_names))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="fraction of the true class", shrink=0.8)
    places = range(len(class_names))
    axes.set(xlabel="predicted", ylabel="true", title=title)
    axes.set_xticks(places, class_names, rotation=90)
    axes.set_yticks(places, class_names)
    if len(class_names) <= _MAX_COUNTED:
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=colour, fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    return picture.getvalue()
