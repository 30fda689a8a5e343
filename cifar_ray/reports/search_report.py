"""Results of a search as files: `best.yaml`, pictures, and `report.html`, which needs nothing beside it."""

from __future__ import annotations

import base64
import html
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_ray.config import TrainConfig, to_yaml
from cifar_ray.storage import FileTree
from cifar_ray.tuning.record import Record, Trial, score
from cifar_ray.tuning.space import Parameter, SearchSpace, trial_config
from cifar_ray.tuning.standings import describe_figure, format_metric, row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEWEST_FOR_IMPORTANCE = 8
_MOST_LABELLED = 4
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}
td,th{padding:3px 10px;border-bottom:1px solid #ddd;text-align:right}
td:nth-child(2),th:nth-child(2),td.text,th.text{text-align:left}tr.best{background:#e8f4e8}img{max-width:100%}
pre{background:#f5f5f5;padding:1em;overflow-x:auto;font-size:13px}.note{color:#666;font-size:13px}"""


def write_results(record: Record, fixed: TrainConfig, space: SearchSpace, files: FileTree, title: str) -> TrainConfig | None:
    """Writes `best.yaml`, `curves.png`, `parallel.png`, `importance.png` and `report.html` of a search, at its end or before.

    Returns:
        The best recipe; `None` if no trial has a figure.

    Raises:
        StoreError: if the storage cannot be written.
    """
    ranked = record.ranked()
    best = best_config(record, fixed)
    if best is not None:
        files.replace("best.yaml", to_yaml(best).encode())
    pictures: dict[str, bytes] = {}
    if ranked:
        pictures["curves"] = _png(draw_curves(record))
        pictures["parallel"] = _png(draw_parallel(record, space))
        importance = parameter_importance(record, space)
        if importance is not None:
            pictures["importance"] = _png(draw_importance(importance))
    for name, picture in pictures.items():
        files.replace(f"{name}.png", picture)
    files.replace("report.html", render(record, best, pictures, title).encode())
    return best


def best_config(record: Record, fixed: TrainConfig) -> TrainConfig | None:
    """The config of the best trial, without a run's name."""
    ranked = record.ranked()
    return trial_config(fixed, ranked[0].parameters).model_copy(update={"name": None}) if ranked else None


def draw_curves(record: Record) -> Figure:
    """The metric over epochs, a line a trial; the best stand out."""
    figure = _figure(9, 4.5)
    axes = figure.subplots()
    ranked = record.ranked()
    for trial in reversed(ranked):
        place = ranked.index(trial)
        points = [(report["epoch"], _plotted(report[record.metric], record.metric)) for report in trial.epochs]
        style: dict[str, Any] = {"color": "#b5b5b5", "linewidth": 1, "marker": "." if len(points) < 2 else None}
        if place < _MOST_LABELLED:
            style |= {"color": f"C{place}", "linewidth": 2.5 if place == 0 else 1.6, "label": f"trial {trial.number}"}
        ended = {"finished": "o", "stopped": "x"}.get(trial.status)
        axes.plot(*zip(*points, strict=True), **style)
        if ended:
            axes.plot(*points[-1], ended, color=style["color"], markersize=5)
        for repeat in record.runs(trial)[1:]:
            again = [(report["epoch"], _plotted(report[record.metric], record.metric)) for report in repeat.epochs]
            axes.plot(*zip(*again, strict=True), color=style["color"], linewidth=1.2, linestyle="--")
    axes.set(xlabel="epoch (× stopped early, ● ran to its end, dashed: again with another seed)", ylabel=_label(record.metric))
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], title="best", loc="best")
    return figure


def draw_parallel(record: Record, space: SearchSpace) -> Figure:
    """A line a trial through its parameters to its metric, dark where it is good; dashed if it diverged or failed."""
    from matplotlib import colormaps

    figure = _figure(max(6.0, 1.9 * (len(space) + 1)), 4.8)
    axes = figure.subplots()
    ranked = record.ranked()
    scores = {trial.number: score({record.metric: record.figure(trial)}, record.metric) for trial in ranked}
    # by rank: a few hopeless trials would take up the whole scale
    order = {trial.number: 1 - place / max(1, len(ranked) - 1) for place, trial in enumerate(ranked)}
    low, high = min(scores.values()), max(scores.values())
    for trial in [*(one for one in record.trials if one.status in ("diverged", "failed")), *reversed(ranked)]:
        heights = [_place(parameter, trial.parameters[parameter.path]) for parameter in space]
        if trial.number in order:
            heights.append((scores[trial.number] - low) / (high - low) if high > low else 0.5)
            color, width = colormaps["viridis_r"](order[trial.number]), 2.6 if trial is ranked[0] else 1.2
            axes.plot(range(len(heights)), heights, color=color, linewidth=width)
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
    return figure


class Importance:
    """How much each parameter explains the metric.

    Attributes:
        epoch: at which trials are compared: the last one that all of them reached.
        count: trials compared.
        mean: by path, the rise of the forest's squared error when the parameter is shuffled, as a share of the sum; 0…1.
        std: of the same over shuffles.
    """

    def __init__(self, epoch: int, count: int, mean: dict[str, float], std: dict[str, float]) -> None:
        self.epoch, self.count, self.mean, self.std = epoch, count, mean, std


def parameter_importance(record: Record, space: SearchSpace) -> Importance | None:
    """Permutation importance (Breiman 2001, "Random forests", section 10) of a forest that predicts the metric at one epoch.

    Trials are compared after equally many epochs, because those that were stopped have fewer. `None` with too few trials.
    """
    trials = [trial for trial in record.ranked() if trial.status in ("finished", "stopped")]
    if len(trials) < _FEWEST_FOR_IMPORTANCE:
        return None
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    epoch = min(trial.epochs_done for trial in trials)
    inputs = np.array([[_place(parameter, trial.parameters[parameter.path]) for parameter in space] for trial in trials])
    targets = np.array([_at_epoch(trial, epoch, record.metric) for trial in trials])
    if not np.ptp(targets):
        return None
    forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=0).fit(inputs, targets)
    shuffled = permutation_importance(forest, inputs, targets, n_repeats=20, random_state=0)
    total = float(np.clip(shuffled.importances_mean, 0, None).sum()) or 1.0
    paths = [parameter.path for parameter in space]
    mean = dict(zip(paths, np.clip(shuffled.importances_mean / total, 0, 1).tolist(), strict=True))
    return Importance(epoch, len(trials), mean, dict(zip(paths, (shuffled.importances_std / total).tolist(), strict=True)))


def draw_importance(importance: Importance) -> Figure:
    """A bar a parameter, the most important on top."""
    paths = sorted(importance.mean, key=importance.mean.__getitem__)
    figure = _figure(7, 0.9 + 0.42 * len(paths))
    axes = figure.subplots()
    axes.barh(paths, [importance.mean[path] * 100 for path in paths], xerr=[importance.std[path] * 100 for path in paths], color="#4a7fb0")
    axes.set(xlabel=f"share of what the parameters explain after epoch {importance.epoch}, % ({importance.count} trials)", xlim=(0, 100))
    axes.grid(axis="x", alpha=0.3)
    return figure


def render(record: Record, best: TrainConfig | None, pictures: dict[str, bytes], title: str) -> str:
    """The report as one HTML page."""
    ranked = record.ranked()
    possible = record.num_samples * record.max_epochs
    state = "ended" if record.ended else "not at its end: the same command goes on"
    run = sum(trial.epochs_done for trial in record.trials)
    repeated = f", {len(record.repeats)} trials once more with another seed" if record.repeats else ""
    epochs = f"{run} of {possible} epochs run ({run / possible:.0%})"
    summary = f"{len(record.trials)} of {record.num_samples} trials, {epochs}{repeated}, {record.elapsed_s / 60:.1f} minutes; {state}."
    captions = {
        "curves": "Learning curves",
        "parallel": "Parameters and result: a line a trial, dark is good, red and dotted diverged or failed",
        "importance": "Importance of each parameter: how much worse a random forest predicts the metric when that one is shuffled",
    }
    parts = [f"<h1>Search {html.escape(title)}</h1><p>{summary}</p>"]
    if best is not None and ranked:
        parts.append(
            f"<h2>Best: trial {ranked[0].number}, {record.metric} {describe_figure(record, ranked[0])}</h2>"
            "<p>Validation chose among trials: expect a little less on test.</p>"
        )
        parts.append("<p><code>python -m cifar_ray.train --config best.yaml</code></p>")
    parts += [
        f"<h2>{caption}</h2><img alt='{caption}' src='data:image/png;base64,{base64.b64encode(pictures[name]).decode()}'>"
        for name, caption in captions.items()
        if name in pictures
    ]
    if "importance" not in pictures:
        parts.append(f"<p class=note>Importance is shown from {_FEWEST_FOR_IMPORTANCE} trials with a figure on.</p>")
    parts.append(f"<h2>Trials</h2>{_trial_table(record)}")
    if best is not None:
        parts.append(f"<h2>best.yaml</h2><pre>{html.escape(to_yaml(best))}</pre>")
    head = f"<meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _trial_table(record: Record) -> str:
    ranked = record.ranked()
    others = [trial for trial in record.trials if trial not in ranked]
    headings = ["trial", "status", "epoch", f"{record.metric}, last", "best", "images/s", "parameters", "reason"]
    text = {6, 7}
    lines = ["<tr>" + "".join(f"<th{' class=text' * (column in text)}>{name}</th>" for column, name in enumerate(headings)) + "</tr>"]
    for trial in [*ranked, *others]:
        cells = [*row(record, trial), trial.reason]
        body = "".join(f"<td{' class=text' * (column in text)}>{html.escape(cell)}</td>" for column, cell in enumerate(cells))
        lines.append(f"<tr{' class=best' * (trial in ranked[:1])}>{body}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _at_epoch(trial: Trial, epoch: int, metric: str) -> float:
    return next(float(report[metric]) for report in reversed(trial.epochs) if report["epoch"] <= epoch)


def _place(parameter: Parameter, value: Any) -> float:
    """Where a value lies between the ends of its axis, 0…1."""
    if parameter.kind == "choice":
        return parameter.values.index(value) / (len(parameter.values) - 1)
    low, high = parameter.bounds
    if parameter.kind == "loguniform":
        return math.log(value / low) / math.log(high / low)
    return float((value - low) / (high - low))


def _ticks(parameter: Parameter) -> list[tuple[float, str]]:
    values = parameter.values if parameter.kind == "choice" else parameter.grid()
    return [(_place(parameter, value), f"{value:.3g}" if isinstance(value, float) else str(value)) for value in values]


def _plotted(value: float, metric: str) -> float:
    return value * 100 if metric.endswith("accuracy") else value


def _label(metric: str) -> str:
    return "validation accuracy (%)" if metric == "val_accuracy" else "validation loss (nats)"


def _figure(width_in: float, height_in: float) -> Figure:
    from matplotlib.figure import Figure  # takes half a second, and only pictures need it

    return Figure(figsize=(width_in, height_in), layout="constrained")


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
