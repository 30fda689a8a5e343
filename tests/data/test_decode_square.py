"""A large JPEG is decoded at a fraction of its size; nothing else changes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cifar_ray.config import TrainConfig
from cifar_ray.data import decode, load_splits
from cifar_ray.data.decode import decode_image, decode_square, fit
from cifar_ray.data.decoding.formats import FORMATS
from cifar_ray.errors import ImageError, ImageTooLargeError
from cifar_ray.inference.preprocess import preprocess

POLICIES = ("pad", "crop", "squash")


def scene(width: int, height: int) -> Image.Image:
    """Smooth colours with a bright border of an eighth, so that a shift shows."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 / width, y * 255 / height, (x / width + y / height) * 100], -1)
    pixels[: height // 8] = pixels[:, : width // 8] = 230
    return Image.fromarray(pixels.astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95, "subsampling": 0} if kind in ("JPEG", "MPO") else {}) | options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def difference(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("size", [(127, 127), (100, 60), (30, 31), (32, 32), (1, 90)])
def test_small_pictures_have_exactly_the_pixels_of_decode_and_fit(size: tuple[int, int], kind: str, policy: Any) -> None:
    options: dict[str, Any] = {"exif": turned(6)} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    data = encode(scene(*size), kind, **options)
    assert np.array_equal(decode_square(data, 32, policy), fit(decode_image(data), 32, policy))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "JPEG"])
def test_large_pictures_of_other_formats_have_them_too(kind: str, policy: Any) -> None:
    data = encode(scene(600, 400), kind)
    assert np.array_equal(decode_square(data, 32, policy), fit(decode_image(data), 32, policy))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(1601, 1203), (1207, 1609), (1025, 1025), (900, 300), (513, 260)])
def test_large_jpegs_look_the_same_to_within_a_few_levels(size: tuple[int, int], orientation: int, policy: Any) -> None:
    """Sides that no fraction divides: the last column of the smaller picture lies partly outside."""
    data = encode(scene(*size), exif=turned(orientation))
    square = decode_square(data, 32, policy)
    assert (square.dtype, square.shape, square.flags.writeable) == (np.uint8, (32, 32, 3), True)
    assert difference(square, fit(decode_image(data), 32, policy)) <= 10


@pytest.mark.parametrize(
    ("size", "size_px", "policy", "decoded"),
    [
        ((4000, 3000), 32, "pad", (500, 375)),
        ((4000, 3000), 224, "pad", (500, 375)),
        ((4000, 3000), 224, "crop", (1000, 750)),
        ((4000, 3000), 224, "squash", (1000, 750)),
        ((4000, 3000), 800, "pad", (2000, 1500)),
        ((400, 300), 224, "pad", (400, 300)),
        ((4000, 100), 32, "pad", (500, 13)),
        ((4000, 100), 32, "crop", (4000, 100)),
    ],
)
def test_it_is_decoded_with_at_least_twice_the_pixels_of_the_result(
    size: tuple[int, int], size_px: int, policy: Any, decoded: tuple[int, int]
) -> None:
    image, box = decode._decode(encode(Image.new("L", size)), 50_000_000, (size_px, policy))
    assert image.size == decoded
    assert (box[2] / box[3]) == pytest.approx(size[0] / size[1])


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_grey_cmyk_and_progressive_jpegs_too(mode: str, options: dict[str, Any]) -> None:
    data = encode(scene(803, 601).convert(mode), **options)
    assert difference(decode_square(data, 32, "pad"), fit(decode_image(data), 32, "pad")) <= 10


def test_the_first_picture_of_several_in_a_jpeg_is_taken() -> None:
    data = encode(scene(800, 600), "MPO", save_all=True, append_images=[Image.new("RGB", (800, 600))])
    assert difference(decode_square(data, 32, "pad"), fit(decode_image(data), 32, "pad")) <= 10


def test_the_limit_is_that_of_the_whole_picture() -> None:
    data = encode(scene(800, 600))
    decode_square(data, 8, "pad", max_pixels=480_000)
    with pytest.raises(ImageTooLargeError, match="maximum is 479,999 pixels"):
        decode_square(data, 8, "pad", max_pixels=479_999)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_truncated_large_jpeg_is_an_error(tmp_path: Path, share: float) -> None:
    data = encode(scene(800, 600))
    path = tmp_path / "torn.jpg"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ImageError, match=r"torn\.jpg"):
        decode_square(path, 32, "pad")


def test_training_streaming_and_serving_see_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_RAY_CACHE", str(tmp_path / "cache"))
    for number, name in enumerate(("a", "b")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.jpg").write_bytes(encode(scene(1000 + number, 700), exif=turned(6)))
    config = TrainConfig(dataset="folder", data_dir=str(tmp_path / "photos"), val_fraction=0, test_fraction=0)
    trained = load_splits(config).train
    from cifar_ray.data import open_splits

    streamed = open_splits(config.model_copy(update={"stream": "always"})).train
    (block,) = streamed.feed(np.arange(2))  # type: ignore[union-attr]
    served = [preprocess((tmp_path / "photos" / trained.name_of(row)).read_bytes(), 32, "pad") for row in range(2)]
    assert np.array_equal(trained.images, block)
    assert np.array_equal(trained.images, np.stack(served))


def test_squash_shows_everything_and_no_border() -> None:
    image = Image.new("RGB", (64, 16), "white")
    image.paste("red", (0, 0, 32, 16))
    squashed = fit(image, 16, "squash")
    assert squashed[:, 2].tolist() == [[255, 0, 0]] * 16
    assert squashed[:, 13].tolist() == [[255, 255, 255]] * 16
    assert np.array_equal(fit(scene(40, 40), 32, "squash"), fit(scene(40, 40), 32, "pad"))
