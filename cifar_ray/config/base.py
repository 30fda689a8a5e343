"""What all settings share: the base class, and types of numbers and names."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
UpToOne = Annotated[float, Field(ge=0, le=1)]

DatasetName = Literal["cifar10", "cifar100", "digits", "folder"]
ResizePolicy = Literal["pad", "crop"]
PrecisionName = Literal["auto", "bf16", "fp16", "fp32"]
CompileMode = Literal["none", "default", "max-autotune"]
EngineName = Literal["auto", "torch", "openvino", "openvino-int8"]
TestTimeAugmentation = Literal["none", "mirror", "mirror_shift"]

FrozenPart = Annotated[str, Field(pattern=r"^(none|backbone|[0-9]{1,3})$")]
ShareOfRate = Annotated[float, Field(gt=0, le=1)]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class Config(BaseModel):
    """Base of all configs: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
