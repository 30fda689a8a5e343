"""Turn errors into one line on stderr and an exit code."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from cifar_ray.cli.output.liveness import Liveness
from cifar_ray.errors import CifarRayError, Interrupted, TrainingError, describe_out_of_memory, is_out_of_memory

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
_MEMORY_ADVICE = "free memory, or pass a smaller --micro-batch-size, --batch-size or --image-size where the command has it"
_LOST_OUTPUT = 120  # as Python itself

_code_at_end: int | None = None


def end(code: int) -> NoReturn:
    """End the program: wait for its threads, run the functions that libraries registered for the end, and exit.

    Python would then free each object and each module, which takes 0.8 s after torch was imported; the operating system frees the
    memory at once.
    """
    global _code_at_end  # noqa: PLW0603
    _code_at_end = code
    sys.exit(code)


@atexit.register  # registered before the libraries are imported, and therefore run after their functions
def _exit_at_once() -> None:
    if _code_at_end is None:
        return
    code = _code_at_end
    for stream in (sys.stdout, sys.stderr):
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
        except OSError:  # for example, the reader of a pipe has ended
            code = _LOST_OUTPUT
    os._exit(code)


def run(main: Callable[[], int]) -> int:
    """Run a verb with status lines, and print its errors as one line on stderr instead of a traceback.

    Returns:
        The result of `main`; 2 after a user error, 1 after a failed training or if memory ran out, 130 after Ctrl-C, 143 after SIGTERM.
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
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: {describe_out_of_memory(error, _MEMORY_ADVICE)}", file=sys.stderr)
        return EXIT_FAILED
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
