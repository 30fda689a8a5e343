"""Shows log messages of the package on stderr."""

from __future__ import annotations

import logging
import sys

_OURS = ("cifar_ray", "deployments")
_LISTING = "cifar_ray.data.listing"
_shown: set[str] = set()


class _StderrHandler(logging.Handler):
    """Writes to what `sys.stderr` is now: while progress bars are shown, rich prints the lines above them."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # logging never ends a program
            self.handleError(record)


def _concerns_the_user(record: logging.LogRecord) -> bool:
    """Other libraries log what they do, such as matplotlib on its first use; only their warnings are of use."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] in _OURS


def _is_new(record: logging.LogRecord) -> bool:
    """A command lists its data set twice, to choose settings and to load it; what there is to say about it is shown once."""
    if not record.name.startswith(_LISTING):
        return True
    message = record.getMessage()
    is_new = message not in _shown
    _shown.add(message)
    return is_new


def show_log(level: int = logging.INFO) -> None:
    """Shows messages from `level` on as plain lines, for example about files that were skipped."""
    handler = _StderrHandler()
    handler.addFilter(_concerns_the_user)
    handler.addFilter(_is_new)
    _shown.clear()
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])
