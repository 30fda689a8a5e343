"""The formats of exported files: functions that write a file, and run it with the program that its users will use."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cifar_ray.config.version import VERSION
from cifar_ray.errors import MissingDependencyError
from cifar_ray.inference.exporting.answers import PredictionGraph, SquareImageGraph, score_threshold
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import Bundle
from cifar_ray.store.bundle import encode
from cifar_ray.store.manifest import MANIFEST_KEY
from cifar_ray.store.trust_file import read_trust

ExportFormat = Literal["onnx", "torchscript", "pt2", "safetensors"]
Arrays = Sequence[npt.NDArray[Any]]
Run = Callable[[npt.NDArray[np.uint8]], Arrays]  # from images to the first outputs of `PredictionGraph.OUTPUTS`

ONNX_OPSET = 18
_INPUT = "images"
_DYNAMIC = (dict.fromkeys(range(3), torch.export.Dim.DYNAMIC),)  # number, height and width of the pictures are variable


@dataclass(frozen=True)
class FileFormat:
    """A format of exported files.

    Attributes:
        suffix: suffix of file names.
        takes_any_size: whether pictures may have any size; if not, they must be square, with the size of the network.
        write: writes a bundle to a path; the predictor holds its network in fp32.
        read: returns the name of the program that runs the file, and a function that runs the file.
    """

    suffix: str
    takes_any_size: bool
    write: Callable[[Bundle, Predictor, Path], None]
    read: Callable[[Bundle, Path], tuple[str, Run]]


def _write_onnx(bundle: Bundle, predictor: Predictor, path: Path) -> None:
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as missing:
        raise MissingDependencyError(f"{missing.name} is not installed: pip install 'cifar-ray[export]'") from None
    del onnxruntime, onnxscript
    program = torch.onnx.export(
        _answers(bundle, predictor),
        (_example(bundle, predictor),),
        input_names=[_INPUT],
        output_names=[*PredictionGraph.OUTPUTS],
        dynamic_shapes=_DYNAMIC,
        opset_version=ONNX_OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # noqa: S101
    model = program.model_proto
    for key, value in (_about(bundle) | _about_answers(bundle)).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def _read_onnx(bundle: Bundle, path: Path) -> tuple[str, Run]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return f"ONNX Runtime {onnxruntime.__version__}", lambda images: session.run([*PredictionGraph.OUTPUTS], {_INPUT: images})


def _write_pt2(bundle: Bundle, predictor: Predictor, path: Path) -> None:
    program = torch.export.export(_answers(bundle, predictor), (_example(bundle, predictor),), dynamic_shapes=_DYNAMIC)
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files=_about(bundle) | _about_answers(bundle))


def _read_pt2(bundle: Bundle, path: Path) -> tuple[str, Run]:
    with path.open("rb") as file:
        loaded = torch.export.load(file).module()
    return "torch.export", _run_in_torch(loaded)


def _write_torchscript(bundle: Bundle, predictor: Predictor, path: Path) -> None:
    squares, size = SquareImageGraph(predictor.network, bundle.manifest, read_trust(bundle)), bundle.manifest.image_size_px
    about = _about(bundle) | {"cifar_ray.input": f"uint8 [N, {size}, {size}, 3] RGB, made square by {bundle.manifest.resize_policy}"}
    with torch.inference_mode():
        traced = torch.jit.trace(squares, torch.zeros((2, size, size, 3), dtype=torch.uint8), check_trace=False)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, str(path), _extra_files={key: value.encode() for key, value in about.items()})


def _read_torchscript(bundle: Bundle, path: Path) -> tuple[str, Run]:
    return "TorchScript", _run_in_torch(torch.jit.load(str(path)))  # type: ignore[no-untyped-call]


def _write_safetensors(bundle: Bundle, predictor: Predictor, path: Path) -> None:
    from safetensors.torch import save

    path.write_bytes(save(bundle.weights, metadata=_about(bundle)))  # `save_file` would create a file that only the owner can read


def _read_safetensors(bundle: Bundle, path: Path) -> tuple[str, Run]:
    from safetensors.torch import load_file

    predictor = Predictor(Bundle(bundle.manifest, load_file(path), bundle.name, bundle.version), precision="fp32", engine="torch")
    return "safetensors", lambda images: [predictor.predict(images).logits]


FORMATS: dict[ExportFormat, FileFormat] = {
    "onnx": FileFormat(".onnx", True, _write_onnx, _read_onnx),
    "torchscript": FileFormat(".torchscript.pt", False, _write_torchscript, _read_torchscript),
    "pt2": FileFormat(".pt2", True, _write_pt2, _read_pt2),
    "safetensors": FileFormat(".safetensors", False, _write_safetensors, _read_safetensors),
}


def _run_in_torch(module: nn.Module) -> Run:
    def run(images: npt.NDArray[np.uint8]) -> Arrays:
        with torch.inference_mode():
            return [output.numpy() for output in module(torch.from_numpy(images))]

    return run


def _answers(bundle: Bundle, predictor: Predictor) -> PredictionGraph:
    return PredictionGraph(predictor.network, bundle.manifest, read_trust(bundle)).eval()


def _example(bundle: Bundle, predictor: Predictor) -> Tensor:
    size = bundle.manifest.image_size_px
    return torch.zeros((2, 2 * size + 1, 3 * size + 1, 3), dtype=torch.uint8)  # arbitrary sides, so that all stay variable


def _about(bundle: Bundle) -> dict[str, str]:
    """Metadata of every file; `encode` puts the checksum of the weights into the manifest."""
    manifest = bundle.manifest.model_copy(update={"quantization": None})
    descriptions = json.dumps(manifest.class_descriptions, ensure_ascii=False)
    return {
        "cifar_ray.model": bundle.reference,
        "cifar_ray.release": VERSION,
        "cifar_ray.class_names": json.dumps(manifest.class_names, ensure_ascii=False),
        MANIFEST_KEY: encode(manifest, bundle.weights, {})["manifest.json"].decode(),
    } | ({"cifar_ray.class_descriptions": descriptions} if manifest.class_descriptions else {})


def _about_answers(bundle: Bundle) -> dict[str, str]:
    """Metadata of an `PredictionGraph` graph for its clients: task, input, outputs and thresholds, in JSON."""
    trust = read_trust(bundle)
    given = "the most likely class" if trust.rules is None else "from the threshold of the label on"
    return {
        "cifar_ray.task": bundle.manifest.task,
        "cifar_ray.input": json.dumps({_INPUT: "uint8 [N, H, W, 3], upright RGB pictures of any size in sRGB"}),
        "cifar_ray.outputs": json.dumps(
            {
                "logits": "float32 [N, C]",
                "probabilities": "float32 [N, C], calibrated, in the order of class_names",
                "labels": f"bool [N, C], {given}",
                "score": "float32 [N], lower for pictures that are less like the validation pictures",
                "abstains": "bool [N], none of the classes: the score is below its threshold",
            }
        ),
        "cifar_ray.label_thresholds": json.dumps(None if trust.rules is None else trust.rules.thresholds),
        "cifar_ray.score_threshold": json.dumps(score_threshold(trust)),
    }
