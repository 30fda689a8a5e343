"""Schemas of requests and responses: mypy checks the code against them, and the OpenAPI document contains them.

They are typed dictionaries: mypy checks a response before it runs, and nothing converts or validates it at run time.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from cifar_ray.config import TaskName

Probability = Annotated[float, Field(ge=0, le=1)]
Task = Annotated[TaskName, Field(description="multi-label: a picture may have any number of the classes as labels")]
Milliseconds = Annotated[float, Field(ge=0)]


class PictureInJson(TypedDict):
    """A picture as base64 text."""

    image: Annotated[str, Field(description="base64, or a data URI: data:image/png;base64,…")]
    model: NotRequired[Annotated[str | None, Field(description="model, as in ?model=")]]
    model_type: NotRequired[Annotated[str | None, Field(description="alternative name of the field model, for compatibility")]]


class ClassProbability(TypedDict):
    """One class and its probability."""

    class_id: int
    class_name: str
    probability: Probability


# Defined by a call, because the key "class" is a keyword of Python
Label = TypedDict("Label", {"class": str, "class_id": int, "probability": Probability, "above_threshold": bool})
Label.__doc__ = "A label and whether the picture has it, by the threshold that was chosen for the class on validation pictures."


class Prediction(TypedDict):
    """Prediction for one picture."""

    class_id: Annotated[int, Field(description="class_id of the most likely class")]
    class_name: str
    confidence: Annotated[Probability, Field(description="probability of the most likely class")]
    abstain: Annotated[bool, Field(description="true if the picture is unlike the training images: do not rely on the prediction")]
    top_k: Annotated[list[ClassProbability], Field(description="most likely first")]
    probabilities: Annotated[dict[str, Probability], Field(description="probability of each class, by class name")]
    labels: NotRequired[
        Annotated[
            list[Label],
            Field(
                description="only from models with several labels a picture: the labels above their thresholds and the top_k most "
                "likely classes, most likely first"
            ),
        ]
    ]


class Timings(TypedDict):
    """Time per stage, in ms."""

    decode: Annotated[Milliseconds, Field(description="decoding and resizing the picture")]
    queue: Annotated[Milliseconds, Field(description="waiting for a batch, and transfer to the model and back")]
    inference: Annotated[Milliseconds, Field(description="forward pass of the batch")]
    total: Annotated[Milliseconds, Field(description="from the end of the request to the response")]


class PredictAnswer(Prediction):
    """Response for one picture."""

    model: str
    version: int
    timings_ms: Timings


class Problem(TypedDict):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: Annotated[str, Field(description="one line: what is wrong and what to do")]


class BatchPrediction(Prediction):
    """Prediction for one picture of a batch."""

    index: Annotated[int, Field(ge=0, description="position in the request, from 0")]
    filename: str | None


class BatchFailure(TypedDict):
    """Error for one picture of a batch."""

    index: Annotated[int, Field(ge=0, description="position in the request, from 0")]
    filename: str | None
    error: Problem


class BatchAnswer(TypedDict):
    """Response for several pictures."""

    model: str
    version: int
    predictions: Annotated[
        list[BatchPrediction | BatchFailure], Field(description="prediction or error of each picture, in the order sent")
    ]
    num_failed: Annotated[int, Field(ge=0, description="number of pictures with an error")]
    timings_ms: Timings


class Explanation(TypedDict):
    """Heatmap of a class in a picture (Grad-CAM)."""

    model: str
    version: int
    class_id: int
    class_name: str
    heatmap: Annotated[
        list[list[Probability]], Field(description="rows of the network's input; 1 marks the strongest evidence for the class")
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
    """The classes of a model."""

    model: str
    version: int
    task: Task
    classes: Annotated[list[str], Field(description="class names, in the order of class_id")]


class LoadedVersion(TypedDict):
    """A version in memory with its engine and precision."""

    version: int
    engine: Annotated[str, Field(description="torch or openvino: the one configured, else the faster one at loading time")]
    precision: Annotated[str, Field(description="bf16, fp16 or fp32")]


class ModelEntry(TypedDict):
    """One name in the model store."""

    name: str
    versions: list[int]
    aliases: Annotated[dict[str, int], Field(description="version by alias, for example production")]
    classes: Annotated[list[str], Field(description="class names of the version that the bare name refers to, in the order of class_id")]
    class_descriptions: Annotated[
        dict[str, str], Field(description="description by class name, of the same version; only of classes that have one")
    ]
    task: Task
    test_accuracy: Annotated[Probability | None, Field(description="accuracy of the same version; null if not measured")]
    test_map: Annotated[
        Probability | None,
        Field(description="mean average precision of the same version, for several labels a picture; null if not measured"),
    ]
    loaded: Annotated[list[LoadedVersion], Field(description="versions in the memory of the replica that answers")]
    problem: Annotated[str | None, Field(description="what is wrong with the model, or null")]


class Models(TypedDict):
    """The models in the store."""

    default: Annotated[str | None, Field(description="name@version for requests that name no model; null if none is available")]
    models: list[ModelEntry]
    problem: Annotated[str | None, Field(description="what is wrong with the default model, or null")]


class Confusion(TypedDict):
    """Number of pictures of one class that are predicted as another."""

    true: Annotated[int, Field(ge=0, description="class_id of the true class")]
    predicted: Annotated[int, Field(ge=0, description="class_id of the predicted class")]
    count: Annotated[int, Field(ge=1)]


class Mistake(TypedDict):
    """A picture that the model misclassifies."""

    true: int
    predicted: int
    confidence: Probability
    name: Annotated[str, Field(description="file of the picture, or its number in the data set")]
    picture: Annotated[str, Field(description="at most 224 px wide and high, 96 px if there are more than 100: data:image/webp;base64,…")]


class Gallery(TypedDict):
    """A model's mistakes."""

    split: Annotated[str, Field(description="part of the data set, for example test")]
    class_names: Annotated[list[str], Field(description="class names, in the order of class_id")]
    images: Annotated[list[int], Field(description="number of images of each class")]
    correct: Annotated[list[int], Field(description="number of correct predictions of each class")]
    confusions: Annotated[list[Confusion], Field(description="most frequent first, at most 10,000")]
    mistakes: Annotated[list[Mistake], Field(description="highest confidence first: at most 12 per confusion and 1,000 in total")]


class GalleryAnswer(TypedDict):
    """The gallery of a model."""

    model: str
    version: int
    gallery: Annotated[Gallery | None, Field(description="null if the model was saved without one")]


class CaptureEntry(TypedDict):
    """A captured picture and what people said about it."""

    key: Annotated[str, Field(description="names the picture: the id of the request, #, and its place in it")]
    at: str
    model: Annotated[str, Field(description="name@version that answered")]
    predicted: Annotated[str, Field(description="the most likely class; several labels with commas between them")]
    confidence: Probability
    abstain: bool
    disagrees: Annotated[bool, Field(description="a version on trial gave another answer")]
    label: Annotated[str | None, Field(description="label that a person gave; empty: none of the classes; null: not reviewed yet")]
    reviewed_by: str | None


class CapturesAnswer(TypedDict):
    """Captured pictures."""

    captures: list[CaptureEntry]
    num_open: int
    num_reviewed: int


class FeedbackAnswer(TypedDict):
    """Feedback that was stored."""

    request_id: str
    label: str
    captured: Annotated[bool, Field(description="whether the picture is captured at this moment; its shard is written within ten seconds")]


class Deleted(TypedDict):
    """What was deleted."""

    pictures: int
    reviews: int


class JobEntry(TypedDict):
    """A job that predicts many pictures."""

    id: str
    state: Annotated[str, Field(description="queued, running, done, failed or cancelled")]
    source: str
    model: Annotated[str, Field(description="name@version that predicts")]
    output: Annotated[str, Field(description="name of the table in the storage's folder predictions")]
    by: Annotated[str, Field(description="holder of the API key")]
    created_at: str
    started_at: str | None
    finished_at: str | None
    pictures: Annotated[int | None, Field(description="number of pictures; null until they are listed")]
    done: Annotated[int, Field(description="pictures whose rows are written")]
    broken: Annotated[int, Field(description="of these, pictures that cannot be used; their rows have an error")]
    problem: Annotated[str | None, Field(description="why it failed, or why it waits for another attempt")]


class JobsAnswer(TypedDict):
    """Jobs: the unfinished ones, and the last 200 of the others."""

    jobs: list[JobEntry]
