"""`python -m cifar_ray.tune`: finds a better recipe for your images and hands it back as a file that `train` runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from datetime import datetime

from cifar_ray import cli
from cifar_ray.config import TrainConfig
from cifar_ray.data import load_splits
from cifar_ray.data.loader import check_batch_size
from cifar_ray.tuning import settings
from cifar_ray.tuning.progress import LiveTable, format_metric
from cifar_ray.tuning.record import Record, format_parameters

PROG = "python -m cifar_ray.tune"


def main(argv: Sequence[str] | None = None) -> int:
    """Searches as the flags say; the command line's own where `argv` is `None`."""
    command = cli.parse_tune_command(argv, PROG)
    saved_space = settings.saved_settings(command.storage, command.resume)["space"] if command.resume else None
    job = settings.prepare(command.fixed(), command.search_config(), saved_space)
    if command.show_space:
        print(job.space_yaml(), end="")
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    splits = load_splits(job.fixed)
    check_batch_size(job.fixed.batch_size, len(splits.train), job.search.workers_per_trial)
    record = job.open()
    print(f"search {job.name}: {splits.name}, recipe {job.fixed.recipe}, {len(job.space)} fields, in {job.files.path()}", file=sys.stderr)
    if record.trials:
        print(f"going on: {len(record.settled())} trials are done, {len(record.interrupted())} were interrupted", file=sys.stderr)

    from cifar_ray.tuning.report import write_results
    from cifar_ray.tuning.search import run_search  # Ray takes a second to import: mistakes are told before

    table, best = LiveTable(job.search.time_budget_s), None
    try:
        run_search(job.fixed, job.search, job.space, record=record, files=job.files, folder=job.folder, listener=table)
    finally:
        table.close(record)
        if record.trials:
            best = write_results(record, job.fixed, job.space, job.files, job.name)
            print(_summary(record, job, best))
    if best is None:
        return cli.EXIT_FAILED
    if command.train_best:
        _train(best.model_copy(update={"name": f"{job.name}-best-{datetime.now():%Y%m%d-%H%M%S}"}))
    return 0


def _summary(record: Record, job: settings.SearchJob, best: TrainConfig | None) -> str:
    report = f"report  {job.files.path('report.html')}"
    ranked = record.ranked()
    if best is None or not ranked:
        reasons = [trial.reason for trial in record.trials if trial.reason]
        return f"best    no trial has a figure yet{f': {reasons[-1]}' if reasons else ''}\n{report}"
    figure = (ranked[0].best(record.metric) or {})[record.metric]
    figures = f"{record.metric} {format_metric(figure, record.metric)}"
    lines = [
        f"best    trial {ranked[0].number}: {figures}  {format_parameters(ranked[0].parameters)}",
        report,
        f"train   python -m cifar_ray.train --config {job.files.path('best.yaml')}",
    ]
    if not record.ended:
        lines.append(f"resume  the same command, or {PROG} --resume {job.name} --storage {job.fixed.storage}")
    return "\n".join(lines)


def _train(config: TrainConfig) -> None:
    """Trains the best recipe in full and keeps it."""
    from cifar_ray.training.distributed import train_on_ray
    from cifar_ray.training.keep import keep
    from cifar_ray.training.progress import ConsoleProgress

    splits = load_splits(config)
    progress = ConsoleProgress(config.epochs, len(splits.train))
    try:
        run = train_on_ray(config, progress)
    finally:
        progress.close()
    kept = keep(run, config, splits)
    figures = ", ".join(f"{name} {format_metric(value, name)}" for name, value in kept.bundle.manifest.metrics.items())
    verdict = "promoted to production" if kept.promoted else "kept, not promoted"
    print(f"model   {kept.bundle.reference}: {figures}; {verdict} ({kept.reason})")


if __name__ == "__main__":
    sys.exit(cli.run(main))
