"""The exceptions of the project.

CifarRayError
├── ConfigError             a setting, or a combination of settings, is invalid
├── DataError               a data set is missing, unreadable or unusable for training
├── BundleError             a model bundle is missing, incomplete or damaged
├── StoreError              the storage refuses an operation or cannot be reached
│   ├── ConcurrentChangeError  another process made a change that this one would undo
│   └── UnknownModelError   a name, version or alias is not in the model store
├── ImageError              a picture cannot be decoded
│   └── ImageTooLargeError  a picture has too many bytes or pixels
├── ServerError             a server cannot be reached, or refuses a request
├── ResourceError           the cluster has too few resources
├── TrainingError           a training job failed for a reason other than settings or data
└── MissingDependencyError  an optional package is missing; the message names the extra to install

`Interrupted` is not in the tree: nothing failed, and error handlers must let it pass.

Every message is one line that says what is wrong, where, and what to do. HTTP statuses are in `deployments.http.responses`,
exit codes in `cifar_ray.cli`. Each library has its own error for too little memory; `advising_on_memory` turns it into one of these.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

# Messages of torch on CPU and CUDA, of cuDNN and cuBLAS, and of OpenVINO
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|failed to allocate|could not allocate|bad_alloc|_ALLOC_FAILED", re.IGNORECASE
)


class CifarRayError(Exception):
    """Base class of all exceptions of the project."""


class ConfigError(CifarRayError):
    """A setting is unknown, invalid, or conflicts with another. The message names the field."""


class DataError(CifarRayError):
    """A data set is missing, unreadable or unusable. The message names the path and what to do."""


class BundleError(CifarRayError):
    """A model bundle is missing, incomplete or damaged. The message names the bundle and the first problem."""


class StoreError(CifarRayError):
    """The storage refuses an operation, or cannot be reached. The message says what to do."""


class ConcurrentChangeError(StoreError):
    """Another process changed what this one was about to change. The message names the change; nothing was done."""


class UnknownModelError(StoreError):
    """A name, version or alias is invalid or not in the store. The message lists the available ones."""


class ImageError(CifarRayError):
    """A picture is empty, damaged or in an unsupported format."""


class ImageTooLargeError(ImageError):
    """A picture exceeds the maximum number of bytes or pixels; it was not decoded."""


class ServerError(CifarRayError):
    """A server cannot be reached, or refuses a request. The message names the server and its reason.

    Attributes:
        status: HTTP status of the response; `None` without a response.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ResourceError(CifarRayError):
    """The cluster has fewer CPUs or GPUs than the job needs, or the machine has too little memory."""


class TrainingError(CifarRayError):
    """A training job failed for a reason other than the user's settings or data."""


class MissingDependencyError(CifarRayError):
    """An optional package is not installed. The message names the extra: `pip install 'cifar-ray[NAME]'`."""


class Interrupted(KeyboardInterrupt):
    """A signal ended a job. The message says how to resume it.

    Attributes:
        signal_number: number of the signal.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a CPU or a GPU."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None)


def describe_out_of_memory(error: BaseException, advice: str) -> str:
    """Describe an out-of-memory error in one line, with advice and the reason; in a traceback from Ray, the reason is the last line."""
    lines = str(error).strip().splitlines() or [""]
    reason = lines[-1].strip() if "Traceback" in str(error) else f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
    return f"out of memory: {advice} ({reason})"


@contextlib.contextmanager
def advising_on_memory(advice: str, raises: type[CifarRayError] = ResourceError) -> Iterator[None]:
    """Turn an out-of-memory error into a one-line error with advice; errors of this project and all other errors pass unchanged.

    Args:
        advice: advice for the user, as an imperative.
        raises: class of the new error.
    """
    try:
        yield
    except CifarRayError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise raises(describe_out_of_memory(error, advice)) from error
