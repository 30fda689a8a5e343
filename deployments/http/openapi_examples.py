"""Examples of requests and responses for the OpenAPI document. Tests check them against the schemas."""

from __future__ import annotations

from typing import Any

from deployments.predicting import schemas

# 1 × 1 px, PNG
PICTURE_BASE64 = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGOoWBAFAAMGAXOppMqEAAAAAElFTkSuQmCC"
_THUMBNAIL = f"data:image/png;base64,{PICTURE_BASE64}"

_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_PROBABILITIES = [0.002104, 0.001533, 0.012907, 0.031877, 0.014218, 0.008112, 0.912204, 0.009874, 0.004021, 0.00315]
_MODEL: dict[str, Any] = {"model": "cifar10", "version": 1}
_TIMINGS: schemas.Timings = {"decode": 0.92, "queue": 6.65, "inference": 4.33, "total": 11.98}
_FROG: schemas.Prediction = {
    "class_id": 6,
    "class_name": "frog",
    "confidence": 0.912204,
    "abstain": False,
    "top_k": [
        {"class_id": 6, "class_name": "frog", "probability": 0.912204},
        {"class_id": 3, "class_name": "cat", "probability": 0.031877},
    ],
    "probabilities": dict(zip(_CLASSES, _PROBABILITIES, strict=True)),
}
_BROKEN: schemas.Problem = {
    "type": "about:blank",
    "title": "Unprocessable Entity",
    "status": 422,
    "detail": "picture: empty, damaged or in an unsupported format. Supported: JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF, HEIC",
}

_CAPTURE = {
    "key": "rBOQ7vGm#0",
    "at": "2026-11-28T09:30:00+00:00",
    "model": "cifar10@1",
    "predicted": "cat",
    "confidence": 0.4312,
    "abstain": False,
    "disagrees": False,
    "label": None,
    "reviewed_by": None,
}

ANSWERS: dict[type, Any] = {
    schemas.PredictAnswer: _MODEL | _FROG | {"timings_ms": _TIMINGS},
    schemas.BatchAnswer: _MODEL
    | {
        "predictions": [{"index": 0, "filename": "frog.jpg", **_FROG}, {"index": 1, "filename": "broken.png", "error": _BROKEN}],
        "num_failed": 1,
        "timings_ms": _TIMINGS,
    },
    schemas.Explanation: _MODEL | {"class_id": 6, "class_name": "frog", "heatmap": [[0.0, 0.25], [0.5, 1.0]]},
    schemas.GalleryAnswer: _MODEL
    | {
        "gallery": {
            "split": "test",
            "class_names": _CLASSES,
            "images": [1000] * 10,
            "correct": [904, 946, 846, 784, 889, 837, 925, 921, 948, 941],
            "confusions": [{"true": 3, "predicted": 5, "count": 107}],
            "mistakes": [{"true": 3, "predicted": 5, "confidence": 0.9921, "name": "test/cat/0012.jpg", "picture": _THUMBNAIL}],
        }
    },
    schemas.Health: {"status": "ok"},
    schemas.Ready: {"status": "ready", **_MODEL},
    schemas.Classes: _MODEL | {"task": "single-label", "classes": _CLASSES},
    schemas.Models: {
        "default": "cifar10@1",
        "models": [
            {
                "name": "cifar10",
                "versions": [1],
                "aliases": {"production": 1},
                "classes": _CLASSES,
                "class_descriptions": {"frog": "Frogs and toads, from tadpoles on."},
                "task": "single-label",
                "test_accuracy": 0.8941,
                "test_map": None,
                "loaded": [{"version": 1, "engine": "openvino", "precision": "bf16"}],
                "problem": None,
            }
        ],
        "problem": None,
    },
    schemas.CapturesAnswer: {"captures": [_CAPTURE], "num_open": 1, "num_reviewed": 0},
    schemas.CaptureEntry: _CAPTURE | {"label": "frog", "reviewed_by": "alice"},
    schemas.FeedbackAnswer: {"request_id": "rBOQ7vGm", "label": "frog", "captured": True},
    schemas.Deleted: {"pictures": 1, "reviews": 1},
}

DETAILS = {
    400: "no picture found. Send a file in the field 'image' (fields received: 'photo')",
    401: "API key missing. Send the header Authorization: Bearer KEY, or X-API-Key: KEY",
    403: "the API key of laptop is revoked. Request a new one from the operator of this server",
    404: "model 'fish' not found. Available: cifar10@1",
    408: "the request did not arrive within 30 s; try again",
    409: "a table 'spring.parquet' exists or is being written; choose another output",
    413: "the picture has 12,345,678 bytes; the maximum is 10,000,000",
    415: "content type 'text/plain' is not supported. Send multipart/form-data with a field 'image', "
    "the picture as image/* or application/octet-stream, or application/json",
    422: _BROKEN["detail"],
    429: "rate limit of laptop: 600 requests per minute. Try again in 1 s",
    500: "internal error; the server's log has the details",
    503: "the queue is full (256 pictures); try again later",
    504: "no answer within 30 s: the server is busy or still loads the model; try again",
}
