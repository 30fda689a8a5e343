"""Shows log messages of the package on stderr."""

from __future__ import annotations

import logging
import sys


class _StderrHandler(logging.Handler):
    """Writes to what `sys.stderr` is now: while progress bars are shown, rich prints the lines above them."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # logging never ends a program
            self.handleError(record)


def show_log(level: int = logging.INFO) -> None:
    """Shows messages from `level` on as plain lines, for example about files that were skipped."""
    logging.basicConfig(level=level, format="%(message)s", handlers=[_StderrHandler()])
