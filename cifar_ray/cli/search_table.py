"""What a person sees while a search goes on."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

from cifar_ray.tuning.record import Record, Trial, format_parameters
from cifar_ray.tuning.standings import describe_figure, row

_REDRAW_INTERVAL_S = 0.5
_MOST_ROWS = 16


class LiveTable:
    """A table that stays in place on a terminal; a line for each epoch and each end of a trial elsewhere.

    Args:
        time_budget_s: of the search, if it has one.
        stream: where to write; default stderr.
    """

    def __init__(self, time_budget_s: float | None = None, stream: TextIO | None = None) -> None:
        self._time_budget_s = time_budget_s
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._started = time.monotonic()
        self._began_epochs: int | None = None
        self._drawn_at = 0.0
        self._height = 0

    def on_message(self, text: str) -> None:
        """Writes a line; the table moves below it."""
        self._erase()
        self._stream.write(f"{text}\n")

    def on_trial(self, record: Record, trial: Trial) -> None:
        """Shows a trial's new state."""
        if self._began_epochs is None:
            self._began_epochs = record.epochs_run
        if self._is_terminal:
            self._draw(record)
        elif trial.status == "running" and not trial.epochs:
            self.on_message(f"trial {trial.number:>3}  {format_parameters(trial.parameters)}")
        else:
            self.on_message(f"{self._row(record, trial)}  {self.time_left(record)}")

    def on_tick(self, record: Record) -> None:
        """Redraws now and then."""
        if self._is_terminal and time.monotonic() - self._drawn_at > _REDRAW_INTERVAL_S:
            self._draw(record)

    def close(self, record: Record) -> None:
        """Leaves the last table standing."""
        if self._is_terminal:
            self._draw(record)
            self._height = 0

    def time_left(self, record: Record) -> str:
        """What is left of the budget, or an estimate from the epochs that settled trials took on average."""
        now_s = time.monotonic() - self._started
        settled, done = record.settled(), record.epochs_run - (self._began_epochs or 0)
        guesses = []
        if self._time_budget_s is not None:
            guesses.append(max(0.0, self._time_budget_s - record.elapsed_s))
        if settled and done:
            guesses.append(_epochs_to_come(record) * now_s / done)
        return f"{_duration(min(guesses))} left" if guesses else "time left unknown"

    def _draw(self, record: Record) -> None:
        width = shutil.get_terminal_size().columns
        lines = [line[: width - 1] for line in table(record)]
        lines.append(f"{self.time_left(record)}"[: width - 1])
        self._erase()
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._stream.flush()
        self._height, self._drawn_at = len(lines), time.monotonic()

    def _erase(self) -> None:
        if self._height:
            self._stream.write(f"\x1b[{self._height}A\x1b[J")
            self._height = 0

    def _row(self, record: Record, trial: Trial) -> str:
        cells = row(record, trial)
        figures = f"epoch {cells[2]:>5}  {cells[3]:>7}  best {cells[4]:>7}  {cells[5]:>7} img/s"
        return f"trial {cells[0]:>3}  {cells[1]:11} {figures}  {trial.reason}".rstrip()


def table(record: Record) -> list[str]:
    """Lines: a heading, the best trials and all that run, and a summary."""
    ranked = record.ranked()
    running = record.running()
    shown = running + [trial for trial in ranked if trial not in running]
    rows = [row(record, trial) for trial in sorted(shown[:_MOST_ROWS], key=lambda trial: trial.number)]
    heading = ["trial", "status", "epoch", record.metric.removeprefix("val_"), "best", "img/s", "parameters"]
    widths = [max(len(line[column]) for line in [heading, *rows]) for column in range(len(heading))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in (1, 6) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in [heading, *rows]
    ]
    counts = ", ".join(
        f"{number} {status}"
        for status in ("running", "finished", "stopped", "diverged", "failed", "interrupted")
        if (number := sum(trial.status == status for trial in record.trials))
    )
    lead = f"; best: trial {ranked[0].number}, {describe_figure(record, ranked[0])}" if ranked else ""
    return [*lines, f"{len(record.trials)} of {record.num_samples} trials: {counts or 'none yet'}{lead}; {record.epochs_run} epochs run"]


def _epochs_to_come(record: Record) -> float:
    """Epochs until the end, if trials to come are like those that ended, and one that outlived them runs to its end."""
    settled = record.settled()
    usual = max(1.0, sum(trial.epochs_done for trial in settled) / len(settled))
    open_trials = [trial.epochs_done for trial in record.trials if trial not in settled]
    begun = sum((usual if done < usual else record.max_epochs) - done for done in open_trials)
    repeated = sum(record.max_epochs - repeat.epochs_done for repeat in record.repeats if repeat.status == "running")
    return begun + repeated + usual * (record.num_samples - len(record.trials))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes}:{rest:02} min"
