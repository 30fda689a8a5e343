"""Measurements as JSON lines, and as one table in Markdown."""

from __future__ import annotations

import json
import os
import platform
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any


class Records:
    """A file of measurements, one JSON line per run.

    Args:
        path: the file; it may not exist yet.
        dry_run: whether to mark new lines as a dry run.
    """

    def __init__(self, path: Path, dry_run: bool) -> None:
        self.path, self.dry_run = path, dry_run

    def add(
        self, part: str, row: str, seconds: float | None = None, accuracy: float | None = None, pictures: int = 0, **more: float | None
    ) -> None:
        """Append one run.

        Args:
            part: part of the benchmark.
            row: contender or case.
            seconds: its time.
            accuracy: share of correct pictures, 0–1.
            pictures: number of pictures that the accuracy is over, or that were processed.
            more: further figures, whose names become text of the table; `None` for unknown.
        """
        one = {"part": part, "row": row, "seconds": seconds, "accuracy": accuracy, "pictures": pictures, "more": more}
        one |= {"processor": processor(), "dry_run": self.dry_run}
        with self.path.open("a") as file:
            file.write(json.dumps(one) + "\n")
        figures = {"seconds": seconds, "accuracy %": None if accuracy is None else 100 * accuracy} | more
        print(f"{part}: {row}: " + ", ".join(f"{name} {value:.2f}" for name, value in figures.items() if value is not None), flush=True)

    def table(self) -> str:
        """All measurements: median and range over the runs of each row."""
        rows: dict[tuple[str, str, bool, str], list[dict[str, Any]]] = defaultdict(list)
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                one = json.loads(line)
                rows[one["part"], one["row"], one["dry_run"], one["processor"]].append(one)
        lines = ["| part | what | seconds | accuracy, % | pictures | runs | more | processor |", "|---|---|---|---|---|---|---|---|"]
        for (part, row, dry_run, name), runs in rows.items():
            names = dict.fromkeys(key for run in runs for key in run["more"])
            more = "; ".join(f"{key} {text}" for key in names if (text := _spread([run["more"].get(key) for run in runs])) != "–")
            cells = [
                f"{part}{' (dry run)' if dry_run else ''}",
                row,
                _spread([run["seconds"] for run in runs]),
                _spread([100 * run["accuracy"] if run["accuracy"] is not None else None for run in runs]),
                f"{runs[0]['pictures']:,}",
                str(len(runs)),
                more,
                name,
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def processor() -> str:
    """Name of this machine's processor and its number of logical cores."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        found = [line.partition(":")[2].strip() for line in information.read_text().splitlines() if line.startswith("model name")]
        name = found[0] if found else name
    return f"{name}, {os.cpu_count()} cores"


def _spread(values: list[float | None]) -> str:
    """Median and range of the known values."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    digits = 0 if max(map(abs, known)) >= 1000 else 1 if max(map(abs, known)) >= 10 else 2
    middle = f"{median(known):,.{digits}f}"
    return middle if len(known) == 1 else f"{middle} ({min(known):,.{digits}f}–{max(known):,.{digits}f})"
