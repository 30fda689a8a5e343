"""Should a client that has pixels send them raw, or encode them as a JPEG?

    python benchmarks/serving/pixels.py --storage DIR      # a model of 32 px; needs wrk; five minutes

One `cifar-ray serve` answers two kinds of requests for the same picture: `POST /predict` with the JPEG as the body, and
`POST /v2/models/NAME/infer` with the uint8 pixels after the JSON document (Open Inference Protocol, binary extension, all outputs
as raw bytes), as tritonclient sends them. Each round measures one kind, then the other.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import urllib.request
from pathlib import Path

import load
import numpy as np
from contenders import PORT, ROOT, URL, contenders, started
from PIL import Image

_WARM_UP_S = 3
_Kind = tuple[str, bytes, dict[str, str]]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", type=Path, required=True, help="its model that was promoted last is served")
    parser.add_argument("--concurrency", default="1,32")
    parser.add_argument("--seconds", type=float, default=6.0, help="of load for each kind, concurrency and round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    levels = [int(level) for level in options.concurrency.split(",")]
    with started(contenders()["fast"], str(options.storage.resolve()), load.multipart(), ROOT) as server:
        compared = kinds()
        found: dict[tuple[str, int], list[dict[str, float]]] = {}
        for url, body, headers in compared.values():
            load.run(url, [body], max(levels), _WARM_UP_S, headers)
        for _ in range(options.rounds):
            for level in levels:
                for name, (url, body, headers) in compared.items():
                    before = server.cpu_s()
                    measured = load.run(url, [body], level, options.seconds, headers)
                    measured["cpu_ms"] = (server.cpu_s() - before) / max(measured["requests"], 1) * 1e3
                    print(name, level, {key: round(value, 2) for key, value in measured.items()}, flush=True)
                    found.setdefault((name, level), []).append(measured)
    for level in levels:
        first, second = (found[name, level] for name in compared)
        ratios = [b["requests_per_s"] / a["requests_per_s"] for a, b in zip(first, second, strict=True)]
        for name in compared:
            figures = [spread(found[name, level], key) for key in ("requests_per_s", "p50_ms", "cpu_ms")]
            print(f"| {name}, {level} clients | {' | '.join(figures)} |")
        print(f"pixels ÷ JPEG at {level} clients: {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}), n = {len(ratios)}")


def kinds() -> dict[str, _Kind]:
    """Address, body and headers of both kinds, for the model and image size of the running server."""
    server = f"http://127.0.0.1:{PORT}"
    with urllib.request.urlopen(f"{server}/ready") as answer:
        model = json.load(answer)["model"]
    with urllib.request.urlopen(f"{server}/v2/models/{model}") as answer:
        size_px = json.load(answer)["inputs"][0]["shape"][1]
    jpeg = load.jpeg(size_px)
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    tensor = {"name": "pixels", "shape": [1, *pixels.shape], "datatype": "UINT8", "parameters": {"binary_data_size": pixels.nbytes}}
    document = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    binary = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(document))}
    return {
        "JPEG": (URL, jpeg, {"Content-Type": "image/jpeg"}),
        "pixels": (f"{server}/v2/models/{model}/infer", document + pixels.tobytes(), binary),
    }


def spread(rows: list[dict[str, float]], key: str) -> str:
    """Median and range."""
    values = [row[key] for row in rows]
    digits = 0 if statistics.median(values) >= 100 else 2
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
