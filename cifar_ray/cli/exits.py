"""Turns errors into one line on stderr and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from cifar_ray.cli.output.liveness import Liveness
from cifar_ray.errors import CifarRayError, Interrupted, TrainingError

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run(main: Callable[[], int]) -> int:
    """Runs a verb with status lines, and prints its errors as one line on stderr instead of a traceback.

    Returns:
        What `main` returns; 2 after a user error, 1 after a failed training, 130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        with Liveness():
            return main()
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except CifarRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
