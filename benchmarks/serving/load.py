"""Load over loopback with wrk: a C program that needs little of the cores it shares with the server."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

_BOUNDARY = "cifar-ray-benchmark"
_SCRIPT = f"""
local file = io.open(os.getenv("BENCHMARK_BODY"), "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "multipart/form-data; boundary={_BOUNDARY}"
function done(summary, latency)
    local errors = summary.errors
    io.write(string.format('\\n{{"requests": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "errors": %d}}\\n',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


def multipart(image_size_px: int = 32) -> bytes:
    """One JPEG of smooth shapes and a little noise, as a form field named `image`; about 1 kB, as CIFAR's pictures are."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((image_size_px, image_size_px), Image.Resampling.BICUBIC))
    noisy = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(noisy).save(jpeg, "JPEG", quality=90)
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="frog.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    return head.encode() + jpeg.getvalue() + f"\r\n--{_BOUNDARY}--\r\n".encode()


CONTENT_TYPE = f"multipart/form-data; boundary={_BOUNDARY}"


def run(url: str, body: bytes, concurrency: int, seconds: float) -> dict[str, float]:
    """Keeps `concurrency` connections busy.

    Returns:
        `requests_per_s` (only those answered with 2xx), `p50_ms`, `p99_ms`, `errors` and `requests` (all that were answered).
    """
    with tempfile.TemporaryDirectory() as folder:
        script, picture = Path(folder, "post.lua"), Path(folder, "body")
        script.write_text(_SCRIPT)
        picture.write_bytes(body)
        command = ["wrk", "-t1", f"-c{concurrency}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(script), url]
        finished = subprocess.run(
            command, env=os.environ | {"BENCHMARK_BODY": str(picture)}, capture_output=True, text=True, timeout=seconds + 60, check=True
        )
    raw = json.loads(finished.stdout.strip().splitlines()[-1])
    good = max(0, raw["requests"] - raw["errors"])
    return {
        "requests_per_s": good / raw["duration_us"] * 1e6,
        "p50_ms": raw["p50_us"] / 1e3,
        "p99_ms": raw["p99_us"] / 1e3,
        "errors": raw["errors"],
        "requests": raw["requests"],
    }
