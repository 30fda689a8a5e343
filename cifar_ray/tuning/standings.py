"""The standings of a search as text, for the terminal and the report."""

from __future__ import annotations

from collections.abc import Sequence

from cifar_ray.config import TrainConfig
from cifar_ray.tuning.certainty import describe_certainty
from cifar_ray.tuning.record import Record, Trial, format_parameters, images_per_s
from cifar_ray.tuning.search_job import SearchJob

_MAX_ROWS = 16
_STATUSES = ("running", "finished", "stopped", "diverged", "failed", "interrupted")


def headings(record: Record) -> list[str]:
    """Names of the cells that `row` returns."""
    return ["trial", "status", "epoch", record.metric.removeprefix("val_"), "best", "img/s", "parameters"]


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


def table(record: Record) -> list[list[str]]:
    """Rows of the running trials and of the best other trials, at most 16, in the order of their numbers."""
    running = record.running()
    shown = running + [trial for trial in record.ranked() if trial not in running]
    return [row(record, trial) for trial in sorted(shown[:_MAX_ROWS], key=lambda trial: trial.number)]


def summarize(record: Record) -> str:
    """A line that counts trials by status and names the best one."""
    counts = ", ".join(f"{number} {status}" for status in _STATUSES if (number := sum(trial.status == status for trial in record.trials)))
    ranked = record.ranked()
    lead = f"; best: trial {ranked[0].number}, {describe_figure(record, ranked[0])}" if ranked else ""
    return f"{len(record.trials)} of {record.num_samples} trials: {counts or 'none yet'}{lead}; {record.epochs_run} epochs run"


def describe_figure(record: Record, trial: Trial) -> str:
    """The metric that ranks a trial, with the number of seeds if it is a mean, or the epochs if the trial had no full budget."""
    seeds = len(record.full_runs(trial))
    basis = f" (mean of {seeds} seeds)" if seeds > 1 else "" if seeds else f" (after {trial.epochs_done} of {record.max_epochs} epochs)"
    return format_metric(record.figure(trial), record.metric) + basis


def format_metric(value: float | None, metric: str) -> str:
    """Format an accuracy or mAP as a percentage, a loss in nats; empty for `None`."""
    if value is None:
        return ""
    return f"{100 * value:.2f} %" if metric != "val_loss" else f"{value:.4f}"


def format_duration(seconds: float) -> str:
    """Format a duration as hours and minutes, or as minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes}:{rest:02} min"


def epochs_left(record: Record) -> float:
    """Estimate the number of epochs until the end of a search with at least one completed trial.

    New trials are assumed to take the mean number of epochs of completed trials. A running trial that has exceeded this mean is assumed to
    take all epochs.
    """
    settled = record.settled()
    usual = max(1.0, sum(trial.epochs_done for trial in settled) / len(settled))
    unsettled = [trial.epochs_done for trial in record.trials if trial not in settled]
    begun = sum((usual if done < usual else record.max_epochs) - done for done in unsettled)
    repeated = sum(record.max_epochs - repeat.epochs_done for repeat in record.repeats if repeat.status == "running")
    return begun + repeated + usual * (record.num_samples - len(record.trials))


def describe_result(record: Record, job: SearchJob, best: TrainConfig | None, prog: str, notes: Sequence[str] = ()) -> str:
    """Lines with the best trial, its certainty, the report, and the next commands.

    Args:
        record: record of the search.
        job: the search.
        best: the best recipe; `None` if no trial has a figure.
        prog: the command that resumes the search.
        notes: further lines for the user.
    """
    report = f"report  {job.files.path('report.html')}"
    ranked = record.ranked()
    if best is None or not ranked:
        reasons = [trial.reason for trial in record.trials if trial.reason]
        return f"best    no trial has a figure yet{f': {reasons[-1]}' if reasons else ''}\n{report}"
    figure = f"{record.metric} {describe_figure(record, ranked[0])}"
    lines = [
        f"best    trial {ranked[0].number}: {figure}  {format_parameters(ranked[0].parameters)}",
        *(f"{'sure' if not number else '':8}{line}" for number, line in enumerate(describe_certainty(record, job.fixed, job.space))),
        report,
        f"train   cifar-ray train --config {job.files.path('best.yaml')}",
    ]
    if not record.ended:
        lines.append(f"resume  the same command, or {prog} --resume {job.name} --storage {job.fixed.storage}")
    return "\n".join([*lines, *(f"note    {line}" for line in notes)])


def describe_start(record: Record, job: SearchJob, dataset_name: str) -> str:
    """Describe what is searched, and how many trials an interrupted search has already completed."""
    text = f"search {job.name}: {dataset_name}, recipe {job.fixed.recipe}, {len(job.space)} fields, in {job.files.path()}"
    if record.trials:
        text += f"\ngoing on: {len(record.settled())} trials are done, {len(record.interrupted())} were interrupted"
    return text
