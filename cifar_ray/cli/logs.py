"""Show log messages of the package on stderr."""

from __future__ import annotations

import logging
import sys

_OURS = ("cifar_ray", "deployments")
_LISTING = "cifar_ray.data.listing"
_shown: set[str] = set()


class _StderrHandler(logging.Handler):
    """Writes to the present `sys.stderr`: while progress bars are shown, rich replaces it, and prints the lines above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # an error in logging must not end the program
            self.handleError(record)


def _concerns_the_user(record: logging.LogRecord) -> bool:
    """Whether to show a record: all records of this project, but only warnings of other libraries, such as matplotlib."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] in _OURS


def _is_new(record: logging.LogRecord) -> bool:
    """Whether a record is not a repetition. A command lists its data set twice, to choose settings and to load the data set."""
    if not record.name.startswith(_LISTING):
        return True
    message = record.getMessage()
    is_new = message not in _shown
    _shown.add(message)
    return is_new


def show_log(level: int = logging.INFO) -> None:
    """Show messages of at least `level` as plain lines, for example about skipped files."""
    handler = _StderrHandler()
    handler.addFilter(_concerns_the_user)
    handler.addFilter(_is_new)
    _shown.clear()
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])
