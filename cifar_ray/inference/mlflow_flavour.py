"""A bundle as an MLflow `pyfunc`: `mlflow.pyfunc.load_model("models:/NAME/1").predict(pictures)` returns the same as a server.

MLflow reads the name of this module from the model's `MLmodel` file, and calls `_load_pyfunc`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cifar_ray.errors import ImageError
from cifar_ray.inference.predictor import Predictor
from cifar_ray.inference.preprocess import decode_base64, preprocess
from cifar_ray.store import load_model

_TOP_K = 5
_BATCH = 64


class PictureModel:
    """Classifies picture files.

    Args:
        folder: folder of the bundle.
    """

    def __init__(self, folder: str) -> None:
        self._bundle = load_model(folder, folder)
        self._predictor = Predictor(self._bundle, "cpu")

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Classify pictures.

        Args:
            model_input: a data frame with a column `image`, or a list: contents of picture files as bytes, or in base64 as text.
            params: `top_k`, 5 by default.

        Returns:
            The response of a server's `POST /predict` for each picture: `class_id`, `class_name`, `confidence`, `abstain`, `top_k`,
            `probabilities`, and `labels` if the model gives several labels per picture; `{"error": TEXT}` for a picture that cannot be
            decoded.
        """
        pictures = list(model_input["image"] if hasattr(model_input, "columns") else model_input)
        top_k = int((params or {}).get("top_k", _TOP_K))
        answers: list[dict[str, Any]] = []
        for start in range(0, len(pictures), _BATCH):
            answers += self._answer(pictures[start : start + _BATCH], top_k)
        return answers

    def _answer(self, pictures: list[Any], top_k: int) -> list[dict[str, Any]]:
        manifest, decoded = self._bundle.manifest, list[Any]()
        for picture in pictures:
            try:
                data = decode_base64(picture) if isinstance(picture, str) else bytes(picture)
                decoded.append(preprocess(data, manifest.image_size_px, manifest.resize_policy))
            except ImageError as error:
                decoded.append(error)
        good = [one for one in decoded if not isinstance(one, ImageError)]
        rows = iter(self._rows(np.stack(good), top_k) if good else [])
        return [{"error": str(one)} if isinstance(one, ImageError) else next(rows) for one in decoded]

    def _rows(self, pixels: np.ndarray[Any, np.dtype[np.uint8]], top_k: int) -> list[dict[str, Any]]:
        found, names = self._predictor.predict(pixels), self._bundle.manifest.class_names
        rows = []
        for values, above, abstains in zip(found.probabilities, found.labels, found.abstains.tolist(), strict=True):
            rounded = [round(value, 6) for value in values.tolist()]
            order = np.argsort(-values, kind="stable").tolist()
            ranked = [{"class_id": i, "class_name": names[i], "probability": rounded[i]} for i in order[:top_k]]
            row: dict[str, Any] = {
                "class_id": order[0],
                "class_name": names[order[0]],
                "confidence": rounded[order[0]],
                "abstain": abstains,
                "top_k": ranked,
                "probabilities": dict(zip(names, rounded, strict=True)),
            }
            if self._bundle.manifest.task == "multi-label":
                shown = [i for place, i in enumerate(order) if place < top_k or above[i]]
                row["labels"] = [
                    {"class": names[i], "class_id": i, "probability": rounded[i], "above_threshold": bool(above[i])} for i in shown
                ]
            rows.append(row)
        return rows


def _load_pyfunc(path: str) -> PictureModel:
    return PictureModel(path)
