"""The examples of docs/your-data.md do what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_ray.config import TrainConfig
from cifar_ray.data import load_splits

PAGE = (Path(__file__).parents[2] / "docs" / "your-data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"### (.+?)\n.*?```python\n(.*?)```\n\n```sh\ncifar-ray train --data-dir (\S+)\n", PAGE, re.DOTALL)


def test_each_source_has_an_example() -> None:
    assert [title for title, _, _ in EXAMPLES] == ["A table of paths", "WebDataset tars", "Hugging Face datasets", "Pictures in Parquet"]


@pytest.mark.parametrize(("title", "code", "place"), EXAMPLES, ids=[title for title, _, _ in EXAMPLES])
def test_the_example_of_a_source_can_be_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, title: str, code: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for number in range(10):
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(tmp_path / "pictures" / f"{number}.png")
    exec(code, {})  # noqa: S102
    splits = load_splits(TrainConfig(dataset="folder", data_dir=place, image_size=8, val_fraction=0.2, test_fraction=0.0))
    found = {int(image[0, 0, 0]) // 20: label for _, part in splits for image, label in zip(part.images, part.labels, strict=True)}
    assert found == {number: number % 2 for number in range(10)}
    assert splits.train.class_names == (("0", "1") if title == "WebDataset tars" else ("even", "odd"))
    assert (splits.train.weights is not None) == (title == "A table of paths")
    assert splits.class_descriptions == ({"even": "Two divides it."} if title == "A table of paths" else {})
    if title in ("A table of paths", "WebDataset tars"):
        assert len(splits.train) == 6
