"""OpenTelemetry traces: an exporter, and spans for the stages of a request. Ray Serve makes a span for each request.

Ray Serve also reads W3C trace context. Traces are off, and cost nothing, unless `RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH` names `otlp`
when Ray starts.
"""

from __future__ import annotations

import time
from typing import Any

from opentelemetry import trace

from deployments.predicting.schemas import Timings


def otlp() -> list[Any]:
    """Create span processors that send spans over OTLP to the collector in `OTEL_EXPORTER_OTLP_ENDPOINT` or similar variables.

    Raises:
        ImportError: without the extra `traces`.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return [BatchSpanProcessor(OTLPSpanExporter())]


def record_stages(timings_ms: Timings, tracer: trace.Tracer | None = None) -> None:
    """Add a span for each stage of a request that has just been answered to its trace, if it has one.

    Args:
        timings_ms: timings of the request.
        tracer: creates the spans; default: the tracer that Ray Serve has set up.
    """
    if not trace.get_current_span().is_recording():
        return
    tracer = tracer or trace.get_tracer("cifar_ray")
    start_ns = time.time_ns() - round(timings_ms["total"] * 1e6)
    for stage in ("decode", "queue", "inference"):
        end_ns = start_ns + round(timings_ms[stage] * 1e6)
        tracer.start_span(stage, start_time=start_ns).end(end_ns)
        start_ns = end_ns
