"""The settings of a search."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cifar_ray.config.base import Config


class SearchConfig(Config):
    """How recipes are searched for. What is searched is the search space; what stays fixed is a `TrainConfig`."""

    space: str | None = Field(None, description="YAML of the search space; default: that of the recipe, `--show-space` prints it")
    num_samples: int = Field(32, ge=1, le=100_000, description="trials in all")
    time_budget: str | None = Field(None, description="end after this time, as in 90s, 30m or 2h; pauses not counted")
    max_concurrent: int | Literal["auto"] = Field(
        "auto", description="trials at a time; auto: as many as the cluster has GPUs, or whole CPU cores, for"
    )
    workers_per_trial: int = Field(1, ge=1, le=4096, description="Ray Train workers of each trial")
    scheduler: Literal["asha", "hyperband", "none"] = Field(
        "asha", description="stops what lags behind; hyperband: ASHA with several grace periods at once; none: all trials run to the end"
    )
    search: Literal["auto", "optuna", "random", "grid"] = Field("auto", description="auto: optuna (TPE) where it is installed, else random")
    metric: Literal["val_accuracy", "val_loss"] = "val_accuracy"
    grace_period: int = Field(2, ge=1, description="asha, hyperband: epochs that every trial gets")
    reduction_factor: Annotated[float, Field(gt=1)] = Field(3, description="asha, hyperband: one in so many trials passes each rung")
    confirm: int = Field(
        4, ge=0, description="until the leading trial was also trained with another seed, train up to this many again; means decide"
    )

    @field_validator("time_budget")
    @classmethod
    def _a_time(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\d+(\.\d+)?[smh]", value):
            raise ValueError("must be a number with s, m or h, as in 30m")
        return value

    @field_validator("max_concurrent", mode="before")
    @classmethod
    def _auto_or_number(cls, value: Any) -> Any:
        if value != "auto" and not (isinstance(value, int) and value >= 1):
            raise ValueError("must be auto, or 1 or more")
        return value

    @property
    def time_budget_s(self) -> float | None:
        """The time budget in seconds."""
        return None if self.time_budget is None else float(self.time_budget[:-1]) * {"s": 1, "m": 60, "h": 3600}[self.time_budget[-1]]
