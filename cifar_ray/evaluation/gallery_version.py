"""Gives a model the gallery that training would have given it."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

from cifar_ray.evaluation.model_evaluation import ModelEvaluation
from cifar_ray.store import Bundle
from cifar_ray.store.gallery import GALLERY_FILE, Judged, encode_gallery


def with_gallery(bundle: Bundle, evaluation: ModelEvaluation) -> Bundle:
    """The same model with its confusion matrix and mistakes attached; not kept anywhere yet.

    Args:
        bundle: stays as it is.
        evaluation: of it.
    """
    images = evaluation.data.images
    judged = Judged.of(evaluation.logits, images.labels, bundle.manifest.temperature)
    gallery = encode_gallery(judged, images.images, images.class_names, images.name_of, evaluation.data.split)
    manifest = bundle.manifest.model_copy(update={"created_at": datetime.now(UTC)})
    return dataclasses.replace(bundle, manifest=manifest, attachments={**bundle.attachments, GALLERY_FILE: gallery})
