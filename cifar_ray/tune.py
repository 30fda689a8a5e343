"""`python -m cifar_ray.tune`: finds a better recipe for your images and hands it back as a file that `train` runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import tyro
from pydantic import Field

from cifar_ray import cli
from cifar_ray.cli.search_table import LiveTable
from cifar_ray.config import NAME_PATTERN, StartConfig, TrainConfig, default_storage, resolve_storage
from cifar_ray.config.search_config import SearchConfig
from cifar_ray.data import load_splits
from cifar_ray.data.batches.loader import check_batch_size
from cifar_ray.training import job as training
from cifar_ray.tuning import search_job as settings
from cifar_ray.tuning.record import Record, format_parameters
from cifar_ray.tuning.standings import describe_figure

PROG = "python -m cifar_ray.tune"


class TuneCommand(TrainConfig, SearchConfig, cli.Tracked):
    """Finds a better recipe for your images, and hands it back as best.yaml, which `train --config` runs.

    All settings of training are the fixed part; the search space, from the recipe or --space FILE.yaml, is what varies.
    The same command, or --resume NAME, goes on with a search that was interrupted.
    """

    name: str | None = Field(
        None, pattern=NAME_PATTERN, description="name of the search; default: follows from the settings, so that the same command goes on"
    )
    start: tyro.conf.Suppress[StartConfig | None] = None
    config: str | None = Field(None, description="YAML of training settings: where the search starts, and its fixed part")
    resume: str | None = Field(None, description="name of the search to go on with; give --storage too where it is not the default")
    show_space: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(False, description="print the search space as YAML and stop")
    train_best: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(
        False, description="then train the best recipe in full, keep it in the model store and promote it as --promote says"
    )

    def fixed(self) -> TrainConfig:
        """The part that training knows."""
        return TrainConfig.model_validate(self.model_dump(include=set(TrainConfig.model_fields)))

    def search_config(self) -> SearchConfig:
        """The part that searching knows."""
        return SearchConfig.model_validate(self.model_dump(include=set(SearchConfig.model_fields)))


def main(argv: Sequence[str] | None = None) -> int:
    """Searches as the flags say; the command line's own where `argv` is `None`."""
    command = parse_command(argv)
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

    from cifar_ray.reports.search_report import write_results
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
        config = best.model_copy(update={"name": f"{job.name}-best-{datetime.now():%Y%m%d-%H%M%S}"})
        from cifar_ray.training.records.progress import ConsoleProgress

        again = load_splits(config)
        print(training.run(config, again, ConsoleProgress(config.epochs, len(again.train)), command.track).summary())
    return 0


def _summary(record: Record, job: settings.SearchJob, best: TrainConfig | None) -> str:
    report = f"report  {job.files.path('report.html')}"
    ranked = record.ranked()
    if best is None or not ranked:
        reasons = [trial.reason for trial in record.trials if trial.reason]
        return f"best    no trial has a figure yet{f': {reasons[-1]}' if reasons else ''}\n{report}"
    figure = f"{record.metric} {describe_figure(record, ranked[0])}"
    lines = [
        f"best    trial {ranked[0].number}: {figure}  {format_parameters(ranked[0].parameters)}",
        report,
        f"train   python -m cifar_ray.train --config {job.files.path('best.yaml')}",
    ]
    if not record.ended:
        lines.append(f"resume  the same command, or {PROG} --resume {job.name} --storage {job.fixed.storage}")
    return "\n".join(lines)


def parse_command(argv: Sequence[str] | None) -> TuneCommand:
    """Recipe, then what `--resume` was started with, then file, then flags, each over the one before.

    Raises:
        ConfigError: one line naming the field that is unknown or impossible.
    """
    flags = cli.peek(argv, ("--resume", "--storage"))
    saved: dict[str, Any] = {}
    if "resume" in flags:
        before = settings.saved_settings(resolve_storage(flags.get("storage", default_storage())), flags["resume"])
        saved = before["fixed"] | before["search"] | {"resume": flags["resume"]}
    return cli.parse_over_recipe(TuneCommand, argv, PROG, saved)


if __name__ == "__main__":
    sys.exit(cli.run(main))
