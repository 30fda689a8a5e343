"""Spans of a request, without Ray and without a collector."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deployments.predicting.schemas import Timings
from deployments.replicas import request_metrics
from deployments.replicas.tracing import otlp, record_stages

TIMINGS: Timings = {"decode": 2.0, "queue": 3.0, "inference": 4.0, "total": 10.0}


def test_a_traced_request_has_a_span_for_each_stage_and_another_request_has_none() -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("test")
    record_stages(TIMINGS, tracer)
    assert spans.get_finished_spans() == ()
    with tracer.start_as_current_span("request") as request:
        record_stages(TIMINGS, tracer)
    *stages, _ = spans.get_finished_spans()
    assert [span.name for span in stages] == ["decode", "queue", "inference"]
    assert all(span.parent == request.get_span_context() for span in stages)
    assert [(span.end_time - span.start_time) / 1e6 for span in stages] == [2, 3, 4]
    assert stages[0].end_time == stages[1].start_time


def test_the_ingress_records_the_stages_of_each_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    for name in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(request_metrics, name, MagicMock())
    monkeypatch.setattr(request_metrics, "record_stages", seen.append)
    request_metrics.IngressMetrics().answered(TIMINGS)
    assert seen == [TIMINGS]


def test_spans_leave_over_otlp() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter", reason="needs the extra traces")
    [processor] = otlp()
    assert isinstance(processor, SpanProcessor)
    processor.shutdown()
