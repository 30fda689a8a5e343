"""Open Inference Protocol v2 without its transport: models as KServe and Triton describe them, and inference.

Source: https://github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import numpy as np
from starlette.exceptions import HTTPException

from cifar_ray.config.version import VERSION
from cifar_ray.errors import ImageError
from deployments.http.handlers import Api
from deployments.predicting.contract import ModelInfo, Picture
from deployments.predicting.pipeline import Outcome, Row
from deployments.protocols import protocol_schemas as schemas
from deployments.protocols.tensors import IMAGE, PIXELS, InputTensor, OutputTensor

SERVER: schemas.ServerMetadata = {"name": "cifar_ray", "version": VERSION, "extensions": ["classification", "binary_tensor_data"]}
PROBABILITIES = "probabilities"
_PLATFORM = "cifar_ray"


class RequestedOutput(NamedTuple):
    """An output that a request names.

    Attributes:
        name: name of the tensor.
        classes: classification extension: number of most likely classes to return as text; `None` to return the values.
    """

    name: str
    classes: object = None


def reference(api: Api, name: str, version: str | None) -> str:
    """Reference to the model of a request. A version is a number or an alias of the store; without one, the store chooses the version."""
    reference = api.resolve_alias(name) or ""
    return f"{reference.partition('@')[0]}@{version}" if version else reference


async def describe(api: Api, model_reference: str) -> schemas.ModelMetadata:
    """Metadata of a model. Its inputs are alternatives: a request sends one of them.

    Raises:
        UnknownModelError: if the model is not in the store.
        UnavailableError: if it cannot predict now.
    """
    model = await api.pipeline.model(model_reference)
    stored = next((entry for entry in await api.classifier.models() if entry.name == model.name), None)
    size_px, classes = model.image_size_px, len(model.class_names)
    labels: list[schemas.TensorMetadata] = [{"name": "labels", "datatype": "BOOL", "shape": [-1, classes]}]
    return {
        "name": model.name,
        "versions": [str(version) for version in (stored.versions if stored else (model.version,))],
        "platform": _PLATFORM,
        "inputs": [
            {"name": PIXELS, "datatype": "UINT8", "shape": [-1, size_px, size_px, 3]},
            {"name": IMAGE, "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, classes]},
            {"name": "class_id", "datatype": "INT64", "shape": [-1]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "abstains", "datatype": "BOOL", "shape": [-1]},
            *(labels if model.rules else ()),
        ],
    }


async def infer(
    classify: Callable[[Sequence[Picture]], Awaitable[Outcome]], inputs: Sequence[InputTensor], requested: Sequence[RequestedOutput]
) -> tuple[ModelInfo, list[OutputTensor]]:
    """Classify the pictures of a request.

    Args:
        classify: `Api.classify` with all arguments but the pictures.
        inputs: the inputs; exactly one is allowed.
        requested: outputs in the order of the response; empty means all.

    Raises:
        HTTPException: 400 or 413 for an input or output that the model does not have.
        ImageError: for the first picture that cannot be used; the protocol has no errors for single pictures.
        CifarRayError: as `classify`.
    """
    if len(inputs) != 1:
        raise HTTPException(400, f"expected one input, {PIXELS} or {IMAGE}, got {len(inputs)}")
    [tensor] = inputs
    # In a thread, because turning megabytes of text or numbers into arrays would block the event loop.
    pictures = await asyncio.to_thread(tensor.pictures) if isinstance(tensor.content, list) else tensor.pictures()
    outcome = await classify(pictures)
    return outcome.model, _outputs(outcome, requested)


def _outputs(outcome: Outcome, requested: Sequence[RequestedOutput]) -> list[OutputTensor]:
    rows = [_row(index, row, len(outcome.rows)) for index, row in enumerate(outcome.rows)]
    model, probabilities = outcome.model, np.stack([row.probabilities for row in rows])
    names, best = np.asarray(model.class_names, object), probabilities.argmax(axis=1)
    make: dict[str, Callable[[str], OutputTensor]] = {
        PROBABILITIES: lambda name: OutputTensor(name, "FP32", probabilities),
        "class_id": lambda name: OutputTensor(name, "INT64", best.astype(np.int64)),
        "label": lambda name: OutputTensor(name, "BYTES", names[best]),
        "abstains": lambda name: OutputTensor(name, "BOOL", np.array([row.abstains for row in rows], np.bool_)),
    }
    if (rules := model.rules) is not None:
        make["labels"] = lambda name: OutputTensor(name, "BOOL", rules.labels(probabilities))
    made = []
    for output in requested or map(RequestedOutput, make):
        if output.name not in make:
            raise HTTPException(400, f"output {output.name[:100]!r} not found. Available: {', '.join(make)}")
        tensor = make[output.name](output.name)
        made.append(tensor if output.classes is None else _most_likely(tensor, model, output.classes))
    return made


def _row(index: int, row: Row | ImageError, count: int) -> Row:
    if isinstance(row, ImageError):
        raise row if count == 1 else type(row)(f"picture {index} of {count} (from 0): {row}")
    return row


def _most_likely(tensor: OutputTensor, model: ModelInfo, classes: object) -> OutputTensor:
    """The classification extension: `probability:class_id:label` of the most likely classes."""
    if tensor.name != PROBABILITIES:
        raise HTTPException(400, f"output {tensor.name!r}: the parameter 'classification' is for {PROBABILITIES!r} only")
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        raise HTTPException(400, f"parameter 'classification': expected a whole number of at least 1, got {str(classes)[:20]!r}")
    order = np.argsort(-tensor.values, axis=1, kind="stable")[:, :classes]
    texts = [[f"{row[i]:f}:{i}:{model.class_names[i]}" for i in ids] for row, ids in zip(tensor.values, order.tolist(), strict=True)]
    return OutputTensor(tensor.name, "BYTES", np.array(texts, object))
