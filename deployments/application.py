"""The server as a graph of deployments: HTTP → ingress → classifier."""

from __future__ import annotations

import math
from typing import Any

import ray
import torch
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from cifar_ray.config.serve_config import ServeConfig
from deployments.http.routes import RETRY_AFTER_S
from deployments.replicas.classifier_replica import ClassifierReplica
from deployments.replicas.ingress_replica import IngressReplica

# What the ingress sends is bounded there.
_CLASSIFIER_ONGOING_CALLS = 1024
# Calls under way to a copy of the model that mean it has more to do than it can.
_TARGET_ONGOING_CALLS = 1.5
_UPSCALE_DELAY_S = 5.0
# How long a dead replica may go unnoticed; Serve's default is 10.
_HEALTH_CHECK_PERIOD_S = 2.0


def build(config: ServeConfig) -> Application:
    """Wires the deployments; `serve.run` starts them."""
    logging = LoggingConfig(encoding="JSON" if config.json_logs else "TEXT", enable_access_log=config.access_log)
    # Serve makes the access log's record, at INFO, before it asks whether anybody wants it
    quiet = logging if config.access_log else logging.model_copy(update={"log_level": "WARNING"})
    classifier = serve.deployment(
        name="classifier",
        **_replicas(config),
        ray_actor_options={"num_cpus": config.cpus_per_replica, "num_gpus": gpus_per_replica(config)},
        max_ongoing_requests=_CLASSIFIER_ONGOING_CALLS,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        logging_config=logging,
    )(ClassifierReplica).bind(config)
    return serve.deployment(
        name="ingress",
        num_replicas=config.num_ingress_replicas,
        ray_actor_options={"num_cpus": config.cpus_per_ingress},
        # Serve's own door: it refuses a request before our code sees it, for a third of the processor time
        max_ongoing_requests=config.ongoing_request_limit,
        max_queued_requests=config.queued_request_limit,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        logging_config=quiet,
    )(serve.ingress()(IngressReplica)).bind(classifier, config)


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
    """As asked, else a GPU for each replica, or an even share where there are fewer GPUs.

    `serve run` builds the graph before it connects to a cluster; then this machine's GPUs are counted.
    """
    if config.gpus_per_replica is not None:
        return config.gpus_per_replica
    resources: dict[str, float] = ray.cluster_resources() if ray.is_initialized() else {"GPU": torch.cuda.device_count()}
    available = resources.get("GPU", 0.0)
    # Ray counts in ten-thousandths, and shares must not add up to more than there is
    return min(1.0, math.floor(available / config.replica_limit * 10_000) / 10_000)
