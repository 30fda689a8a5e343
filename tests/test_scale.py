"""docs/scale.md is what its measurements give."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_the_tables_are_those_that_the_code_computes_from_what_was_measured() -> None:
    check = subprocess.run([sys.executable, "benchmarks/scale", "check"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr
