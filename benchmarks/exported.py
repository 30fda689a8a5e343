"""Does an exported file give the same answers as the server? The table separates the effect of resizing from that of precision.

python benchmarks/exported.py NAME --storage STORAGE --pictures DIR [--every 5] [--enlarge 4] [--engine openvino]
python benchmarks/exported.py NAME --storage STORAGE --cifar10 DIR

Every picture goes through both. The server is `decode_square` and a `Predictor` with the engine that it chooses; the file gets the decoded
pixels of the whole picture.
"""

from __future__ import annotations

import argparse
import io
import pickle
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

from cifar_ray.data.decode import decode_image, decode_square, fit
from cifar_ray.inference.exporting.export import export
from cifar_ray.inference.predictor import Prediction, Predictor
from cifar_ray.store.locate import load_model

Probabilities = npt.NDArray[np.float32]


def main() -> None:
    """Prints one row per comparison, then the times."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("--storage", required=True)
    arguments.add_argument("--pictures", type=Path)
    arguments.add_argument("--cifar10", type=Path)
    arguments.add_argument("--every", type=int, default=1, help="N: take every Nth picture")
    arguments.add_argument("--enlarge", type=int, default=1, help="enlarge the pictures by this factor and save them as JPEG again")
    arguments.add_argument("--engine", default="auto", help="of the server")
    options = arguments.parse_args()
    bundle = load_model(options.model, options.storage)
    with tempfile.TemporaryDirectory() as folder:
        written = export(bundle, "onnx", f"{folder}/model.onnx")
        session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
    contents = list(cifar10(options.cifar10) if options.cifar10 else photographs(options.pictures, options.every, options.enlarge))
    size, policy = bundle.manifest.image_size_px, bundle.manifest.resize_policy
    server, exact = Predictor(bundle, engine=options.engine), Predictor(bundle, precision="fp32", engine="torch")
    drafted, whole, found, server_ms, file_ms = [], [], [], [], []
    for content in contents:
        started = time.perf_counter()
        drafted.append(decode_square(content, size, policy))
        server.predict(drafted[-1][None])
        server_ms.append(1000 * (time.perf_counter() - started))
        started = time.perf_counter()
        image = decode_image(content)
        _, probabilities, labels, _, abstains = session.run(None, {"images": np.asarray(image)[None]})
        file_ms.append(1000 * (time.perf_counter() - started))
        found.append(Prediction(probabilities, probabilities, labels, abstains, probabilities))
        whole.append(fit(image, size, policy))
    print(f"{bundle.reference}, {size} px, {policy}: {len(contents):,} pictures; file {len(written.data):,} bytes")
    print("| compared | same class, % | largest difference of a probability | mean | same abstention, % |\n|---|---|---|---|---|")
    answers = {"server": in_batches(server, drafted), "torch in fp32": in_batches(exact, drafted), "undrafted": in_batches(exact, whole)}
    file = joined(found)
    row(f"file and server ({server.engine}, {server.precision.name})", file, answers["server"])
    row("file and torch in fp32, same decoding", file, answers["undrafted"])
    row("file and torch in fp32, decoded as the server does", file, answers["torch in fp32"])
    row("server and torch in fp32, same pixels (precision alone)", answers["server"], answers["torch in fp32"])
    for name, times in (("server, decoding included", server_ms), ("file, decoding included", file_ms)):
        low, median, high = np.percentile(times, [10, 50, 90])
        print(f"{name}: median {median:.1f} ms (10–90 %: {low:.1f}–{high:.1f})")


def photographs(folder: Path, every: int, factor: int) -> Iterator[bytes]:
    """Contents of the JPEGs below a folder."""
    for path in sorted(folder.rglob("*.jpg"))[::every]:
        if factor == 1:
            yield path.read_bytes()
            continue
        image, buffer = decode_image(path), io.BytesIO()
        image.resize((factor * image.width, factor * image.height), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def cifar10(folder: Path) -> Iterator[bytes]:
    """The test images as PNG."""
    batch = pickle.loads((folder / "cifar-10-batches-py" / "test_batch").read_bytes(), encoding="bytes")  # noqa: S301
    for pixels in batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        yield buffer.getvalue()


def in_batches(predictor: Predictor, squares: list[npt.NDArray[np.uint8]], size: int = 32) -> Prediction:
    """Predictions for all squares."""
    return joined([predictor.predict(np.stack(squares[start : start + size])) for start in range(0, len(squares), size)])


def joined(parts: list[Prediction]) -> Prediction:
    """Concatenate several predictions."""
    return Prediction(*(np.concatenate([getattr(part, name) for part in parts]) for name in Prediction.__dataclass_fields__))


def row(name: str, one: Prediction, other: Prediction) -> None:
    """Prints how two predictions differ."""
    same = (one.labels == other.labels).all(axis=1).mean()
    difference = np.abs(one.probabilities - other.probabilities)
    abstentions = (one.abstains == other.abstains).mean()
    print(f"| {name} | {100 * same:.2f} | {difference.max():.4f} | {difference.max(axis=1).mean():.5f} | {100 * abstentions:.2f} |")


if __name__ == "__main__":
    main()
