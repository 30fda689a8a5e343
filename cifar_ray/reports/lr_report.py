"""Write the result of a learning-rate range test: JSON, a picture of the loss curve, and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from cifar_ray.config import TrainConfig
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.reports.canvas import new_figure, to_png
from cifar_ray.reports.renderer import Picture, Section, Table, render
from cifar_ray.storage import FileTree
from cifar_ray.tuning.lr_range import RangeTest, learning_rate_flags


def write_report(
    config: TrainConfig, splits: DatasetSplits, test: RangeTest, readings: Mapping[str, float], meanings: Mapping[str, str]
) -> str:
    """Write `find_lr.json`, `find_lr.png` and `find_lr.html` to `<storage>/find_lr/<name>`.

    Args:
        config: settings of the test.
        splits: data of the test.
        test: result of the test.
        readings: learning rates by name, for example `edge`.
        meanings: one line about each reading, by name.

    Returns:
        Path of the page.
    """
    title = f"{splits.name}, {config.model}, {config.optimizer.name}"
    curve = loss_curve(test, title, config.optimizer.lr)
    about = {"suggestion": test.edge, **readings, "diverged": test.diverged, "rates": test.rates.tolist(), "losses": test.losses.tolist()}
    rows = [(name, f"{value:.3g}", meanings[name]) for name, value in readings.items()]
    caption = "Training loss while the learning rate rises by a constant factor each step."
    section = Section("Range test", [Table(("reading", "optimizer.lr", "meaning"), rows), Picture(curve, caption)])
    suggestion = learning_rate_flags(config, test.edge)
    lead = f"{len(test.rates)} steps, batch size {config.batch_size}, precision {config.precision}. Suggestion: {suggestion}"
    files = FileTree(config.storage, f"find_lr/{config.name}")
    files.replace("find_lr.json", json.dumps(about | {"config": config.model_dump(mode="json")}, indent=1).encode())
    files.replace("find_lr.png", curve)
    files.replace("find_lr.html", render(f"Learning rate: {title}", lead, [section]))
    return files.path("find_lr.html")


def loss_curve(test: RangeTest, title: str, configured: float) -> bytes:
    """Loss over learning rate, with the readings and the configured rate as vertical lines, as PNG."""
    figure, axes = new_figure(9, 4.5)
    axes.plot(test.rates, test.losses, color="0.75", linewidth=1, label="loss of each step")
    axes.plot(test.rates, test.smoothed, color="C0", label="smoothed")
    readings = {"edge (suggested)": test.edge, "steepest": test.steepest, "valley": test.valley, "configured": configured}
    for number, (name, rate) in enumerate(readings.items(), start=1):
        axes.axvline(rate, color=f"C{number}", linestyle="-" if number == 1 else "--", label=f"{name}: {rate:.2g}")
    low, high = min(test.smoothed.min(), test.losses.min()), float(np.quantile(test.smoothed, 0.97))
    axes.set(xscale="log", xlabel="learning rate (optimizer.lr)", ylabel="training loss (nats)", title=title)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.35 * (high - low))
    axes.grid(alpha=0.3)
    axes.legend()
    return to_png(figure, dpi=120)
