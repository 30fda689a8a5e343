"""Is the server as accurate as the evaluation after training? Posts every test image over HTTP and prints the accuracy.

serve run deployments:app model=cifar10
python benchmarks/served_accuracy.py http://localhost:8000 DIR/test
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def main() -> None:
    """Post DIR/<class>/* and print the share of correct answers."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("url")
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--concurrency", type=int, default=32)
    options = arguments.parse_args()
    pictures = sorted(path for path in options.folder.glob("*/*") if path.is_file())

    def is_right(path: Path) -> bool:
        request = urllib.request.Request(f"{options.url}/predict", path.read_bytes(), {"Content-Type": "image/jpeg"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["class_name"] == path.parent.name

    started = time.perf_counter()
    with ThreadPoolExecutor(options.concurrency) as pool:
        right = sum(pool.map(is_right, pictures))
    seconds = time.perf_counter() - started
    print(f"{right} of {len(pictures)} right: {100 * (right / len(pictures)):.2f} %, {len(pictures) / seconds:.0f} requests/s")


if __name__ == "__main__":
    main()
