"""Figures of a search, as PNG."""

from __future__ import annotations

from typing import Any

from cifar_ray.reports.canvas import new_figure, to_png
from cifar_ray.tuning.importance import Importance
from cifar_ray.tuning.record import Record, Trial, score
from cifar_ray.tuning.space import Parameter, SearchSpace
from cifar_ray.tuning.standings import format_metric

_MAX_LABELLED = 4
_DPI = 120


def curves(record: Record) -> bytes:
    """The metric over epochs, one line per trial; the best trials are coloured."""
    figure, axes = new_figure(9, 4.5)
    ranked = record.ranked()
    for rank, trial in reversed(list(enumerate(ranked))):
        points = _points(trial, record.metric)
        style: dict[str, Any] = {"color": "#b5b5b5", "linewidth": 1, "marker": "." if len(points) < 2 else None}
        if rank < _MAX_LABELLED:
            style |= {"color": f"C{rank}", "linewidth": 2.5 if rank == 0 else 1.6, "label": f"trial {trial.number}"}
        axes.plot(*zip(*points, strict=True), **style)
        if end_marker := {"finished": "o", "stopped": "x"}.get(trial.status):
            axes.plot(*points[-1], end_marker, color=style["color"], markersize=5)
        for repeat in record.runs(trial)[1:]:
            axes.plot(*zip(*_points(repeat, record.metric), strict=True), color=style["color"], linewidth=1.2, linestyle="--")
    label = {"val_accuracy": "validation accuracy (%)", "val_map": "validation mAP (%)"}.get(record.metric, "validation loss (nats)")
    axes.set(xlabel="epoch (× stopped early, ● finished, dashed: repeated with another seed)", ylabel=label)
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], title="best", loc="best")
    return to_png(figure, _DPI)


def parallel_coordinates(record: Record, space: SearchSpace) -> bytes:
    """One line per trial through its parameters to its metric, darker for better trials; dotted if it diverged or failed."""
    from matplotlib import colormaps

    figure, axes = new_figure(max(6.0, 1.9 * (len(space) + 1)), 4.8)
    ranked = record.ranked()
    scores = {trial.number: score({record.metric: record.figure(trial)}, record.metric) for trial in ranked}
    # Colour follows the rank: by score, a few bad trials would take up most of the scale.
    shades = {trial.number: 1 - rank / max(1, len(ranked) - 1) for rank, trial in enumerate(ranked)}
    low, high = min(scores.values()), max(scores.values())
    for trial in [*(one for one in record.trials if one.status in ("diverged", "failed")), *reversed(ranked)]:
        heights = [parameter.position(trial.parameters[parameter.path]) for parameter in space]
        if trial.number in shades:
            heights.append((scores[trial.number] - low) / (high - low) if high > low else 0.5)
            color, width = colormaps["viridis_r"](shades[trial.number]), 2.6 if trial is ranked[0] else 1.2
            axes.plot(range(len(heights)), heights, color=color, linewidth=width, linestyle="-" if record.full_runs(trial) else "--")
        else:
            axes.plot(range(len(heights)), heights, color="#c44", linewidth=1, linestyle=":")
    ends = [(0.0, format_metric(abs(low), record.metric)), (1.0, format_metric(abs(high), record.metric))]
    label: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points", "fontsize": 8, "va": "center", "color": "#333"}
    label["bbox"] = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8}
    for column, ticks in enumerate([*(_ticks(parameter) for parameter in space), ends]):
        axes.axvline(column, color="#888", linewidth=0.8)
        for height, text in ticks:
            axes.annotate(text, (column, height), **label)
    names = [parameter.path.replace(".", ".\n") for parameter in space]
    axes.set_xticks(range(len(space) + 1), [*names, f"best\n{record.metric}"], fontsize=9)
    axes.set(yticks=[], xlim=(-0.1, len(space) + 0.35), ylim=(-0.05, 1.05))
    axes.spines[:].set_visible(False)
    return to_png(figure, _DPI)


def importance_bars(importance: Importance) -> bytes:
    """One bar per parameter, the most important at the top."""
    paths = sorted(importance.mean, key=importance.mean.__getitem__)
    figure, axes = new_figure(7, 0.9 + 0.42 * len(paths))
    axes.barh(paths, [importance.mean[path] * 100 for path in paths], xerr=[importance.std[path] * 100 for path in paths], color="#4a7fb0")
    axes.set(xlabel=f"share of the total importance after epoch {importance.epoch} (%, n = {importance.count} trials)", xlim=(0, 100))
    axes.grid(axis="x", alpha=0.3)
    return to_png(figure, _DPI)


def _points(trial: Trial, metric: str) -> list[tuple[int, float]]:
    """Epoch and metric, accuracies and mAP in %."""
    factor = 1 if metric == "val_loss" else 100
    return [(report["epoch"], factor * report[metric]) for report in trial.epochs]


def _ticks(parameter: Parameter) -> list[tuple[float, str]]:
    values = parameter.values if parameter.kind == "choice" else parameter.grid()
    return [(parameter.position(value), f"{value:.3g}" if isinstance(value, float) else str(value)) for value in values]
