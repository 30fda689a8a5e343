"""What can go wrong, as one tree.

CifarRayError
├── ConfigError             a flag, a key or a combination of them is not possible
├── DataError               a data set is missing, unreadable or unfit for training
├── BundleError             a model bundle is missing, incomplete or damaged
├── StoreError              the model store cannot do what was asked
│   └── UnknownModelError   …because it has no such name, version or alias
├── ImageError              one picture cannot be used
│   └── ImageTooLargeError  …because it has too many bytes or pixels
├── ServerError             a running server cannot be reached, or refuses
├── ResourceError           the cluster cannot hold what was asked
├── TrainingError           a training job failed for a reason that is not the user's mistake
└── MissingDependencyError  an optional package is needed; the message names the extra to install

`Interrupted` stands beside the tree: nothing failed, and it must pass where errors are handled.

Every message is one line that says what, where and what to do. These classes know nothing of HTTP or of
exit codes: `deployments.http.routes` and `cifar_ray.cli` hold those tables.
"""


class CifarRayError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigError(CifarRayError):
    """A setting is unknown, impossible, or impossible beside another. The message names the field."""


class DataError(CifarRayError):
    """A data set is missing, unreadable or unfit. The message names the path and what to do."""


class BundleError(CifarRayError):
    """A model bundle is missing, incomplete or damaged. The message names the bundle and the first thing wrong with it."""


class StoreError(CifarRayError):
    """The model store refuses the change, or cannot be reached. The message says what to do."""


class UnknownModelError(StoreError):
    """There is no such name, version or alias, or there never can be. The message lists what there is."""


class ImageError(CifarRayError):
    """A picture is empty, broken or of a format that is not accepted."""


class ImageTooLargeError(ImageError):
    """A picture has more bytes or pixels than are allowed; it was not decoded."""


class ServerError(CifarRayError):
    """A running server cannot be reached, or refuses. The message names it and gives its reason.

    Attributes:
        status: of its answer in HTTP; `None` where there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ResourceError(CifarRayError):
    """More workers, CPUs or GPUs were asked for than the cluster holds."""


class TrainingError(CifarRayError):
    """A training job failed for a reason other than the user's settings or data."""


class MissingDependencyError(CifarRayError):
    """An optional package is not installed. The message names the extra: `pip install 'cifar-ray[NAME]'`."""


class Interrupted(KeyboardInterrupt):
    """A signal ended a job. The message says how to go on.

    Attributes:
        signal_number: which.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
