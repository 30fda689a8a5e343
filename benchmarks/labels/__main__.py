"""Sources of labelled pictures: how long until training can start, and how fast pictures arrive.

    python -m benchmarks.labels rows [--count 1000000] [--rounds 3]
    python -m benchmarks.labels shards [--count 2000] [--rounds 5]

Files are made under $TMPDIR and removed at the end. Results in ../results/labels.md.
"""

from __future__ import annotations

import tyro

from benchmarks.labels.rows import rows
from benchmarks.labels.shards import shards

if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"rows": rows, "shards": shards})
