"""The Grafana dashboard asks for metrics that there are, with labels that they have."""

from __future__ import annotations

import json
import re
from pathlib import Path

from deployments.replicas.request_metrics import DriftMetrics, IngressMetrics, ModelMetrics

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana-serving.json"
_SERIES = re.compile(r"(ray_cifar_ray_\w+?)(_bucket|_count)?\{(.*?)\}")


def test_every_panel_asks_for_a_metric_of_ours_by_labels_it_has() -> None:
    metrics = [*vars(IngressMetrics()).values(), *vars(ModelMetrics()).values(), *vars(DriftMetrics()).values()]
    labels = {f"ray_{metric._name}": set(metric._tag_keys) for metric in metrics if hasattr(metric, "_tag_keys")}
    asked: set[str] = set()
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel["targets"]:
            found = _SERIES.findall(target["expr"])
            assert found, panel["title"]
            for name, _, selector in found:
                matched = set(re.findall(r"(\w+)(?:=|!)", selector)) - {"application"}
                grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \((.*?)\)", target["expr"])))) - {"le", "replica", "application"}
                assert matched | grouped <= labels[name], panel["title"]
                asked.add(name)
    assert asked == set(labels)
