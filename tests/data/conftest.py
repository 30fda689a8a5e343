from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    root = tmp_path / "cache"
    monkeypatch.setenv("CIFAR_RAY_CACHE", str(root))
    return root


@pytest.fixture
def make_pictures() -> Callable[..., list[Path]]:
    """Writes `count` PNGs of random pixels into a folder; returns their paths."""
    generator = np.random.default_rng(0)

    def make(folder: Path, count: int = 3, size: tuple[int, int] = (8, 8)) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{index:03}.png" for index in range(count)]
        for path in paths:
            Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)
        return paths

    return make
