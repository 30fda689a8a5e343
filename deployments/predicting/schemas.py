"""The shapes of requests and answers, said once: mypy holds the code to them, and the OpenAPI document is made from them.

Typed dictionaries: an answer is built, checked before it ever runs, and written as it is.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

Probability = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0)]


class PictureInJson(TypedDict):
    """A picture as text."""

    image: Annotated[str, Field(description="base64, or a data URI: data:image/png;base64,…")]
    model: NotRequired[Annotated[str, Field(description="as ?model=")]]
    model_type: NotRequired[Annotated[str, Field(description="the same, for clients that call it so")]]


class ClassProbability(TypedDict):
    """One class and how likely it is."""

    class_id: int
    class_name: str
    probability: Probability


class Prediction(TypedDict):
    """What the model says of one picture."""

    class_id: Annotated[int, Field(description="of the most likely class")]
    class_name: str
    confidence: Annotated[Probability, Field(description="probability of the most likely class")]
    abstain: Annotated[bool, Field(description="the picture is unlike those that the model knows: better not believe it")]
    top_k: Annotated[list[ClassProbability], Field(description="most likely first")]
    probabilities: Annotated[dict[str, Probability], Field(description="of every class, by name")]


class Timings(TypedDict):
    """Where the time went, in ms."""

    decode: Annotated[Milliseconds, Field(description="picture → pixels")]
    queue: Annotated[Milliseconds, Field(description="way to the model and back, and waiting for a batch")]
    inference: Annotated[Milliseconds, Field(description="the forward pass of the batch")]
    total: Annotated[Milliseconds, Field(description="from the whole request read to the answer")]


class PredictAnswer(Prediction):
    """Answer to one picture."""

    model: str
    version: int
    timings_ms: Timings


class Problem(TypedDict):
    """What is wrong with a request (RFC 9457)."""

    type: str
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: Annotated[str, Field(description="one line: what is wrong and what to do")]


class BatchPrediction(Prediction):
    """What the model says of one picture of several."""

    index: Annotated[int, Field(ge=0, description="in the order sent")]
    filename: str | None


class BatchFailure(TypedDict):
    """Why one picture of several has no prediction."""

    index: Annotated[int, Field(ge=0, description="in the order sent")]
    filename: str | None
    error: Problem


class BatchAnswer(TypedDict):
    """Answer to several pictures, each on its own."""

    model: str
    version: int
    predictions: Annotated[list[BatchPrediction | BatchFailure], Field(description="one for each picture, in the order sent")]
    num_failed: Annotated[int, Field(ge=0, description="pictures that have an error instead")]
    timings_ms: Timings


class Explanation(TypedDict):
    """Where a model saw a class in a picture (Grad-CAM)."""

    model: str
    version: int
    class_id: int
    class_name: str
    heatmap: Annotated[
        list[list[Probability]], Field(description="rows of the picture as the network sees it; 1 where it speaks loudest for the class")
    ]


class Health(TypedDict):
    """The server runs."""

    status: Literal["ok"]


class Ready(TypedDict):
    """The server can predict."""

    status: Literal["ready"]
    model: str
    version: int


class Classes(TypedDict):
    """What the model tells apart."""

    model: str
    version: int
    classes: Annotated[list[str], Field(description="names, in the order of class_id")]


class LoadedVersion(TypedDict):
    """A version in memory, and how it computes."""

    version: int
    engine: Annotated[str, Field(description="torch or openvino: the faster one when it was loaded, unless the server was told")]
    precision: Annotated[str, Field(description="bf16, fp16 or fp32")]


class ModelEntry(TypedDict):
    """One name in the model store."""

    name: str
    versions: list[int]
    aliases: Annotated[dict[str, int], Field(description="versions by alias, e.g. production")]
    classes: Annotated[list[str], Field(description="of the version that the bare name means, in the order of class_id")]
    test_accuracy: Annotated[Probability | None, Field(description="of the same version; null if it was not measured")]
    loaded: Annotated[list[LoadedVersion], Field(description="the versions in memory, of the copy that answers")]
    problem: Annotated[str | None, Field(description="what is wrong with it, or null")]


class Models(TypedDict):
    """What the model store holds."""

    default: Annotated[str | None, Field(description="name@version that answers requests which name no model; null if none can")]
    models: list[ModelEntry]
    problem: Annotated[str | None, Field(description="what is wrong with the default, or null")]


class Confusion(TypedDict):
    """How often pictures of one class are taken for another."""

    true: Annotated[int, Field(ge=0, description="class_id of what they show")]
    predicted: Annotated[int, Field(ge=0, description="class_id of what the model says")]
    count: Annotated[int, Field(ge=1)]


class Mistake(TypedDict):
    """A picture that the model gets wrong."""

    true: int
    predicted: int
    confidence: Probability
    name: Annotated[str, Field(description="its file, or its number in the data set")]
    picture: Annotated[str, Field(description="at most 96 px wide and high: data:image/webp;base64,…")]


class Gallery(TypedDict):
    """What a model gets wrong."""

    split: Annotated[str, Field(description="which part of the data set they are, e.g. test")]
    class_names: Annotated[list[str], Field(description="in the order of class_id")]
    images: Annotated[list[int], Field(description="of each class")]
    correct: Annotated[list[int], Field(description="of each class, those named right")]
    confusions: Annotated[list[Confusion], Field(description="most frequent first, 10,000 at most")]
    mistakes: Annotated[list[Mistake], Field(description="the surest ones: at most 12 of each confusion and 1,000 in all")]


class GalleryAnswer(TypedDict):
    """The gallery of a model."""

    model: str
    version: int
    gallery: Annotated[Gallery | None, Field(description="null where the model was kept without one")]
