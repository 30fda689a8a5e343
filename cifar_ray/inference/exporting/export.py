"""Export a bundle for other programs, after a check that the file gives the same logits."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cifar_ray.config import resolve_storage
from cifar_ray.errors import BundleError, MissingDependencyError
from cifar_ray.inference.conversion import FromPixels, NetworkInput
from cifar_ray.inference.engines import TOLERANCE, Logits, Pixels, TorchEngine, deviation
from cifar_ray.inference.predictor import Predictor
from cifar_ray.storage import FileTree
from cifar_ray.store import Bundle, Manifest
from cifar_ray.store.bundle import encode
from cifar_ray.store.manifest import MANIFEST_KEY

ExportFormat = Literal["onnx", "torchscript", "pt2", "safetensors"]

SUFFIXES: dict[ExportFormat, str] = {"onnx": ".onnx", "torchscript": ".torchscript.pt", "pt2": ".pt2", "safetensors": ".safetensors"}
ONNX_OPSET = 18


@dataclass(frozen=True)
class Exported:
    """An exported and checked file.

    Attributes:
        target: path or URI of the file.
        size_bytes: size of the file.
        deviation: largest difference between its logits and the bundle's in fp32, as a fraction of the largest logit.
        checked_by: program that ran the file for the check.
    """

    target: str
    size_bytes: int
    deviation: float
    checked_by: str


class _FileEngine:
    """Runs the exported file with the program that its users will use."""

    def __init__(self, name: str, run: Any) -> None:
        self.name = name
        self._run = run

    def logits(self, images: Pixels) -> Logits:
        """Logits, `[N, C]`, of images, uint8 `[N, S, S, 3]`."""
        result: Logits = np.asarray(self._run(images), np.float32)
        return result


class _Answering(nn.Module):
    """The graph to export: from pixels to logits and probabilities."""

    scales: Tensor

    def __init__(self, engine: TorchEngine) -> None:
        super().__init__()
        self.from_pixels = FromPixels(engine.network, engine.manifest)
        self.temperature = engine.manifest.temperature
        rules = engine.manifest.rules if isinstance(engine.manifest, Manifest) else None
        self.is_multi_label = rules is not None
        if rules is not None:
            self.register_buffer("scales", torch.tensor([rules.slopes, rules.offsets]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.from_pixels(images)
        if self.is_multi_label:
            return logits, torch.sigmoid(logits * self.scales[0] + self.scales[1])
        return logits, torch.softmax(logits / self.temperature, dim=1)


def export(bundle: Bundle, file_format: ExportFormat, target: str) -> Exported:
    """Write a bundle to a file, run the file and compare the logits; `target` is only replaced after this check.

    `onnx`, `torchscript` and `pt2` take uint8 `[N, S, S, 3]` RGB pixels for any N, normalise them, and return float32 logits and
    probabilities, `[N, C]`. `safetensors` contains the weights, with the manifest in its header; `import` can read it.

    Args:
        bundle: what to export.
        file_format: format of the file.
        target: path or URI of the file to write.

    Raises:
        MissingDependencyError: if a package for the format is not installed.
        BundleError: if the network cannot be exported in the format, or the file gives other logits.
        StoreError: if the file cannot be written.
    """
    engine = _in_fp32(bundle)
    write, read = _FORMATS[file_format]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"model{SUFFIXES[file_format]}")
        try:
            with warnings.catch_warnings(), _quiet():
                warnings.simplefilter("ignore")  # exporters warn about their internals; the result is checked below
                write(engine, bundle, file)
                written = read(file, bundle)
        except MissingDependencyError:
            raise
        except Exception as failure:  # exporters raise many exceptions
            raise BundleError(
                f"{bundle.reference} cannot be exported as {file_format}: {' '.join(str(failure).split())[:200]}; try another --format"
            ) from failure
        difference = deviation(written, engine)
        if not difference <= TOLERANCE["fp32"]:
            raise BundleError(
                f"{bundle.reference}: the logits of the {file_format} file deviate by {difference:.2%}; not written, try another --format"
            )
        data = file.read_bytes()
    files, name = FileTree.of_file(resolve_storage(target))
    files.replace(name, data)
    return Exported(target, len(data), difference, written.name)


def _write_onnx(engine: TorchEngine, bundle: Bundle, path: Path) -> None:
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as missing:
        raise MissingDependencyError(f"{missing.name} is not installed: pip install 'cifar-ray[export]'") from None
    del onnxruntime, onnxscript
    program = torch.onnx.export(
        _Answering(engine),
        (_example(engine.manifest),),
        input_names=["images"],
        output_names=["logits", "probabilities"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        opset_version=ONNX_OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # noqa: S101
    model = program.model_proto
    for key, value in _about(bundle).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def _read_onnx(path: Path, bundle: Bundle) -> _FileEngine:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return _FileEngine(f"ONNX Runtime {onnxruntime.__version__}", lambda images: session.run(["logits"], {"images": images})[0])


def _write_torchscript(engine: TorchEngine, bundle: Bundle, path: Path) -> None:
    with torch.inference_mode():
        traced = torch.jit.trace(_Answering(engine), _example(engine.manifest), check_trace=False)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, str(path), _extra_files={key: value.encode() for key, value in _about(bundle).items()})


def _read_torchscript(path: Path, bundle: Bundle) -> _FileEngine:
    loaded = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return _FileEngine("TorchScript", lambda images: loaded(torch.from_numpy(images))[0].detach().numpy())


def _write_pt2(engine: TorchEngine, bundle: Bundle, path: Path) -> None:
    program = torch.export.export(_Answering(engine), (_example(engine.manifest),), dynamic_shapes=({0: torch.export.Dim("N")},))
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files=_about(bundle))


def _read_pt2(path: Path, bundle: Bundle) -> _FileEngine:
    with path.open("rb") as file:
        loaded = torch.export.load(file).module()
    return _FileEngine("torch.export", lambda images: loaded(torch.from_numpy(images))[0].detach().numpy())


def _write_safetensors(engine: TorchEngine, bundle: Bundle, path: Path) -> None:
    from safetensors.torch import save

    path.write_bytes(save(bundle.weights, metadata=_about(bundle)))  # `save_file` would create a file that only its owner can read


def _read_safetensors(path: Path, bundle: Bundle) -> _FileEngine:
    from safetensors.torch import load_file

    read = Bundle(bundle.manifest, load_file(path), bundle.name, bundle.version)
    return _FileEngine("safetensors", _in_fp32(read).logits)


_FORMATS: dict[ExportFormat, tuple[Any, Any]] = {
    "onnx": (_write_onnx, _read_onnx),
    "torchscript": (_write_torchscript, _read_torchscript),
    "pt2": (_write_pt2, _read_pt2),
    "safetensors": (_write_safetensors, _read_safetensors),
}


def _in_fp32(bundle: Bundle) -> TorchEngine:
    predictor = Predictor(bundle, precision="fp32", engine="torch")
    return TorchEngine(predictor.network, bundle.manifest, predictor.precision)


def _example(manifest: Manifest | NetworkInput) -> Tensor:
    return torch.zeros((2, manifest.image_size_px, manifest.image_size_px, 3), dtype=torch.uint8)


def _about(bundle: Bundle) -> dict[str, str]:
    """Metadata of the file; `encode` puts the checksum of the weights into the manifest."""
    manifest, size = bundle.manifest, bundle.manifest.image_size_px
    return {
        "cifar_ray.model": bundle.reference,
        "cifar_ray.class_names": json.dumps(manifest.class_names, ensure_ascii=False),
        "cifar_ray.input": f"uint8 [N, {size}, {size}, 3] RGB, other shapes made square by {manifest.resize_policy}",
        MANIFEST_KEY: encode(manifest.model_copy(update={"quantization": None}), bundle.weights, {})["manifest.json"].decode(),
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, which print and log their progress."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):  # noqa: PTH123
            yield
    finally:
        logging.disable(level)
