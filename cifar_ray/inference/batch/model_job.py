"""Settings of a worker that classifies pictures. This module does not import torch, so a worker can unpickle them before it does."""

from __future__ import annotations

from dataclasses import dataclass

from cifar_ray.config import EngineName, PrecisionName


@dataclass(frozen=True)
class ModelJob:
    """Settings of a worker that classifies pictures; small enough to send to any host.

    Attributes:
        model: reference (`name`, `name@3`), run or path of the model.
        storage: storage of the model.
        top_k: number of classes per row.
        precision: number format of the arithmetic.
        engine: inference engine.
        explain_dir: folder for a Grad-CAM overlay of each picture; `None` for none.
        abstain: whether the model may abstain.
        may_use_gpu: whether to compute on a GPU if there is one.
        decoding_threads: number of threads that decode pictures; `None` for one per core, at most 16.
    """

    model: str
    storage: str
    top_k: int
    precision: PrecisionName = "auto"
    engine: EngineName = "auto"
    explain_dir: str | None = None
    abstain: bool = True
    may_use_gpu: bool = True
    decoding_threads: int | None = None
