"""How the trials of a search stand, as text for a terminal or a report."""

from __future__ import annotations

from cifar_ray.tuning.record import Record, Trial, format_parameters, images_per_s


def row(record: Record, trial: Trial) -> list[str]:
    """Cells of a trial: number, status, epoch, latest metric, best metric of each run, images per second, parameters."""
    runs = [trial] if trial.again else record.runs(trial)
    best = [format_metric(epoch[record.metric], record.metric) for run in runs if (epoch := run.best(record.metric))]
    return [
        f"{trial.number}{' again' * trial.again}",
        trial.status,
        f"{trial.epochs_done}/{record.max_epochs}",
        format_metric(trial.epochs[-1][record.metric], record.metric) if trial.epochs else "",
        " and ".join(best),
        f"{images_per_s(trial):,.0f}" if trial.epochs else "",
        format_parameters(trial.parameters),
    ]


def describe_figure(record: Record, trial: Trial) -> str:
    """The metric by which a trial is ranked, and the number of seeds if it is a mean."""
    runs = len(record.runs(trial))
    return format_metric(record.figure(trial), record.metric) + (f" (mean of {runs} seeds)" if runs > 1 else "")


def format_metric(value: float | None, metric: str) -> str:
    """An accuracy as a percentage, a loss in nats; empty for `None`."""
    if value is None:
        return ""
    return f"{value:.2%}" if metric.endswith("accuracy") else f"{value:.4f}"
