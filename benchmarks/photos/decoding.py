"""Decoding a JPEG to a square of 224 px: ours against Pillow's full decoding with the same fit, and nvJPEG where there is a GPU."""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from records import Records
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import resize

SIZE_PX = 224
# name, width and height, how many pictures per round
CASES = (("12 megapixels", (4000, 3000), 10), ("400 px", (400, 300), 200))


def measure(options: argparse.Namespace, work: Path, records: Records) -> None:
    """Measure both decoders in turn (A B A B) in one thread; each round decodes all pictures once with each."""
    from cifar_ray.data.decode import decode_square, fit

    def pillow(content: bytes) -> object:
        return fit(Image.open(io.BytesIO(content)).convert("RGB"), SIZE_PX, "squash")

    contenders = {"ours": partial(decode_square, size_px=SIZE_PX, policy="squash"), "Pillow, full decoding": pillow}
    if torch.cuda.is_available():
        contenders["nvJPEG"] = nvjpeg
    paths = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[: options.limit]
    if not paths:
        raise SystemExit(f"{options.folder} has no JPEGs")
    for name, size, wanted in CASES:
        chosen = [paths[number * len(paths) // wanted] for number in range(wanted)] if len(paths) > wanted else paths
        contents = [made(path, size) for path in chosen]
        for number in range(options.rounds + 1):
            times = {contender: timed(decode, contents) for contender, decode in contenders.items()}
            if number == 0:
                continue  # warm-up
            ratio = times["Pillow, full decoding"] / times["ours"]
            for contender, seconds in times.items():
                more = {"ms per picture": 1e3 * seconds / len(contents)} | ({"Pillow ÷ ours": ratio} if contender == "ours" else {})
                records.add(f"decoding {name}", contender, seconds, None, len(contents), **more)


def nvjpeg(content: bytes) -> object:
    """Decode and resize on the GPU; the square returns to the host, as the server sends it to a replica."""
    image = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB, device="cuda")
    return resize(image, [SIZE_PX, SIZE_PX], antialias=True).cpu()


def made(path: Path, size: tuple[int, int]) -> bytes:
    """Resize a photograph, add sensor noise, and encode it as a JPEG of quality 90. Without noise, it would be too easy to decode."""
    image = rgb(path).resize(size, Image.Resampling.BICUBIC)
    rng = np.random.default_rng(0)
    noisy = np.asarray(image, np.float32) + rng.normal(0, 4, (size[1], size[0], 3)).astype(np.float32)
    content = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(content, "JPEG", quality=90)
    return content.getvalue()


def rgb(path: Path) -> Image.Image:
    """An RGB picture."""
    with Image.open(path) as image:
        return image.convert("RGB")


def timed(decode: Callable[[bytes], object], contents: list[bytes]) -> float:
    """Seconds to decode all pictures."""
    started = time.perf_counter()
    for content in contents:
        decode(content)
    return time.perf_counter() - started
