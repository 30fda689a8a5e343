"""Load over loopback with wrk, a C program that uses little of the cores that it shares with the server."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

_BOUNDARY = "cifar-ray-benchmark"
_SCRIPT = """
wrk.method = "POST"
for name, value in string.gmatch(os.getenv("BENCHMARK_HEADERS"), "([^\\n:]+):([^\\n]+)") do wrk.headers[name] = value end
local requests, sent = {}, 0
function init(args)
    for number = 1, tonumber(os.getenv("BENCHMARK_BODIES")) do
        local file = io.open(os.getenv("BENCHMARK_FOLDER") .. "/body" .. number, "rb")
        requests[number] = wrk.format(nil, nil, nil, file:read("*a"))
        file:close() -- wrk takes no descriptor above ten and three for each connection
    end
end
function request()
    sent = sent + 1
    return requests[sent % #requests + 1]
end
function done(summary, latency)
    local errors = summary.errors
    io.write(string.format('\\n{"requests": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "errors": %d}\\n',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


def multipart(image_size_px: int = 32) -> bytes:
    """The picture of `jpeg` as a form field named `image`."""
    return form(jpeg(image_size_px))


def jpeg(image_size_px: int = 32) -> bytes:
    """One JPEG of smooth shapes and a little noise; about 1 kB, like a picture of CIFAR."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((image_size_px, image_size_px), Image.Resampling.BICUBIC))
    noisy = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=90)
    return file.getvalue()


def photographs(folder: Path, side_px: int, count: int) -> list[bytes]:
    """Pictures of a folder as forms: JPEGs whose longer side has `side_px`, evenly from the sorted folder.

    Raises:
        SystemExit: if the folder has no JPEGs.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise SystemExit(f"{folder} has no JPEGs")
    forms = []
    for path in paths[:: max(1, len(paths) // count)][:count]:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        scale = side_px / max(image.size)
        file = io.BytesIO()
        image.resize((round(scale * image.width), round(scale * image.height))).save(file, "JPEG", quality=90)
        forms.append(form(file.getvalue()))
    return forms


def form(file: bytes) -> bytes:
    """A JPEG as a form field named `image`."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="frog.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    return head.encode() + file + f"\r\n--{_BOUNDARY}--\r\n".encode()


CONTENT_TYPE = f"multipart/form-data; boundary={_BOUNDARY}"
_FORM_HEADERS = MappingProxyType({"Content-Type": CONTENT_TYPE})


def run(
    url: str, bodies: Sequence[bytes], concurrency: int, seconds: float, headers: Mapping[str, str] = _FORM_HEADERS
) -> dict[str, float]:
    """Keep `concurrency` connections busy; they post the bodies in turn.

    Returns:
        `requests_per_s` (only those answered with 2xx), `p50_ms`, `p99_ms`, `errors` and `requests` (all that were answered).
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "post.lua")
        script.write_text(_SCRIPT)
        for number, body in enumerate(bodies, 1):
            Path(folder, f"body{number}").write_bytes(body)
        command = ["wrk", "-t1", f"-c{concurrency}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(script), url]
        lines = "\n".join(f"{name}:{value}" for name, value in headers.items())
        environment = os.environ | {"BENCHMARK_FOLDER": folder, "BENCHMARK_BODIES": str(len(bodies)), "BENCHMARK_HEADERS": lines}
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds + 60, check=True)
    raw = json.loads(finished.stdout.strip().splitlines()[-1])
    good = max(0, raw["requests"] - raw["errors"])
    return {
        "requests_per_s": good / raw["duration_us"] * 1e6,
        "p50_ms": raw["p50_us"] / 1e3,
        "p99_ms": raw["p99_us"] / 1e3,
        "errors": raw["errors"],
        "requests": raw["requests"],
    }
