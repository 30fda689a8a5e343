"""What a worker needs to know to classify pictures; it imports no torch, so a worker can read it before it does."""

from __future__ import annotations

from dataclasses import dataclass

from cifar_ray.config import EngineName, PrecisionName


@dataclass(frozen=True)
class ModelJob:
    """Settings of a worker that classifies pictures; small enough to send to any host.

    Attributes:
        model: reference, run or path.
        storage: storage of the model.
        top_k: number of classes per row.
        precision: number format of the arithmetic.
        engine: inference engine.
        explain_dir: folder for a Grad-CAM overlay of each picture; `None` for none.
        abstain: whether the model may abstain.
        may_use_gpu: whether to compute on a GPU if there is one.
        decoding_threads: threads that decode pictures; `None` for one on each core.
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
