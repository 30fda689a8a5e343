"""Benchmarks of labelled data: its sources, several labels per picture, and wrong labels.

    python -m benchmarks.labels rows [--count 1000000] [--rounds 3]
    python -m benchmarks.labels shards [--count 2000] [--rounds 5]
    python -m benchmarks.labels mosaics --data-dir DIR [--images 5000] [--epochs 8] [--seeds 1]
    python -m benchmarks.labels errors --data-dir DIR --out rows.jsonl [--seeds 3]
    python -m benchmarks.labels published --data-dir DIR --votes cifar10_mturk.json

Files are made under $TMPDIR and removed at the end. Results in ../results/labels.md.
"""

from __future__ import annotations

import tyro

from benchmarks.labels.label_errors import flip_and_find
from benchmarks.labels.mosaics import compare
from benchmarks.labels.published_errors import compare_with_published
from benchmarks.labels.rows import rows
from benchmarks.labels.shards import shards

if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict(
        {"rows": rows, "shards": shards, "mosaics": compare, "errors": flip_and_find, "published": compare_with_published}
    )
