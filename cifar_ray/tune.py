"""`python -m cifar_ray.tune`: searches for a better recipe, and writes it to a file that `train` runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

from cifar_ray import cli
from cifar_ray.cli.training_flags import parse_tune_command

PROG = "cifar-ray tune"


def main(argv: Sequence[str] | None = None) -> int:
    """Search for a recipe; `argv` contains the flags, `None` means the flags of this process."""
    command = parse_tune_command(argv, PROG)

    from cifar_ray.tuning.search_job import digest_labels, prepare, saved_settings

    space = saved_settings(command.storage, command.resume)["space"] if command.resume else None
    job = prepare(command.train_config(), command.search_config(), space)
    if command.show_space:
        print(job.space_yaml(), end="")
        return 0
    from cifar_ray.cli.output.search_table import LiveTable
    from cifar_ray.cli.output.terminal import ProgressDisplay
    from cifar_ray.cli.output.training_progress import train_with_progress
    from cifar_ray.data import load_splits
    from cifar_ray.data.batches.shares import check_batch_size
    from cifar_ray.reports.search_report import write_results
    from cifar_ray.tuning.probe_start import start_trials
    from cifar_ray.tuning.standings import describe_result, describe_start

    cli.show_log(logging.WARNING)
    with ProgressDisplay() as display:
        splits = load_splits(job.fixed, display.start)
        check_batch_size(job.fixed.batch_size, len(splits.train), job.search.workers_per_trial)
        job, record = job.open_for(splits.train.labels, len(splits.val or ()), digest_labels(splits))
        start = start_trials(job, record, splits, display.start)
    table, best = LiveTable(job.search.time_budget_s), None
    table.on_message("\n".join(filter(None, (describe_start(record, job, splits.name), start.description))))

    from cifar_ray.tuning.search import run_search  # imports Ray, which takes a second: errors above come earlier

    try:
        run_search(start.trials, job.search, job.space, record=record, files=job.files, folder=job.folder, listener=table)
    finally:
        table.close(record)
        if record.trials:
            best = write_results(record, start.result, job.space, job.files, job.name, start.notes(record))
            print(describe_result(record, job, best, PROG, start.notes(record)))
    if best is not None and command.train_best:
        best = best.model_copy(update={"name": f"{job.name}-best-{datetime.now():%Y%m%d-%H%M%S}"})
        print(train_with_progress(best, load_splits(best), command.track).summary())
    return 0 if best is not None else cli.EXIT_FAILED


if __name__ == "__main__":
    cli.end(cli.run(main))
