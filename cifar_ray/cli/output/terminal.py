"""Progress bars and tables, drawn by rich on a terminal; plain lines in pipes and logs.

This module imports rich, so verbs import it after they have parsed their flags.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from typing import Literal, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cifar_ray.cli.output import liveness
from cifar_ray.cli.output.liveness import is_terminal

Justify = Literal["left", "right"]

_REFRESHES_PER_S = 4  # each refresh takes a millisecond of a CPU core that could train
_SPEED_PERIOD_S = 60.0
_UNLIMITED_WIDTH = 1_000_000  # a program that reads the lines expects one line per row


def create_console(stream: TextIO) -> Console:
    """A console that prints text unchanged, without interpreting markup, emoji or numbers."""
    return Console(file=stream, force_terminal=True, markup=False, emoji=False, highlight=False)


def create_table(
    rows: Sequence[Sequence[str]],
    headings: Sequence[str] | None = None,
    justify: Sequence[Justify] | None = None,
    styles: Sequence[str] | None = None,
    *,
    cut_last: bool = False,
) -> Table:
    """A table without lines, its columns two spaces apart.

    Args:
        rows: cells by column.
        headings: headings of the columns; `None` for no headings.
        justify: alignment of each column; default left.
        styles: rich style of each row; default none.
        cut_last: on a narrow terminal, cut the last column instead of wrapping the widest columns.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=headings is not None, header_style="bold")
    names = headings or [""] * len(rows[0] if rows else ())
    for column, name in enumerate(names):
        is_cut = cut_last and column == len(names) - 1
        # rich narrows only columns that may wrap, and cuts text that must not wrap
        table.add_column(
            _cut_to_width(name) if is_cut else name,
            justify=justify[column] if justify else "left",
            no_wrap=cut_last and not is_cut,
            overflow="fold",
        )
    for number, row in enumerate(rows):
        table.add_row(*row[:-1], _cut_to_width(row[-1]) if cut_last else row[-1], style=styles[number] if styles else None)
    return table


def _cut_to_width(cell: str) -> Text:
    return Text(cell, no_wrap=True, overflow="ellipsis")


def print_table(
    rows: Sequence[Sequence[str]],
    headings: Sequence[str] | None = None,
    justify: Sequence[Justify] | None = None,
    styles: Sequence[str] | None = None,
    *,
    cut_last: bool = False,
) -> None:
    """Print a table on stdout: in colour on a terminal, else as aligned plain lines of any length. See `create_table`."""
    if not rows:
        return
    if is_terminal(sys.stdout):
        create_console(sys.stdout).print(create_table(rows, headings, justify, styles, cut_last=cut_last))
        return
    table = create_table(rows, headings, justify, styles)
    plain = Console(file=io.StringIO(), width=_UNLIMITED_WIDTH, color_system=None, force_terminal=False, markup=False, emoji=False)
    with plain.capture() as captured:
        plain.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())


class ProgressDisplay:
    """Progress bars on stderr with messages above them; without a terminal, messages and status lines.

    It is a context manager; at the end of the block, the last state of the bars stays on the terminal.

    Args:
        unit: name of the counted unit.
    """

    def __init__(self, unit: str = "images") -> None:
        self._unit = unit
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._activity: liveness.Activity | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, name: str, total: int) -> Callable[[int], None]:
        """End the current bar and start another one.

        Args:
            name: text before the bar.
            total: number of units; 0 if they are not counted.

        Returns:
            A function that takes the number of newly finished units.
        """
        activity = self._activity = liveness.begin(name, total, self._unit)

        def advance(count: int) -> None:
            activity.done += count
            if progress is not None:
                progress.advance(task, count)

        if self._progress is None and total and is_terminal(sys.stderr):
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                _CountColumn(self._unit),
                _SpeedColumn(self._unit),
                TimeRemainingColumn(),
                console=create_console(sys.stderr),
                refresh_per_second=_REFRESHES_PER_S,
                speed_estimate_period=_SPEED_PERIOD_S,
                redirect_stdout=sys.stdout.isatty(),  # on a terminal, lines on stdout go above the bars
            )
            self._progress.start()
        progress = self._progress
        if progress is not None:
            activity.is_drawn = True
            if self._task is not None:
                progress.stop_task(self._task)
            task = self._task = progress.add_task(name, total=total or None)
        return advance

    def update(self, name: str, done: int) -> None:
        """Set the name of the current bar, and its number of finished units."""
        if self._activity is not None:
            self._activity.text, self._activity.done = name, done
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=name, completed=done)

    def write(self, text: str) -> None:
        """Print a message above the bars."""
        if self._progress is not None:
            self._progress.console.print(text, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the display; a second call does nothing."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None
        if self._activity is not None:
            self._activity.is_drawn = False


class _CountColumn(ProgressColumn):
    """Finished units of all units; empty if they are not counted."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.completed:,.0f}/{task.total:,.0f} {self._unit}")


class _SpeedColumn(ProgressColumn):
    """Units per second; empty until the speed can be measured."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self._unit}/s")
