"""The settings of a search."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cifar_ray.config.base import Config, seconds


class SearchConfig(Config):
    """Settings of a search. The search space contains the fields that vary; a `TrainConfig` contains the fixed ones."""

    space: str | None = Field(None, description="YAML file of the search space; default: that of the recipe (--show-space prints it)")
    num_samples: int = Field(32, ge=1, le=100_000, description="number of trials")
    time_budget: str | None = Field(None, description="stop after this time, for example 90s, 30m or 2h; pauses do not count")
    max_concurrent: int | Literal["auto"] = Field(
        "auto", description="trials at a time; auto: as many as fit on the GPUs, or on whole CPU cores, of the cluster"
    )
    workers_per_trial: int = Field(1, ge=1, le=4096, description="Ray Train workers per trial")
    scheduler: Literal["asha", "hyperband", "none"] = Field(
        "asha", description="early stopping of trials; hyperband: ASHA with several grace periods; none: all trials run to the end"
    )
    search: Literal["auto", "optuna", "random", "grid"] = Field(
        "auto", description="search algorithm; auto: optuna (TPE) if it is installed, else random"
    )
    metric: Literal["val_accuracy", "val_map", "val_loss"] = Field(
        "val_accuracy", description="metric to optimise; multi-label: val_map instead of val_accuracy"
    )
    grace_period: int = Field(2, ge=1, description="minimum epochs of every trial (asha, hyperband)")
    reduction_factor: Annotated[float, Field(gt=1)] = Field(
        3, description="one in this many trials continues after each rung (asha, hyperband)"
    )
    confirm: int = Field(
        4, ge=0, description="maximum number of leading trials to train again with another seed, so that the mean decides; 0: none"
    )

    @field_validator("time_budget", mode="before")
    @classmethod
    def _read_default_of_training(cls, value: object) -> object:
        return None if value == "auto" else value

    @field_validator("time_budget")
    @classmethod
    def _a_time(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\d+(\.\d+)?[smh]", value):
            raise ValueError("expected a number with s, m or h, for example 30m")
        return value

    @field_validator("max_concurrent", mode="before")
    @classmethod
    def _auto_or_number(cls, value: Any) -> Any:
        if value != "auto" and not (isinstance(value, int) and value >= 1):
            raise ValueError("expected auto, or a number of at least 1")
        return value

    @property
    def time_budget_s(self) -> float | None:
        """The time budget in seconds; `None` without a budget."""
        return None if self.time_budget is None else seconds(self.time_budget)
