"""The server as a graph of deployments: HTTP → ingress → classifier."""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import CifarRayError
from cifar_ray.store import ModelStore
from cifar_ray.store.default_model import last_promoted_first
from deployments.http.handlers import RETRY_AFTER_S
from deployments.http.rate_limits import TokenBuckets
from deployments.replicas.classifier_replica import ClassifierReplica
from deployments.replicas.ingress_replica import IngressReplica
from deployments.replicas.jobs_replica import JobsReplica

# High, because the ingress limits the number of calls.
_CLASSIFIER_ONGOING_CALLS = 1024
# Concurrent calls to a replica above which it counts as overloaded.
_TARGET_ONGOING_CALLS = 1.5
_UPSCALE_DELAY_S = 5.0
# Maximum time until a dead replica is noticed; Serve's default is 10.
_HEALTH_CHECK_PERIOD_S = 2.0
# The jobs replica has a low priority, so on a busy machine it answers late.
_JOBS_HEALTH_TIMEOUT_S = 120.0
# Interval at which a stopping replica checks whether it has answered its last request; Serve's default of 2 s delays each stop.
_DRAIN_POLL_S = 0.2
_GPU_DRIVERS = ("/proc/driver/nvidia", "/dev/dxg", "/dev/kfd")  # NVIDIA, Windows' subsystem for Linux, AMD


def build(config: ServeConfig) -> Application:
    """Connect the deployments; `serve.run` starts them."""
    logging = LoggingConfig(encoding="JSON" if config.json_logs else "TEXT", enable_access_log=config.access_log)
    # Without an access log, Serve still creates its records at INFO for each request; the level WARNING prevents this.
    quiet = logging if config.access_log else logging.model_copy(update={"log_level": "WARNING"})
    classifier = serve.deployment(
        name="classifier",
        **_replicas(config),
        ray_actor_options={"num_cpus": config.cpus_per_replica, "num_gpus": gpus_per_replica(config)},
        max_ongoing_requests=_CLASSIFIER_ONGOING_CALLS,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_wait_loop_s=_DRAIN_POLL_S,
        logging_config=logging,
    )(ClassifierReplica).bind(config, names_at_start(config))
    needs_shared_limits = config.api_keys is not None and config.num_ingress_replicas > 1
    limits = serve.deployment(name="limits", ray_actor_options={"num_cpus": 0}, logging_config=quiet)(TokenBuckets)
    jobs = serve.deployment(
        name="jobs",
        ray_actor_options={"num_cpus": 0},
        health_check_timeout_s=_JOBS_HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=_DRAIN_POLL_S,
        logging_config=logging,
    )(JobsReplica)
    return serve.deployment(
        name="ingress",
        num_replicas=config.num_ingress_replicas,
        ray_actor_options={"num_cpus": config.cpus_per_ingress},
        # Serve's own limit refuses a request before our code sees it, in a third of the CPU time.
        max_ongoing_requests=config.ongoing_request_limit,
        max_queued_requests=config.queued_request_limit,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_wait_loop_s=_DRAIN_POLL_S,
        logging_config=quiet,
    )(serve.ingress()(IngressReplica)).bind(
        classifier, config, limits.bind() if needs_shared_limits else None, jobs.bind(config) if config.jobs else None
    )


def names_at_start(config: ServeConfig) -> tuple[str, ...] | None:
    """Names in the store, the default model first; `None` if this machine cannot read the store: then each replica reads the names.

    One process decides for all replicas, so that a replica that starts later serves the same model.
    """
    try:
        return tuple(last_promoted_first(ModelStore(config.storage, timeout_s=0)))
    except CifarRayError:
        return None


def _replicas(config: ServeConfig) -> dict[str, Any]:
    if config.max_replicas is None:
        return {"num_replicas": config.num_replicas}
    scaling = AutoscalingConfig(
        min_replicas=config.num_replicas,
        initial_replicas=config.num_replicas,
        max_replicas=config.max_replicas,
        target_ongoing_requests=_TARGET_ONGOING_CALLS,
        upscale_delay_s=_UPSCALE_DELAY_S,
        downscale_delay_s=config.downscale_delay_s,
    )
    return {"autoscaling_config": scaling}


def gpus_per_replica(config: ServeConfig) -> float:
    """GPUs per replica: as configured, else one each, or an even share if there are fewer GPUs.

    `serve run` builds the graph before it connects to a cluster; in that case, count the GPUs of this machine.
    """
    if config.gpus_per_replica is not None:
        return config.gpus_per_replica
    available = ray.cluster_resources().get("GPU", 0.0) if ray.is_initialized() else _gpus_here()
    # Ray counts in units of 1/10,000, and the sum of the shares must not exceed the GPUs
    return min(1.0, math.floor(available / config.replica_limit * 10_000) / 10_000)


def _gpus_here() -> int:
    """Number of GPUs of this machine; torch, whose import takes seconds, is imported only if a GPU driver is loaded."""
    if sys.platform == "linux" and not any(map(os.path.exists, _GPU_DRIVERS)):
        return 0
    import torch

    return torch.cuda.device_count()
