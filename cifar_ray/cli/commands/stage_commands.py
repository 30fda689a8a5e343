"""The subcommands of `store` for versions on trial, and for the log."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from datetime import UTC
from typing import Annotated, Any, Self

import tyro
from pydantic import Field, field_validator, model_validator
from tyro.conf import FlagCreatePairsOff, Positional

from cifar_ray.cli.commands.storage_command import StorageCommand
from cifar_ray.store.log import Entry, Reason
from cifar_ray.store.registry import ModelStore

_HEADINGS = ("", "production", "on trial")
_LOG_HEADINGS = ("when (UTC)", "who", "what", "why")
_SHARE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(%?)")


class StoreCommand(StorageCommand):
    """A subcommand on the model store."""

    @abstractmethod
    def run(self, store: ModelStore) -> None:
        """Runs the subcommand and prints its result."""


class Stage(StoreCommand):
    """Try a version beside the production version, on real requests; running servers begin within ten seconds.

    A shadow sees requests and answers none. With a share, it answers that part of the requests; production answers if it fails.
    A version that fails, or takes twice as long as production, is withdrawn. At most one version of a model is on trial.
    """

    reference: Positional[str] = Field(description="NAME@3 or NAME@latest")
    shadow: FlagCreatePairsOff[bool] = Field(False, description="it sees requests and answers none")
    share: str | None = Field(None, description="part of the requests that it answers, for example 5%")
    promote_after: int | None = Field(None, ge=1, description="promote it after so many requests if --if holds; default: a person decides")
    conditions: Annotated[tuple[str, ...], tyro.conf.arg(name="if")] = Field(
        (), description='conditions for --promote-after, for example "errors <= 0.1 %" "agreement >= 98 %" "p99 <= 1.2x"'
    )
    keep: FlagCreatePairsOff[bool] = Field(False, description="do not withdraw it when it fails or is slow")

    @field_validator("share")
    @classmethod
    def _is_share(cls, text: str | None) -> str | None:
        if text is not None and not 0 < _fraction(text) < 1:
            raise ValueError("expected a part of the requests between 0 % and 100 %, for example 5%")
        return text

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if self.shadow == (self.share is not None):
            raise ValueError("give one of --shadow and --share 5%")
        if self.conditions and self.promote_after is None:
            raise ValueError("--if needs --promote-after")
        return self

    def run(self, store: ModelStore) -> None:
        """Start the trial; print the version on trial and the rules."""
        from cifar_ray.store.staging.rules import Condition
        from cifar_ray.store.staging.stage_file import Stage as Trial
        from cifar_ray.store.staging.stage_file import StageFile, stage_rules

        name, version = store.resolve_exact(self.reference)
        trial = Trial(
            name=name,
            version=version,
            share=0.0 if self.share is None else _fraction(self.share),
            promote_after=self.promote_after,
            conditions=tuple(str(Condition.parse(text)) for text in self.conditions),
            withdraws=not self.keep,
        )
        StageFile(store.storage).start(store, trial)
        print(f"staged {trial}; running servers begin within ten seconds")
        print(f"rules  {stage_rules(trial)}")
        print(f"look   cifar-ray store stages{self.storage_flag}")


class Unstage(StoreCommand):
    """End the trial of a version; production answers all requests again."""

    reference: Positional[str] = Field(description="NAME or NAME@3")

    def run(self, store: ModelStore) -> None:
        """Prints what was ended."""
        from cifar_ray.store.staging.rules import figures_for_log
        from cifar_ray.store.staging.stage_file import StageFile
        from cifar_ray.store.staging.tallies import read_tallies

        stages = StageFile(store.storage)
        stage = stages.find(self.reference)
        figures = figures_for_log(read_tallies(stages.files, stage.folder))
        if stages.end(stage):
            store.log.add(stage.reference, Reason("unstage", "", figures))
        print(f"{stage.reference} is no longer on trial")


class Stages(StoreCommand):
    """Show the versions on trial beside the production version, with 95 % intervals."""

    as_json: Annotated[FlagCreatePairsOff[bool], tyro.conf.arg(name="json")] = Field(False, description="print JSON")

    def run(self, store: ModelStore) -> None:
        """Print a table for each version on trial."""
        from cifar_ray.store.staging.stage_file import StageFile

        stages = StageFile(store.storage)
        found = [(stage, *_observed(stages, stage)) for stage in stages.read()]
        if self.as_json:
            print(json.dumps([stage.model_dump(mode="json") | {"figures": rows, "notes": notes} for stage, rows, notes in found], indent=2))
            return
        if not found:
            print(f"no version is on trial; begin with: cifar-ray store stage NAME@3 --shadow{self.storage_flag}")
        for stage, rows, notes in found:
            _print_stage(stage, rows, notes)


class ShowLog(StoreCommand):
    """Show who promoted, rolled back, staged, withdrew or deleted which version, or changed a key, when and why."""

    last: int | None = Field(20, ge=1, description="so many of the newest entries; 'None' for all")
    as_json: Annotated[FlagCreatePairsOff[bool], tyro.conf.arg(name="json")] = Field(False, description="print JSON, with the figures")

    def run(self, store: ModelStore) -> None:
        """Prints a line per entry, the oldest first."""
        entries = store.log.entries(self.last)
        if self.as_json:
            print(json.dumps([entry.model_dump(mode="json") for entry in entries], indent=2))
        elif entries:
            from cifar_ray.cli.output.terminal import print_table

            print_table([_cells(entry) for entry in entries], _LOG_HEADINGS, cut_last=True)
        else:
            print("the log is empty")


def _fraction(text: str) -> float:
    match = _SHARE.fullmatch(text.strip())
    return float(match[1]) / (100 if match[2] else 1) if match else 0.0


def _observed(stages: Any, stage: Any) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """The figures of a trial by name, and notes for the user."""
    from cifar_ray.store.staging.rules import Condition, describe, unmet
    from cifar_ray.store.staging.tallies import read_tallies

    tally = read_tallies(stages.files, stage.folder)
    notes = []
    if tally.dropped:
        notes.append(f"{tally.dropped:,} requests were not compared, because the server was busy")
    if tally.not_ready:
        notes.append(f"{tally.not_ready:,} requests went to production, because the version was not loaded yet")
    if problem := unmet([Condition.parse(text) for text in stage.conditions], tally):
        notes.append(problem)
    return describe(tally), notes


def _print_stage(stage: Any, rows: dict[str, tuple[str, str]], notes: list[str]) -> None:
    from cifar_ray.cli.output.terminal import print_table
    from cifar_ray.store.staging.stage_file import stage_rules

    print(f"{stage}, rules: {stage_rules(stage)}")
    print_table([(name, *row) for name, row in rows.items()], _HEADINGS)
    for note in notes:
        print(f"note: {note}")


def _cells(entry: Entry) -> tuple[str, ...]:
    when = entry.at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    return when, entry.who, f"{entry.action} {entry.subject}", entry.why or "–"
