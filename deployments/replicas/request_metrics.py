"""Metrics for Prometheus through Ray: each name below gets the prefix `ray_`, on the metrics port of every node."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal

import numpy as np
from ray.serve.metrics import Counter, Gauge, Histogram

from cifar_ray.drift.detection import Drift
from cifar_ray.drift.watch import LOOK_S, find_drift
from cifar_ray.errors import StoreError
from deployments.predicting.contract import Classified, Observer, TrialEvent
from deployments.predicting.schemas import Timings
from deployments.replicas.tracing import record_stages

logger = logging.getLogger("ray.serve")

_STAGES: tuple[Literal["decode", "queue", "inference", "total"], ...] = ("decode", "queue", "inference", "total")
_STAGE_BOUNDARIES_MS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000]
_GAUGE_DELAY_S = 0.5
_BATCH_BOUNDARIES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]


class IngressMetrics(Observer):
    """Metrics of an ingress replica."""

    def __init__(self) -> None:
        self._stage = Histogram(
            "cifar_ray_stage_ms", "Time of a successful request by stage, as in its timings_ms", _STAGE_BOUNDARIES_MS, ("stage",)
        )
        self._refused = Counter("cifar_ray_refused_total", "Failed requests by reason", ("reason",))
        self._gauge = Gauge("cifar_ray_pending_images", "Pictures that are being decoded, wait, or are with a model")
        self._trials = Counter("cifar_ray_trial_total", "Events of versions on trial", ("model", "version", "event"))
        self._pending_images = 0
        self._is_due = False

    def answered(self, timings_ms: Timings) -> None:
        """Implements `Observer`."""
        for stage in _STAGES:
            self._stage.observe(timings_ms[stage], {"stage": stage})
        record_stages(timings_ms)

    def refused(self, reason: str) -> None:
        """Implements `Observer`."""
        self._refused.inc(1, {"reason": reason})

    def pending(self, images: int) -> None:
        """Implements `Observer`. The gauge follows within half a second: setting it takes as long as parsing the request."""
        self._pending_images = images
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(_GAUGE_DELAY_S, self._set_gauge)

    def trial_event(self, name: str, version: int, event: TrialEvent, problem: str = "") -> None:
        """Implements `Observer`."""
        self._trials.inc(1, {"model": name, "version": str(version), "event": event})
        if problem:
            logger.warning("%s@%d, on trial, failed; production answers instead: %s", name, version, problem)

    def _set_gauge(self) -> None:
        self._is_due = False
        self._gauge.set(self._pending_images)


class DriftMetrics:
    """Metrics of an ingress replica: whether the pictures of each version have changed, as in `cifar-ray drift`."""

    def __init__(self) -> None:
        self._distance = Gauge(
            "cifar_ray_drift_distance", "Recent pictures beside the first ones, 0 (equal) to 1", ("model", "version", "figure")
        )
        self._alarm = Gauge("cifar_ray_drift_alarm", "1 if the pictures of a version have changed", ("model", "version"))

    def follow(self, storage: str) -> None:
        """Start a thread that looks for drift every ten minutes."""

        def loop() -> None:
            while True:
                time.sleep(LOOK_S)
                with suppress(StoreError):  # the next look may succeed
                    self.show(find_drift(storage))

        threading.Thread(target=loop, name="drift-watch", daemon=True).start()

    def show(self, found: Mapping[str, Drift]) -> None:
        """Set the gauges of each version, by `name@version`."""
        for reference, drift in found.items():
            name, _, version = reference.partition("@")
            for shift in drift.shifts:
                self._distance.set(shift.distance, {"model": name, "version": version, "figure": shift.figure})
            self._alarm.set(float(drift.is_alarm), {"model": name, "version": version})


class ModelMetrics:
    """Metrics of a classifier replica, updated once per forward pass."""

    def __init__(self) -> None:
        self._batch_size = Histogram("cifar_ray_batch_size", "Images in a forward pass", _BATCH_BOUNDARIES, ("model", "version"))
        self._forward = Histogram("cifar_ray_forward_ms", "Time of a forward pass", _STAGE_BOUNDARIES_MS, ("model", "version"))
        self._predicted = Counter(
            "cifar_ray_predicted_total", "Images by most likely class, or by label", ("model", "version", "class_name")
        )
        self._abstained = Counter("cifar_ray_abstained_total", "Images unlike the training images", ("model", "version"))

    def ran(self, classified: Classified) -> None:
        """Record a forward pass and its predictions."""
        model = {"model": classified.model.name, "version": str(classified.model.version)}
        self._batch_size.observe(classified.batch_size, model)
        self._forward.observe(classified.inference_s * 1000, model)
        rules, probabilities = classified.model.rules, classified.probabilities
        predicted = probabilities.argmax(axis=1) if rules is None else np.nonzero(rules.labels(probabilities))[1]
        for class_id, count in zip(*(found.tolist() for found in np.unique(predicted, return_counts=True)), strict=True):
            self._predicted.inc(count, model | {"class_name": classified.model.class_names[class_id]})
        if classified.abstains.any():
            self._abstained.inc(int(classified.abstains.sum()), model)
