"""Turn errors into one line on stderr and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from cifar_ray.cli.output.liveness import Liveness
from cifar_ray.errors import CifarRayError, Interrupted, TrainingError, describe_out_of_memory, is_out_of_memory

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
_MEMORY_ADVICE = "free memory, or pass a smaller --micro-batch-size, --batch-size or --image-size where the command has it"


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
