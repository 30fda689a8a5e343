"""Measurements as a table in Markdown."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean
from typing import Any


def render(measurements: list[dict[str, Any]]) -> str:
    """One table per model and concurrency: means over rounds, the range of requests/s, and ratios to the first server.

    A ratio compares the same round of both servers, so other load on the machine matters less; its range is over rounds.
    """
    rows: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for measurement in measurements:
        rows[measurement["model"], measurement["concurrency"]][measurement["server"]].append(measurement)
    tables = []
    for (model, concurrency), servers in sorted(rows.items(), key=lambda item: (item[0][0] != "small_cnn", item[0])):
        first = next(iter(servers.values()))
        lines = [
            f"**{model}, concurrency {concurrency}**\n",
            "| server | n | requests/s | p50 ms | p99 ms | errors | server CPU ms a request "
            f"| {next(iter(servers)).partition(',')[0]} ÷ this |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for server, rounds in servers.items():
            speeds = [measured["requests_per_s"] for measured in rounds]
            ratios = [ours["requests_per_s"] / max(speed, 1e-9) for ours, speed in zip(first, speeds, strict=False)]
            p50, p99, cpu = (fmean(measured[key] for measured in rounds) for key in ("p50_ms", "p99_ms", "cpu_ms"))
            errors = int(sum(measured["errors"] for measured in rounds))
            cells = [
                server,
                str(len(rounds)),
                _spread(speeds, 0),
                f"{p50:.1f}",
                f"{p99:.1f}",
                str(errors),
                f"{cpu:.2f}",
                _spread(ratios, 2),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _spread(values: list[float], digits: int) -> str:
    """Mean and range."""
    return f"{fmean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"
