"""Show the progress of a search: a live table on a terminal, else a line per epoch."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Group
from rich.live import Live
from rich.text import Text

from cifar_ray.cli.output.liveness import begin, is_terminal
from cifar_ray.cli.output.terminal import Justify, create_console, create_table
from cifar_ray.tuning import standings
from cifar_ray.tuning.record import Record, Trial, format_parameters

_REDRAW_INTERVAL_S = 0.5
_JUSTIFY: tuple[Justify, ...] = ("right", "left", "right", "right", "right", "right", "left")


class LiveTable:
    """On a terminal, a table of the trials that is updated in place; else a line for each epoch and each end of a trial.

    Args:
        time_budget_s: time budget of the search; `None` without a budget.
        stream: stream to write to; default stderr.
    """

    def __init__(self, time_budget_s: float | None = None, stream: TextIO | None = None) -> None:
        self._time_budget_s = time_budget_s
        self._stream = stream
        self._live: Live | None = None
        self._started_s = time.monotonic()
        self._epochs_before: int | None = None
        self._drawn_s = 0.0
        self._activity = begin("starting Ray and the first trial")
        self._trains = False

    def on_message(self, text: str) -> None:
        """Write a line above the table."""
        if self._live is not None:
            self._live.console.print(text, soft_wrap=True)
        else:
            print(text, file=self._stream or sys.stderr, flush=True)

    def on_trial(self, record: Record, trial: Trial) -> None:
        """Show the new state of a trial."""
        if self._epochs_before is None:
            self._epochs_before = record.epochs_run
        if trial.epochs and not self._trains:
            self._trains, self._activity = True, begin("training trials")
        if is_terminal(self._stream or sys.stderr):
            self._draw(record)
        elif trial.status == "running" and not trial.epochs:
            self.on_message(f"trial {trial.number:>3}  {format_parameters(trial.parameters)}")
        else:
            self.on_message(f"{_line(record, trial)}  {self.time_left(record)}")

    def on_tick(self, record: Record) -> None:
        """Redraw the table twice a second, to update the time left."""
        if self._live is not None and time.monotonic() - self._drawn_s > _REDRAW_INTERVAL_S:
            self._draw(record)

    def close(self, record: Record) -> None:
        """Draw the table a last time, and leave it on the terminal; a second call does nothing."""
        if self._live is not None:
            self._draw(record)
            self._live.stop()
            self._live = None
        self._activity = begin("writing the report")

    def time_left(self, record: Record) -> str:
        """The time left: the rest of the time budget, or if it is shorter, an estimate from the epochs that completed trials took."""
        elapsed_s = time.monotonic() - self._started_s
        done = record.epochs_run - (self._epochs_before or 0)
        estimates_s = []
        if self._time_budget_s is not None:
            estimates_s.append(max(0.0, self._time_budget_s - record.elapsed_s))
        if record.settled() and done:
            estimates_s.append(standings.epochs_left(record) * elapsed_s / done)
        return f"{standings.format_duration(min(estimates_s))} left" if estimates_s else "time left unknown"

    def _draw(self, record: Record) -> None:
        if self._live is None:
            console = create_console(self._stream or sys.stderr)
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=sys.stdout.isatty())
            self._live.start()
        self._activity.is_drawn = True
        rows = standings.table(record)
        best = record.ranked()[:1]
        styles = ["green" if best and cells[0] == str(best[0].number) else "" for cells in rows]
        lines = f"{standings.summarize(record)}\n{self.time_left(record)}"
        table = create_table(rows, standings.headings(record), _JUSTIFY, styles, cut_last=True)
        self._live.update(Group(table, Text(lines, no_wrap=True, overflow="ellipsis")), refresh=True)
        self._drawn_s = time.monotonic()


def _line(record: Record, trial: Trial) -> str:
    cells = standings.row(record, trial)
    figures = f"epoch {cells[2]:>5}  {cells[3]:>7}  best {cells[4]:>7}  {cells[5]:>7} img/s"
    return f"trial {cells[0]:>3}  {cells[1]:11} {figures}  {trial.reason}".rstrip()
