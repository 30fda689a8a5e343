from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from cifar_ray.data.decode import decode_image, fit
from cifar_ray.data.decoding.formats import FORMATS
from cifar_ray.errors import ImageError, ImageTooLargeError

WIDTH, HEIGHT = 40, 24


def picture() -> Image.Image:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return Image.fromarray(np.stack([x * 6, y * 10, (x + y) * 3], -1).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey_16_bit(mode: str) -> Image.Image:
    values = np.asarray(picture().convert("L")).astype(np.uint16) * 257
    return Image.frombytes(mode, (WIDTH, HEIGHT), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())


def in_mode(mode: str) -> Image.Image:
    grey = picture().convert("L")
    if mode.startswith("I;16"):
        return grey_16_bit(mode)
    if mode == "I":
        return Image.fromarray(np.asarray(grey).astype(np.int32) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    return picture().convert("P").convert("PA") if mode == "PA" else picture().convert(mode)


def distance(image: Image.Image, other: Image.Image) -> float:
    assert image.mode == "RGB"
    return float(np.abs(np.asarray(image).astype(int) - np.asarray(other.convert("RGB")).astype(int)).mean())


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", mode) for mode in ("L", "RGB", "CMYK", "YCbCr")]
    + [("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B")]
    + [("WEBP", mode) for mode in ("L", "P", "RGB", "RGBA")]
    + [("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")]
    + [("GIF", mode) for mode in ("1", "L", "P", "RGB", "RGBA")]
    + [("TIFF", mode) for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16", "I;16B", "I;16L")],
)
def test_every_mode_of_every_format_becomes_rgb(kind: str, mode: str) -> None:
    options = {"JPEG": {"quality": 98}, "WEBP": {"lossless": True}}.get(kind, {})
    image = in_mode(mode)
    expected = picture().convert("L") if mode.startswith(("I", "F")) else image.convert("RGBA" if mode == "PA" else "RGB")
    assert distance(decode_image(encode(image, kind, **options)), expected) < 5  # GIF has 256 colours, JPEG and LAB round


def test_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 10))
    assert distance(decode_image(encode(red.convert("CMYK"), "JPEG", quality=98)), red) < 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    assert np.asarray(decode_image(encode(Image.fromarray(values), kind)))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 32896.0, 65535.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 1e6, 2e6], [0, 128, 255]),
        ([float("nan"), float("inf"), 1.0], [0, 0, 255]),
        ([-3e38, 0.0, 3e38], [0, 128, 255]),
        ([-7.0, -7.0, -7.0], [0, 0, 0]),
    ],
)
def test_float_pictures_are_scaled_by_their_range(values: list[float], expected: list[int]) -> None:
    data = encode(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert np.asarray(decode_image(data))[0, :, 0].tolist() == expected


def test_transparency_is_laid_on_white() -> None:
    clear_and_red = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear_and_red.putpixel((1, 0), (255, 0, 0, 255))
    half = Image.new("LA", (2, 1), (0, 128))
    keyed = encode(Image.new("RGB", (2, 1), (9, 9, 9)), "PNG", transparency=(9, 9, 9))
    palette = encode(clear_and_red.convert("RGB").convert("P"), "PNG", transparency=bytes([0]))
    gif = encode(clear_and_red, "GIF")
    for data in (encode(clear_and_red, "PNG"), gif, encode(clear_and_red, "WEBP", lossless=True), encode(clear_and_red, "TIFF")):
        assert np.asarray(decode_image(data)).tolist() == [[[255, 255, 255], [255, 0, 0]]]
    assert np.asarray(decode_image(encode(half, "PNG")))[0, 0].tolist() == [127] * 3
    assert np.asarray(decode_image(keyed))[0, 0].tolist() == [255] * 3
    assert np.asarray(decode_image(palette))[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_is_applied_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 98}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encode(picture(), kind, exif=exif, **options)
    upright = decode_image(data)
    with Image.open(io.BytesIO(data)) as stored:
        assert distance(upright, ImageOps.exif_transpose(stored)) == 0
    assert upright.getexif().get(0x0112, 1) == 1


def test_orientation_6_turns_the_top_left_corner_to_the_right() -> None:
    image = Image.new("RGB", (2, 3))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = decode_image(encode(image, "PNG", exif=exif))
    assert upright.size == (3, 2)
    assert upright.getpixel((2, 0)) == (255, 255, 255)


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0"])
def test_damaged_exif_does_not_spoil_a_sound_picture(exif: bytes) -> None:
    assert decode_image(encode(picture(), "JPEG", exif=exif)).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several_is_taken(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    red, blue = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")
    data = encode(red, kind, save_all=True, append_images=[blue], **options)
    assert decode_image(data).getpixel((4, 4)) == (255, 0, 0)


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 9) + b"IDAT"


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_too_many_pixels_are_refused_from_the_header_alone(side: int) -> None:
    with pytest.raises(ImageTooLargeError, match="maximum is 50,000,000 pixels"):
        decode_image(png_header(side, side))


def test_the_pixel_limit_itself_is_allowed() -> None:
    data = encode(picture(), "PNG")
    assert decode_image(data, max_pixels=WIDTH * HEIGHT).size == (WIDTH, HEIGHT)
    with pytest.raises(ImageTooLargeError, match="maximum is 959 pixels"):
        decode_image(data, max_pixels=WIDTH * HEIGHT - 1)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_picture_is_an_error(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind)
    for share in (0.05, 0.3, 0.6, 0.9):
        with pytest.raises(ImageError) as refused:
            decode_image(data[: int(len(data) * share)])
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"not a picture", b"<svg/>", encode(Image.new("RGB", (9, 9)), "PPM"), encode(Image.new("RGB", (16, 16)), "ICO")]
)
def test_other_data_is_refused_by_naming_the_formats(data: bytes) -> None:
    with pytest.raises(ImageError, match="Supported: JPEG, PNG, WebP, BMP, GIF, TIFF"):
        decode_image(data)


def test_a_missing_file_and_a_folder_are_image_errors_naming_the_path(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.png", tmp_path):
        with pytest.raises(ImageError, match=str(path)):
            decode_image(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_bytes_give_a_picture_or_an_image_error_and_nothing_else(kind: str) -> None:
    generator = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(picture(), kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}))
    refusals = []
    for _ in range(200):
        damaged = bytearray(data)
        for place in generator.integers(0, min(len(data), generator.choice([80, len(data)])), generator.choice([1, 3, 30])):
            damaged[place] = generator.integers(256)
        try:
            assert decode_image(bytes(damaged)).mode == "RGB"
        except ImageError as error:
            refusals.append(str(error))
    assert refusals
    assert "\n" not in "".join(refusals)


def test_a_path_and_its_bytes_decode_alike(tmp_path: Path) -> None:
    path = tmp_path / "frog.jpg"
    picture().save(path)
    assert distance(decode_image(path), decode_image(path.read_bytes())) == 0


@pytest.mark.parametrize("policy", ["pad", "crop"])
def test_an_image_of_the_wanted_size_is_unchanged(policy: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    fitted = fit(Image.fromarray(pixels), 32, policy)
    assert (fitted == pixels).all()
    assert fitted.flags.writeable


def test_padding_shows_the_whole_image_centred_on_black() -> None:
    fitted = fit(Image.new("RGB", (64, 32), "white"), 16, "pad")
    assert (fitted[4:12] == 255).all()
    assert not fitted[:4].any()
    assert not fitted[12:].any()


def test_cropping_shows_the_centred_square() -> None:
    image = Image.new("RGB", (64, 32), "black")
    image.paste("white", (16, 0, 48, 32))
    fitted = fit(image, 16, "crop")
    assert (fitted[:, 1:-1] == 255).all()  # resampling mixes the outermost columns with what lies beyond
    assert fitted.min() > 200


@pytest.mark.parametrize("policy", ["pad", "crop"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 7), (33, 32), (1, 10_000_000)])
def test_any_aspect_ratio_fits(size: tuple[int, int], policy: Any) -> None:
    fitted = fit(Image.new("RGB", size, "white"), 32, policy)
    assert (fitted.shape, fitted.dtype) == ((32, 32, 3), np.uint8)
    assert fitted.max() > 250


@pytest.mark.parametrize("policy", ["pad", "crop"])
def test_shrinking_averages_and_does_not_alias(policy: Any) -> None:
    y, x = np.mgrid[0:512, 0:512]
    checkers = np.repeat((((x + y) % 2) * 255).astype(np.uint8)[..., None], 3, -1)
    fitted = fit(Image.fromarray(checkers), 32, policy)
    assert np.abs(fitted.astype(int) - 127).max() <= 2


def jpeg_with_thumbnail(scans: int) -> bytes:
    """A JPEG whose EXIF segment holds so many markers of a scan, as in an embedded thumbnail."""
    plain = encode(picture(), "JPEG")
    hidden = b"Exif\0\0" + b"\xff\xda\x00\x02" * scans
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(hidden) + 2) + hidden + plain[2:]


@pytest.mark.parametrize("kind", ["video after the end", "garbage after the end", "thumbnail"])
def test_what_is_no_scan_of_a_jpeg_is_not_counted_as_one(kind: str) -> None:
    """Motion photos have megabytes of video behind the picture."""
    plain = encode(picture(), "JPEG")
    data = {
        "video after the end": plain + b"\0\0\0\x18ftypmp42" + np.random.default_rng(1).bytes(8_000_000),
        "garbage after the end": plain + b"\xff\xda\x00\x02" * 1000,
        "thumbnail": jpeg_with_thumbnail(1000),
    }[kind]
    assert np.array_equal(np.asarray(decode_image(data)), np.asarray(decode_image(plain)))


@pytest.mark.parametrize(("scans", "allowed"), [(100, True), (101, False)])
def test_scans_are_counted_exactly(scans: int, allowed: bool) -> None:
    progressive = encode(picture(), "JPEG", progressive=True)
    own = progressive.count(b"\xff\xda")
    assert own > 1
    last = progressive.rindex(b"\xff\xda")
    many = progressive[:last] + progressive[last:-2] * (scans - own + 1) + progressive[-2:]
    if allowed:
        decode_image(many)
    else:
        with pytest.raises(ImageError, match="more than 100 scans"):
            decode_image(many)
