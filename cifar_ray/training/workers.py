"""How many workers train, and what each gets."""

from __future__ import annotations

import dataclasses

from ray import train

from cifar_ray.errors import ResourceError

_LEAST_CPUS = 0.05


@dataclasses.dataclass(frozen=True)
class WorkerPlan:
    """How many workers, and what each gets."""

    num_workers: int
    cpus: float
    use_gpu: bool
    note: str | None = None

    def scaling_config(self) -> train.ScalingConfig:
        """The same in Ray's words."""
        resources = {"CPU": self.cpus} | ({"GPU": 1} if self.use_gpu else {})
        return train.ScalingConfig(num_workers=self.num_workers, use_gpu=self.use_gpu, resources_per_worker=resources)


def plan_workers(num_workers: int | None, nodes: int, total: dict[str, float], available: dict[str, float]) -> WorkerPlan:
    """Fits the workers into the cluster, or says at once that they do not fit.

    Args:
        num_workers: asked for; `None` takes one a GPU, or one with all free CPUs.
        nodes: hosts in the cluster; on one host workers may share cores.
        total: resources of the cluster, as Ray names them.
        available: those that nobody uses now.

    Raises:
        ResourceError: if there are fewer GPUs or CPUs than needed.
    """
    gpus, cpus = int(available.get("GPU", 0)), available.get("CPU", 0.0)
    use_gpu = total.get("GPU", 0) >= 1
    workers = num_workers or (max(1, gpus) if use_gpu else 1)
    if use_gpu and workers > gpus:
        raise ResourceError(f"--num-workers {workers}: the cluster has {total['GPU']:g} GPUs, {gpus} of them free")
    if cpus < _LEAST_CPUS * workers:
        raise ResourceError(
            f"--num-workers {workers}: the cluster has {total.get('CPU', 0):g} CPUs, {cpus:g} of them free; stop other jobs or ask for less"
        )
    share = cpus / workers
    if share >= 1:
        return WorkerPlan(workers, float(int(share)) if nodes == 1 else 1.0, use_gpu)
    if nodes > 1:
        raise ResourceError(f"--num-workers {workers}: the cluster of {nodes} hosts has {total['CPU']:g} CPUs, {cpus:g} of them free")
    share = int(share * 100) / 100
    return WorkerPlan(
        workers, share, use_gpu, f"{workers} workers share {cpus:g} CPU cores: {share:g} of a core each, so expect no speed-up"
    )
