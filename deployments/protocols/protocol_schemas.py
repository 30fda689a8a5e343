"""Schemas of requests and responses of the other protocols, as in `deployments.predicting.schemas`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypeAliasType, TypedDict

_Shape = Annotated[list[int], Field(description="numbers of elements")]
_Parameters = Annotated[dict[str, Any], Field(description="of extensions")]


class ServerMetadata(TypedDict):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class Live(TypedDict):
    """The server runs."""

    live: Literal[True]


class ServerReady(TypedDict):
    """The server can predict."""

    ready: Literal[True]


class ModelReady(TypedDict):
    """The model can predict."""

    name: str
    ready: Literal[True]


class TensorMetadata(TypedDict):
    """A tensor that a model takes or returns."""

    name: str
    datatype: Annotated[str, Field(description="UINT8, BYTES, FP32, INT64 or BOOL")]
    shape: Annotated[list[int], Field(description="-1: any number of pictures")]


class ModelMetadata(TypedDict):
    """A model."""

    name: str
    versions: list[str]
    platform: str
    inputs: Annotated[list[TensorMetadata], Field(description="alternatives: send one of them")]
    outputs: list[TensorMetadata]


class SentTensor(TypedDict):
    """An input of a request."""

    name: Annotated[str, Field(description="pixels or image")]
    shape: _Shape
    datatype: Annotated[str, Field(description="UINT8 for pixels, BYTES for image")]
    parameters: NotRequired[_Parameters]
    data: NotRequired[Annotated[list[Any], Field(description="values, row-major or nested: pixels 0–255, or base64 text of picture files")]]


class NamedOutput(TypedDict):
    """An output that a request names."""

    name: str
    parameters: NotRequired[_Parameters]


class InferRequest(TypedDict):
    """A request for inference."""

    id: NotRequired[str]
    parameters: NotRequired[_Parameters]
    inputs: list[SentTensor]
    outputs: NotRequired[Annotated[list[NamedOutput], Field(description="default: all")]]


class ReturnedTensor(TypedDict):
    """An output of a response."""

    name: str
    datatype: str
    shape: _Shape
    parameters: NotRequired[_Parameters]
    data: NotRequired[Annotated[list[Any], Field(description="values, row-major; absent if they follow as raw bytes")]]


class InferAnswer(TypedDict):
    """The response for inference."""

    model_name: str
    model_version: str
    id: NotRequired[Annotated[str, Field(description="as in the request")]]
    outputs: list[ReturnedTensor]


class InferenceError(TypedDict):
    """An error of the Open Inference Protocol."""

    error: Annotated[str, Field(description="one line: what is wrong and what to do")]


TorchServePrediction = TypeAliasType(
    "TorchServePrediction",
    Annotated[dict[str, Annotated[float, Field(ge=0, le=1)]], Field(description="probability by class name, most likely first")],
)


class Ping(TypedDict):
    """The server can predict."""

    status: Literal["Healthy"]


class TorchServeError(TypedDict):
    """An error of TorchServe."""

    code: Annotated[int, Field(ge=400, le=599)]
    type: str
    message: Annotated[str, Field(description="one line: what is wrong and what to do")]
