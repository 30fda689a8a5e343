"""Summarise predictions on the terminal: one line per picture for up to 20 pictures, else one line per class."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from cifar_ray.inference.batch.prediction_job import PredictionTime

_MAX_LINES = 20
_NO_LABEL = "(no label)"


class PredictionSummary:
    """Counts the rows of all pictures, see `rows.SCHEMA`, and keeps only the first rows."""

    def __init__(self) -> None:
        self._first_rows: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()
        self._confidence_sums: Counter[str] = Counter()
        self._abstained: Counter[str] = Counter()
        self._broken = self._sound = self._not_sure = 0

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table."""
        self._first_rows += table.slice(0, max(0, _MAX_LINES + 1 - len(self._first_rows))).to_pylist()
        if "labels" in table.column_names:
            labels = [
                None if row is None else [(one["class_name"], one["probability"]) for one in row] for row in table["labels"].to_pylist()
            ]
        else:
            pairs = zip(table["class_name"].to_pylist(), table["confidence"].to_pylist(), strict=True)
            labels = [None if name is None else [(name, confidence)] for name, confidence in pairs]
        for found, abstain in zip(labels, table["abstain"].to_pylist(), strict=True):
            if found is None:
                self._broken += 1
                continue
            self._sound += 1
            self._not_sure += abstain
            for name, confidence in found or [(_NO_LABEL, 0.0)]:
                self._counts[name] += 1
                self._confidence_sums[name] += confidence
                self._abstained[name] += abstain

    @property
    def sound(self) -> int:
        """Number of pictures that could be read."""
        return self._sound

    def text(self, time: PredictionTime) -> str:
        """The lines to print; the last line has the speed."""
        total = self._broken + self.sound
        lines = self._picture_lines() if total <= _MAX_LINES else self._class_lines(total)
        rate = f" in {time.seconds:.1f} s: {time.pictures / max(time.seconds, 1e-9):,.0f} images/s"
        count = time.pictures or total
        speed = f"{count:,} {'picture' if count == 1 else 'pictures'}{rate if time.pictures else ''}"
        abstained = f", not sure of {self._not_sure:,}" if self._not_sure else ""
        return "\n".join([*lines, f"{speed}; {self._broken:,} broken{abstained}"])

    def _picture_lines(self) -> list[str]:
        width = max(len(row["file"]) for row in self._first_rows)
        return [f"{row['file']:{width}}  {_describe(row)}" for row in self._first_rows]

    def _class_lines(self, total: int) -> list[str]:
        width = max(map(len, self._counts), default=0)
        lines = [
            f"{name:{width}}  {count:>9,}  {100 * count / total:6.2f} %"
            + (f"  mean confidence {self._confidence_sums[name] / count:.3f}" if name != _NO_LABEL else "")
            + (f", not sure of {self._abstained[name]:,}" if self._abstained[name] else "")
            for name, count in self._counts.most_common(_MAX_LINES)
        ]
        if len(self._counts) > _MAX_LINES:
            lines.append(f"and {len(self._counts) - _MAX_LINES} more classes")
        return lines


def _describe(row: dict[str, Any]) -> str:
    if row["error"] is not None:
        return f"error: {row['error']}"
    abstain = (
        ", but not sure: it is as unfamiliar to the model as the least familiar 5 % of its validation images" if row["abstain"] else ""
    )
    if "labels" in row:
        return (", ".join(f"{one['class_name']} {100 * one['probability']:.1f} %" for one in row["labels"]) or _NO_LABEL) + abstain
    return f"{row['class_name']} {100 * row['confidence']:.1f} %{abstain}"
