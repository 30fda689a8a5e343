"""Figures of an evaluation, a comparison or a data set, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cifar_ray.evaluation.measures.corruptions import CORRUPTIONS, LEVELS
from cifar_ray.evaluation.measures.slices import Slice
from cifar_ray.metrics.accuracy import Evaluation, Floats, Integers
from cifar_ray.metrics.calibration import Calibration
from cifar_ray.metrics.intervals import ClassBias
from cifar_ray.reports.canvas import empty_figure, new_figure, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_NAMED_CLASSES = 40  # with more, names along an axis overlap
_NAME_LENGTH = 24
_MAX_NUMBERED_CLASSES = 20  # with more, counts do not fit into the cells
_DARK_ABOVE = 0.6  # above this shade of the colour map, black text is hard to read
_BLUE, _PALE, _ORANGE, _GREY = "#2b6cb0", "#bee3f8", "#dd6b20", "#a0aec0"


def confusion(evaluation: Evaluation, class_names: Sequence[str]) -> bytes:
    """Confusion matrix: counts as numbers, mistakes coloured by their share of the true class; the diagonal has no colour."""
    matrix, classes = evaluation.confusion, len(class_names)
    percent = 100 * matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    mistakes = np.where(np.eye(classes, dtype=bool), np.nan, percent)
    figure, axes = _new_matrix(class_names)
    image = axes.imshow(mistakes, cmap="Oranges", vmin=0)
    figure.colorbar(image, ax=axes, shrink=0.7, label="mistakes (% of the true class)")
    if classes <= _MAX_NUMBERED_CLASSES:
        darkest = np.nanmax(mistakes)
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if row != column and mistakes[row, column] > 0.6 * darkest else "black" if count else _GREY
            axes.text(
                column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=colour, weight="bold" if row == column else None
            )
    _name_classes(axes, class_names, both=True)
    axes.set(xlabel="predicted", ylabel="true")
    return to_png(figure)


def reliability(calibration: Calibration, uncalibrated: Calibration, *, of: str = "images", fitted: str = "the temperature") -> bytes:
    """Reliability diagram: accuracy by confidence with and without calibration, and the share in each bin.

    Args:
        calibration: bins with calibration.
        uncalibrated: bins without calibration.
        of: what the bins count, for the axis label.
        fitted: name of the calibration, for the legend.
    """
    figure, axes = new_figure(6, 5.6)
    bins = len(calibration.counts)
    middles = (np.arange(bins) + 0.5) / bins
    filled = calibration.counts > 0
    axes.bar(middles[filled], calibration.accuracy[filled], width=0.9 / bins, color=_PALE, label="accuracy of the bin")
    axes.plot([0, 1], [0, 1], color="black", linestyle=":", label="perfect calibration")
    axes.plot(uncalibrated.confidence, uncalibrated.accuracy, color=_GREY, marker=".", label=f"without {fitted}")
    axes.plot(
        calibration.confidence[filled],
        calibration.accuracy[filled],
        color=_ORANGE,
        marker="o",
        markersize=4,
        label=f"with {fitted}",
    )
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.03))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    counts = axes.twinx()
    counts.step(middles, calibration.counts / max(1, calibration.counts.sum()), where="mid", color=_BLUE)
    counts.set(ylabel=f"share of {of} (blue line)", ylim=(0, 1.03))
    return to_png(figure)


def per_class(series: Mapping[str, Floats], class_names: Sequence[str]) -> bytes:
    """Up to four figures of each class; `series` has their values, 0–1, by name."""
    figure, axes = new_figure(max(7.0, min(16.0, 0.8 * len(class_names))), 4)
    for (name, values), colour, marker in zip(series.items(), (_BLUE, _ORANGE, "black", _GREY), ("^", "v", "_", "o"), strict=False):
        axes.scatter(range(len(values)), values * 100, s=60, color=colour, marker=marker, label=name)
    axes.set(ylabel="%")
    _name_classes(axes, class_names)
    axes.grid(alpha=0.3)
    figure.legend(ncols=4, loc="outside upper center", frameon=False)
    return to_png(figure)


def bias(classes: Sequence[ClassBias], class_names: Sequence[str]) -> bytes:
    """How much more often each class is predicted than it occurs; orange if the difference is significant."""
    figure, axes = new_figure(max(7.0, min(16.0, 0.8 * len(class_names))), 3.5)
    excess = [100 * (one.predicted - one.occurs) / max(1, one.occurs) for one in classes]
    axes.bar(range(len(excess)), excess, color=[_ORANGE if one.significant else _GREY for one in classes])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(ylabel="excess predictions (%)")
    _name_classes(axes, class_names)
    return to_png(figure)


def robustness(correct: npt.NDArray[np.int64], count: int, clean: float) -> bytes:
    """Accuracy by type and severity of corruption.

    Args:
        correct: int64 `[types, severities]`, correct predictions.
        count: images per cell.
        clean: accuracy on the same images without corruption, 0–1.
    """
    accuracy = 100 * correct / count
    figure, axes = new_figure(6.5, 0.42 * len(CORRUPTIONS) + 1.4)
    image = axes.imshow(accuracy, cmap="YlGnBu", vmin=0, vmax=100 * clean, aspect="auto")
    for (row, column), value in np.ndenumerate(accuracy):
        shade = value / max(1e-9, 100 * clean)
        colour = "black" if shade < _DARK_ABOVE else "white"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_yticks(range(len(CORRUPTIONS)), list(CORRUPTIONS))
    axes.set_xticks(range(LEVELS), [str(level + 1) for level in range(LEVELS)])
    axes.set(xlabel=f"severity (not corrupted: {100 * clean:.1f} %)")
    figure.colorbar(image, ax=axes, label="accuracy (%)")
    return to_png(figure)


def slices(by_property: dict[str, list[Slice]], overall: float) -> bytes:
    """Accuracy on each slice of the images, with its 95 % interval."""
    figure = empty_figure(4.2 * len(by_property), 3.6)
    panels = np.atleast_1d(figure.subplots(1, len(by_property), sharey=True))
    for axes, (name, parts) in zip(panels, by_property.items(), strict=True):
        shares = np.array([part.accuracy for part in parts])
        intervals = np.array([part.interval for part in parts])
        reach = np.abs(intervals.T - shares)
        axes.errorbar(range(len(parts)), shares * 100, yerr=reach * 100, fmt="o", color=_BLUE, capsize=4)
        axes.axhline(overall * 100, color=_GREY, linestyle=":", label="all images")
        axes.set_xticks(range(len(parts)), [f"{part.low:.3g}–\n{part.high:.3g}" for part in parts], fontsize=8)
        axes.set(xlabel=name)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set(ylabel="accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", frameon=False)
    return to_png(figure)


def class_counts(counts: dict[str, list[int]], class_names: Sequence[str]) -> bytes:
    """Images of each class, one colour per split."""
    figure, axes = new_figure(max(7.0, min(16.0, 0.8 * len(class_names))), 3.5)
    width = 0.8 / len(counts)
    for index, ((split, values), colour) in enumerate(zip(counts.items(), (_BLUE, _ORANGE, _GREY), strict=False)):
        axes.bar(np.arange(len(values)) + width * (index - (len(counts) - 1) / 2), values, width=0.9 * width, color=colour, label=split)
    axes.set(ylabel="images")
    figure.legend(loc="outside upper right", ncols=len(counts))
    _name_classes(axes, class_names)
    return to_png(figure)


def file_sizes(widths_px: npt.NDArray[np.int64], heights_px: npt.NDArray[np.int64], image_size_px: int) -> bytes:
    """Width and height of files; larger dots are more common sizes, and dotted lines mark the input size of the network."""
    sizes, counts = np.unique(np.stack((widths_px, heights_px), axis=1), axis=0, return_counts=True)
    figure, axes = new_figure(5, 5)
    axes.scatter(sizes[:, 0], sizes[:, 1], s=10 + 300 * counts / counts.max(), color=_BLUE, alpha=0.4, linewidths=0)
    axes.axvline(image_size_px, color="black", linestyle=":", linewidth=0.8)
    axes.axhline(image_size_px, color="black", linestyle=":", linewidth=0.8)
    axes.set(
        xlabel="width (px)",
        ylabel="height (px)",
        xlim=(0, 1.1 * max(image_size_px, sizes[:, 0].max())),
        ylim=(0, 1.1 * max(image_size_px, sizes[:, 1].max())),
    )
    return to_png(figure)


def class_differences(
    differences: Sequence[tuple[float, bool]], class_names: Sequence[str], models: tuple[str, str], figure_name: str = "recall"
) -> bytes:
    """Difference in a figure per class, second model minus first; orange if significant.

    Args:
        differences: difference of each class, from −1 to 1, and whether it is significant.
        class_names: names of the classes.
        models: references of both models.
        figure_name: name of the figure.
    """
    figure, axes = new_figure(max(7.0, min(16.0, 0.8 * len(class_names))), 3.5)
    colours = [_ORANGE if significant else _GREY for _, significant in differences]
    axes.bar(range(len(differences)), [100 * difference for difference, _ in differences], color=colours)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(ylabel=f"{figure_name} of {models[1]}\nminus {models[0]} (points)")
    _name_classes(axes, class_names)
    return to_png(figure)


def co_occurrence(counts: Integers, class_names: Sequence[str]) -> bytes:
    """Share of the pictures with one label (row) that also have another (column); the diagonal has the number of pictures.

    Args:
        counts: int64 `[C, C]`, pictures with both labels.
        class_names: names of the classes.
    """
    classes = len(class_names)
    shares = np.where(np.eye(classes, dtype=bool), np.nan, counts / np.maximum(1, np.diag(counts))[:, None])
    figure, axes = _new_matrix(class_names)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the pictures with the label of the row")
    if classes <= _MAX_NUMBERED_CLASSES:
        for (row, column), count in np.ndenumerate(counts):
            own = row == column
            text, colour = (
                (f"{count:,}", "black") if own else (f"{shares[row, column]:.2f}", "white" if shares[row, column] > 0.6 else "black")
            )
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour, weight="bold" if own else None)
    _name_classes(axes, class_names, both=True)
    axes.set(xlabel="also has", ylabel="has")
    return to_png(figure)


def _new_matrix(class_names: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure for a square of all classes, with room for their names and a colour bar."""
    letters = min(_NAME_LENGTH, max(map(len, class_names))) if len(class_names) <= _MAX_NAMED_CLASSES else 0
    side = min(14.0, 2.5 + 0.5 * len(class_names) + 0.08 * letters)
    return new_figure(side + 1, side)


def _name_classes(axes: Axes, class_names: Sequence[str], *, both: bool = False) -> None:
    shortened = [name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…" for name in class_names]
    names = [name.replace("$", r"\$") for name in shortened]  # matplotlib reads text between two $ as a formula
    if len(names) > _MAX_NAMED_CLASSES:
        return
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    if both:
        axes.set_yticks(range(len(names)), names)
