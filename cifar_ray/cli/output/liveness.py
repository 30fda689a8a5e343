"""Status lines while a command prints nothing, and output whose failure does not end the command.

On a terminal, the status is one line that is rewritten, and removed when something else is printed. In a pipe or a log, each status is a
plain line. If output fails (`| head`, a closed terminal, a full disk), the command continues without output.
This module imports only the standard library, so that status lines start before slow imports.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Self, TextIO

FIRST_S = 1.5  # time from the start to the first status line
TERMINAL_S, LOG_S = 1.0, 9.5  # time between two status lines, on a terminal and in a log
_CLEAR = "\r\x1b[K"


def is_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


@dataclass
class Activity:
    """The present activity of a command.

    Attributes:
        text: name, for example `decoding`.
        began_s: start time of the monotonic clock.
        unit: name of the counted unit, for example `images`.
        done: number of finished units.
        total: number of units; 0 if they are not counted.
        is_drawn: whether a progress bar shows the activity, so that it needs no status lines.
        first: time and number of finished units when units were first seen to be finished; `None` before.
    """

    text: str
    began_s: float
    unit: str = ""
    done: int = 0
    total: int = 0
    is_drawn: bool = False
    first: tuple[float, int] | None = None

    def describe(self, now_s: float) -> str:
        """One line with name, progress, elapsed time and estimated time left.

        As soon as possible, the estimate leaves out the time to the first finished units, which includes loading and compiling.
        """
        spent_s = now_s - self.began_s
        if not self.total:
            return f"{self.text}, {spent_s:.0f} s"
        line = f"{self.text}: {self.done:,} of {self.total:,} {self.unit}, {format_seconds(spent_s)}"
        if not 0 < self.done < self.total:
            return line
        self.first = self.first or (now_s, self.done)
        since_s, before = self.first if self.done > self.first[1] else (self.began_s, 0)
        left_s = (now_s - since_s) * (self.total - self.done) / (self.done - before)
        return f"{line}, about {format_seconds(left_s)} left"


def format_seconds(duration_s: float) -> str:
    """Format a duration: `12 s`, `4 min`, `1.5 h`."""
    if duration_s < 100:
        return f"{duration_s:.0f} s"
    return f"{duration_s / 60:.0f} min" if duration_s < 90 * 60 else f"{duration_s / 3600:.1f} h"


_current = Activity("loading libraries", time.monotonic())


def begin(text: str, total: int = 0, unit: str = "") -> Activity:
    """Begin an activity, which ends the previous one; the caller counts finished units in `done` of the result."""
    global _current  # noqa: PLW0603  one process does one thing at a time
    _current = Activity(text, time.monotonic(), unit, 0, total)
    return _current


def rest() -> None:
    """Stop the status lines until the next activity: the command is ready, for example a server."""
    begin("")


class Liveness:
    """Prints status lines on stderr during its block if nothing was printed for `FIRST_S`, then `TERMINAL_S` or `LOG_S`."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may print while this thread prints
        self._over = threading.Event()
        self._written_s: float | None = None
        self._shows = False
        self._thread = threading.Thread(target=self._watch, name="liveness", daemon=True)

    def __enter__(self) -> Self:
        self._began_s = time.monotonic()
        begin("loading libraries")
        sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: PTH123, SIM115  closed by >&-
        self._error = sys.stderr
        self._on_terminal = is_terminal(sys.stderr)
        self._streams = [_Watched(stream, self) for stream in (sys.stdout, sys.stderr)]
        sys.stdout, sys.stderr = self._streams
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        out, error = self._streams
        for stream in (out, error):
            stream.flush()
        if sys.stdout is out:
            sys.stdout = out.stream
        if sys.stderr is error:
            sys.stderr = error.stream

    def before_write(self, counts: bool = True) -> None:
        """Remove the status line before other output.

        Args:
            counts: whether the output restarts the waiting time for the next status line.
        """
        with self._lock:
            if counts:
                self._written_s = time.monotonic()
            if self._shows:
                self._shows = False
                self._put(_CLEAR)

    def _watch(self) -> None:
        pause_s = min(FIRST_S, TERMINAL_S, LOG_S) / 4
        while not self._over.wait(pause_s):
            now_s = time.monotonic()
            with self._lock:
                limit_s = FIRST_S if self._written_s is None else TERMINAL_S if self._on_terminal else LOG_S
                if _current.is_drawn or not _current.text or now_s - (self._written_s or self._began_s) < limit_s:
                    continue
                self._written_s = now_s
                text = _current.describe(now_s)
                if self._on_terminal:
                    self._shows = True
                    self._put(f"{_CLEAR}{text[: shutil.get_terminal_size().columns - 1]}")
                else:
                    self._put(f"{text}\n")

    def _put(self, text: str) -> None:
        try:
            self._error.write(text)
            self._error.flush()
        except (OSError, ValueError):  # the terminal was closed
            self._over.set()


class _Watched:
    """A stream that reports each write."""

    def __init__(self, stream: TextIO, liveness: Liveness) -> None:
        self.stream = stream
        self._liveness = liveness

    def write(self, text: str) -> int:
        with self._liveness._lock:
            self._liveness.before_write()
            try:
                return self.stream.write(text)
            except UnicodeEncodeError:
                return self.stream.write(text.encode("ascii", "backslashreplace").decode())
            except OSError:
                self._give_up()
                return len(text)

    def flush(self) -> None:
        self._liveness.before_write(counts=False)  # another program may write next
        try:
            self.stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Discard all further output, including the output of Python at exit."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
