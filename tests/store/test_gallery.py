"""The confusion matrix and the mistakes that a bundle brings along."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from cifar_ray.store.gallery import SplitPredictions, count_pictures, encode_gallery
from deployments.predicting import schemas


def gallery(count: int, classes: int, *, side_px: int = 32, wrong: float = 0.3, seed: int = 0) -> tuple[dict[str, Any], SplitPredictions]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    predicted = np.where(rng.random(count) < wrong, rng.integers(0, classes, count), labels)
    judged = SplitPredictions(labels, predicted, rng.uniform(1 / classes, 1, count))
    images = np.broadcast_to(rng.integers(0, 256, (64, side_px, side_px, 3), np.uint8), (64, side_px, side_px, 3))
    images = images[np.arange(count) % 64] if count < 5000 else np.broadcast_to(images[:1], (count, side_px, side_px, 3))
    content = encode_gallery(judged, images, tuple(f"class {i}" for i in range(classes)), "#{}".format, "test")
    assert len(content) < 2_000_000
    return json.loads(content), judged


def test_it_has_the_shape_that_the_api_documents_and_counts_every_image() -> None:
    made, judged = gallery(2000, 10)
    TypeAdapter(schemas.Gallery).validate_python(made, strict=True, extra="forbid")
    assert sum(made["images"]) == 2000
    assert sum(made["correct"]) == (judged.labels == judged.predicted).sum()
    assert sum(one["count"] for one in made["confusions"]) == (judged.labels != judged.predicted).sum()
    counts = [one["count"] for one in made["confusions"]]
    assert counts == sorted(counts, reverse=True)


def test_each_cell_shows_its_surest_mistakes_and_at_most_twelve() -> None:
    made, judged = gallery(4000, 4, wrong=0.9)
    for true in range(4):
        for predicted in set(range(4)) - {true}:
            shown = [one["confidence"] for one in made["mistakes"] if (one["true"], one["predicted"]) == (true, predicted)]
            of_cell = judged.confidence[(judged.labels == true) & (judged.predicted == predicted)]
            assert shown == pytest.approx(np.sort(of_cell)[::-1][:12], abs=1e-4)


def test_a_mistake_names_its_image_and_shows_it() -> None:
    pixels = np.zeros((2, 200, 200, 3), np.uint8)
    pixels[1, :, :] = (200, 30, 30)
    judged = SplitPredictions(np.array([0, 1]), np.array([0, 0]), np.array([0.9, 0.8]))
    made = json.loads(encode_gallery(judged, pixels, ("a", "b"), ["right.png", "wrong.png"].__getitem__, "val"))
    [mistake] = made["mistakes"]
    assert (made["split"], mistake["name"], mistake["true"], mistake["predicted"], mistake["confidence"]) == ("val", "wrong.png", 1, 0, 0.8)
    head, _, data = mistake["picture"].partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    assert (head, picture.format or "WEBP", picture.size) == ("data:image/webp;base64", "WEBP", (200, 200))
    np.testing.assert_allclose(picture.getpixel((100, 100)), (200, 30, 30), atol=12)


@pytest.mark.parametrize(("count", "classes", "side_px"), [(3000, 20, 224), (60_000, 1000, 32)])
def test_it_stays_small_whatever_the_data_and_spreads_its_pictures_over_the_cells(count: int, classes: int, side_px: int) -> None:
    made, _ = gallery(count, classes, side_px=side_px, wrong=0.6)
    assert 100 < len(made["mistakes"]) <= 1000
    cells = {(one["true"], one["predicted"]) for one in made["mistakes"]}
    assert len(cells) >= min(len(made["mistakes"]), classes * (classes - 1)) * 0.9
    assert len(made["confusions"]) <= 10_000


def test_a_model_without_mistakes_has_an_empty_gallery() -> None:
    made, _ = gallery(100, 3, wrong=0.0)
    assert (made["confusions"], made["mistakes"]) == ([], [])


def sides(made: dict[str, Any]) -> set[int]:
    found = (Image.open(io.BytesIO(base64.b64decode(one["picture"].partition(",")[2]))) for one in made["mistakes"])
    return {picture.width for picture in found}


def test_photographs_are_large_where_there_are_few_and_small_images_keep_their_size() -> None:
    few, _ = gallery(60, 3, side_px=320)
    assert sides(few) == {224}
    many, _ = gallery(1000, 10, side_px=320, wrong=0.9)
    assert sides(many) == {96}
    assert sides(gallery(60, 3, side_px=32)[0]) == {32}


@pytest.mark.parametrize("limit", [0, 5])
def test_the_number_of_pictures_can_be_limited_and_the_matrix_stays(limit: int) -> None:
    judged = SplitPredictions(np.arange(20) % 2, np.zeros(20, np.int64), np.linspace(0.5, 1, 20))
    content = encode_gallery(judged, np.zeros((20, 8, 8, 3), np.uint8), ("a", "b"), "#{}".format, "test", limit)
    made = json.loads(content)
    TypeAdapter(schemas.Gallery).validate_python(made, strict=True, extra="forbid")
    assert len(made["mistakes"]) == count_pictures(content) == limit
    assert made["confusions"] == [{"true": 1, "predicted": 0, "count": 10}]
    assert ("#" in content.decode()) == (limit > 0)  # nor do the names of files stay
