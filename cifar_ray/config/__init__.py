"""All settings, frozen and validated.

`TrainConfig` has the settings of a training job, with one class per topic in `topics`. `search_config` has the settings of a search,
`serve_config` the settings of a server, and `api_keys` the keys that a server accepts.
"""

from cifar_ray.config.base import (
    MAX_DESCRIPTION_LENGTH,
    NAME_PATTERN,
    PRETRAINED_MODEL,
    PRETRAINED_PACKAGE,
    CompileMode,
    Config,
    DatasetName,
    EngineName,
    FrozenPart,
    Method,
    Positive,
    PrecisionName,
    ResizePolicy,
    SamplingName,
    ShareOfRate,
    TaskChoice,
    TaskName,
    TestTimeAugmentation,
)
from cifar_ray.config.documents import describe, parse_config, read_yaml, to_yaml
from cifar_ray.config.locations import STORAGE_VARIABLE, default_storage, local_path, printable, resolve_storage, storage_flag
from cifar_ray.config.topics import AugmentationConfig, AveragingConfig, OptimizerConfig, ScheduleConfig, StartConfig
from cifar_ray.config.train_config import TrainConfig, parse_groups

__all__ = [
    "MAX_DESCRIPTION_LENGTH",
    "NAME_PATTERN",
    "PRETRAINED_MODEL",
    "PRETRAINED_PACKAGE",
    "STORAGE_VARIABLE",
    "AugmentationConfig",
    "AveragingConfig",
    "CompileMode",
    "Config",
    "DatasetName",
    "EngineName",
    "FrozenPart",
    "Method",
    "OptimizerConfig",
    "Positive",
    "PrecisionName",
    "ResizePolicy",
    "SamplingName",
    "ScheduleConfig",
    "ShareOfRate",
    "StartConfig",
    "TaskChoice",
    "TaskName",
    "TestTimeAugmentation",
    "TrainConfig",
    "default_storage",
    "describe",
    "local_path",
    "parse_config",
    "parse_groups",
    "printable",
    "read_yaml",
    "resolve_storage",
    "storage_flag",
    "to_yaml",
]
