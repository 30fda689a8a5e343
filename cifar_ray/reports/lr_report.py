"""A learning-rate range test as files: figures as JSON, the curve, and a page that holds both."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import numpy as np

from cifar_ray.config import TrainConfig
from cifar_ray.data import DatasetSplits
from cifar_ray.reports.renderer import Picture, Section, Table, render
from cifar_ray.storage import FileTree
from cifar_ray.tuning.lr_range import RangeTest, learning_rate_flags


def write_report(
    config: TrainConfig, splits: DatasetSplits, test: RangeTest, readings: Mapping[str, float], meanings: Mapping[str, str]
) -> str:
    """Writes JSON, picture and page to `<storage>/find_lr/<name>`.

    Args:
        config: of the test.
        splits: the data.
        test: what was measured.
        readings: rates by name.
        meanings: of the rates, by the same names.

    Returns:
        Where the page is.

    Raises:
        StoreError: if the storage cannot be written.
    """
    title = f"{splits.name}, {config.model}, {config.optimizer.name}"
    curve = to_png(test, title, config.optimizer.lr)
    about = {"suggestion": test.edge, **readings, "diverged": test.diverged, "rates": test.rates.tolist(), "losses": test.losses.tolist()}
    rows = [(name, f"{value:.3g}", meanings[name]) for name, value in readings.items()]
    section = Section("Range test", [Table(("", "optimizer.lr", ""), rows), Picture(curve, "training loss while all rates rise together")])
    suggestion = learning_rate_flags(config, test.edge)
    lead = f"{len(test.rates)} steps, batch size {config.batch_size}, precision {config.precision}. Suggestion: {suggestion}"
    files = FileTree(config.storage, f"find_lr/{config.name}")
    files.replace("find_lr.json", json.dumps(about | {"config": config.model_dump(mode="json")}, indent=1).encode())
    files.replace("find_lr.png", curve)
    files.replace("find_lr.html", render(f"Learning rate: {title}", lead, [section]))
    return files.path("find_lr.html")


def to_png(test: RangeTest, title: str, configured: float) -> bytes:
    """Loss over rate, with the suggestions and the rate in the config."""
    from matplotlib.figure import Figure  # takes half a second, and only this needs it

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(test.rates, test.losses, color="0.75", linewidth=1, label="loss of each step")
    axes.plot(test.rates, test.smoothed, color="C0", label="smoothed")
    marks = {"edge (the suggestion)": test.edge, "steepest": test.steepest, "valley": test.valley, "in the config": configured}
    for number, (name, rate) in enumerate(marks.items(), start=1):
        axes.axvline(rate, color=f"C{number}", linestyle="-" if number == 1 else "--", label=f"{name}: {rate:.2g}")
    low, high = min(test.smoothed.min(), test.losses.min()), float(np.quantile(test.smoothed, 0.97))
    axes.set(xscale="log", xlabel="learning rate (optimizer.lr)", ylabel="training loss (nats)", title=title)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.35 * (high - low))
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
