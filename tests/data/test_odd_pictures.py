"""Pictures as cameras, editors and instruments write them: the right pixels, whatever else the file contains."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cifar_ray.data.decode import decode_image, decode_square
from cifar_ray.errors import ImageError

GREY, RGB, PALETTE, GREY_ALPHA = 0, 2, 3, 4
XMP_TURNED = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def noise(width: int = 45, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes, checksum: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content) if checksum is None else checksum)
    )


def png(samples: npt.NDArray[Any], depth: int, colour_type: int, *extra: bytes) -> bytes:
    """A PNG of samples `[H, W]` or `[H, W, 3]`; `extra` are chunks before the pixels."""
    rows = [np.packbits(np.unpackbits(row.reshape(-1, 1).astype(np.uint8), axis=1)[:, -depth:]) for row in samples]
    packed = (samples.astype(">u2").reshape(len(samples), -1) if depth == 16 else rows) if depth != 8 else samples.astype(np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, colour_type, 0, 0, 0)
    chunks: Iterable[bytes] = (chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def pixels(data: bytes | Path) -> npt.NDArray[np.uint8]:
    return np.asarray(decode_image(data))


JPEGS = [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}]


@pytest.mark.parametrize("options", JPEGS)
@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_without_its_end_marker_has_all_its_pixels(tmp_path: Path, options: dict[str, Any], missing: int) -> None:
    whole = encode(noise(400, 300), "JPEG", **options)
    path = tmp_path / "no_end.jpg"
    path.write_bytes(whole[:-missing])
    assert np.array_equal(pixels(whole[:-missing]), pixels(whole))
    assert np.array_equal(pixels(path), pixels(whole))
    assert np.array_equal(decode_square(path, 64, "crop"), decode_square(whole, 64, "crop"))


@pytest.mark.parametrize("options", JPEGS)
def test_a_jpeg_that_lacks_pixels_is_refused_wherever_it_was_cut(options: dict[str, Any]) -> None:
    whole = encode(noise(), "JPEG", **options)
    complete = pixels(whole)
    for end in range(len(whole) - 1, 600, -7):
        with contextlib.suppress(ImageError):
            assert np.array_equal(pixels(whole[:end]), complete)
    scans = [place for place in range(len(whole)) if whole[place : place + 2] == b"\xff\xda"]
    for start in scans[1:]:  # cut cleanly between the scans of a progressive JPEG
        with pytest.raises(ImageError):
            decode_image(whole[:start])


def text_of(size: int, compressed: bool) -> PngInfo:
    info = PngInfo()
    info.add_itxt("workflow", "x" * size, zip=compressed)
    info.add_text("prompt", "y" * size, zip=compressed)
    return info


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("size", [10, 1_500_000])
def test_texts_of_a_png_of_any_length_change_nothing(tmp_path: Path, size: int, compressed: bool) -> None:
    path = tmp_path / "generated.png"
    path.write_bytes(encode(noise(), "PNG", pnginfo=text_of(size, compressed)))
    assert np.array_equal(pixels(path.read_bytes()), np.asarray(noise()))
    assert np.array_equal(pixels(path), np.asarray(noise()))


@pytest.mark.parametrize(
    "odd",
    [
        chunk(b"zTXt", b"Comment\0\0" + b"not deflate"),
        chunk(b"zTXt", b"Comment\0\x09?"),
        chunk(b"tEXt", b"Comment\0wrong checksum", checksum=1),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"iCCP", b"profile\0\x05unknown compression"),
        chunk(b"gAMA", b"\0\0"),
        chunk(b"gAMA", struct.pack(">I", 100_000), checksum=1),
        chunk(b"sRGB", b""),
        chunk(b"tRNS", b"\0"),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(80_000_000))),
        chunk(b"pHYs", b"\0"),
        chunk(b"tIME", b""),
        chunk(b"acTL", b"\0\0"),
        chunk(b"cHRM", b"\0"),
    ],
    ids=lambda odd: odd[4:30].decode("latin1").encode("unicode_escape").decode(),
)
def test_damaged_chunks_beside_the_pixels_of_a_png_do_not_matter(odd: bytes) -> None:
    assert np.array_equal(pixels(png(np.asarray(noise()), 8, RGB, odd)), np.asarray(noise()))


def test_a_rotation_in_the_xmp_of_a_png_is_applied() -> None:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP_TURNED, zip=True)
    assert np.array_equal(pixels(encode(noise(), "PNG", pnginfo=info)), np.rot90(np.asarray(noise()), -1))


def test_the_first_picture_of_an_animated_png_is_taken() -> None:
    second = Image.new("RGB", noise().size)
    assert np.array_equal(pixels(encode(noise(), "PNG", save_all=True, append_images=[second])), np.asarray(noise()))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_an_animated_png_that_is_cut_after_its_first_picture_shows_it(tmp_path: Path, share: float) -> None:
    later = [Image.fromarray(255 - np.asarray(noise()))] * 2
    whole = encode(noise(), "PNG", save_all=True, append_images=later)
    first_end = whole.index(b"fcTL", whole.index(b"IDAT"))
    path = tmp_path / "cut.png"
    path.write_bytes(whole[: first_end + round(share * (len(whole) - first_end))])
    assert np.array_equal(pixels(path), np.asarray(noise()))
    assert np.array_equal(pixels(path.read_bytes()), np.asarray(noise()))


def test_an_animated_png_that_is_cut_in_its_first_picture_is_refused() -> None:
    whole = encode(noise(), "PNG", save_all=True, append_images=[Image.new("RGB", noise().size)])
    with pytest.raises(ImageError):
        decode_image(whole[: whole.index(b"fcTL", whole.index(b"IDAT")) - 30])


@pytest.mark.parametrize("compressed", [False, True])
def test_of_many_texts_the_first_one_rotates(compressed: bool) -> None:
    """Pillow refuses more than 64 MB of texts."""
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP_TURNED, zip=compressed)
    for _ in range(70):
        info.add_itxt("XML:com.adobe.xmp", " " * 1_000_000, zip=compressed)
        info.add_text("Raw profile type exif", " " * 1_000_000, zip=compressed)
    assert np.array_equal(pixels(encode(noise(), "PNG", pnginfo=info)), np.rot90(np.asarray(noise()), -1))


@pytest.mark.parametrize("num_alphas", [257, 300])
def test_transparency_of_more_colours_than_a_palette_can_have_is_ignored(num_alphas: int) -> None:
    """As libpng does it."""
    palette = chunk(b"PLTE", bytes([9, 8, 7, 6, 5, 4]))
    decoded = pixels(png(np.array([[0, 1]]), 8, PALETTE, palette, chunk(b"tRNS", bytes(num_alphas))))
    assert decoded.tolist() == [[[9, 8, 7], [6, 5, 4]]]


def test_a_palette_png_without_a_palette_is_refused_as_damaged() -> None:
    with pytest.raises(ImageError, match=r"^picture: cannot be decoded \(damaged\)$"):
        decode_image(png(np.array([[0, 1]]), 8, PALETTE))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_is_white_at_any_depth(depth: int) -> None:
    highest = (1 << depth) - 1
    level = 1 if depth < 16 else 255
    samples = np.array([[level, 0, highest]])
    assert pixels(png(samples, depth, GREY, chunk(b"tRNS", struct.pack(">H", level))))[0, :, 0].tolist() == [255, 0, 255]


def test_the_transparent_colour_of_a_16_bit_png_is_exactly_one_colour() -> None:
    clear = (0x1234, 0x8000, 0xFF01)
    samples = np.array([[clear, (0x1235, 0x8000, 0xFF01), (0x12FF, 0x80FF, 0xFFFF)]])
    decoded = pixels(png(samples, 16, RGB, chunk(b"tRNS", struct.pack(">3H", *clear))))
    assert decoded.tolist() == [[[255, 255, 255], [0x12, 0x80, 0xFF], [0x12, 0x80, 0xFF]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("highest", "middle"), [(255, 127), (1023, 127), (4095, 127), (16383, 127), (65535, 127)])
def test_grey_of_10_to_14_bits_in_16_uses_the_whole_range(kind: str, highest: int, middle: int) -> None:
    values = np.array([[0, highest // 2, highest]], np.uint16)
    assert pixels(encode(Image.fromarray(values), kind))[0, :, 0].tolist() == [0, middle, 255]


@pytest.mark.parametrize("highest", [255, 1023, 4095, 16383, 65535])
@pytest.mark.parametrize("alpha", [False, True])
def test_colours_of_10_to_14_bits_in_16_use_the_whole_range(highest: int, alpha: bool) -> None:
    colours = np.array([[(0, highest // 2, highest), (highest, 0, highest // 2)]])
    samples = np.concatenate([colours, np.full((1, 2, 1), 65535)], -1) if alpha else colours
    assert pixels(png(samples, 16, 6 if alpha else RGB)).tolist() == [[[0, 127, 255], [255, 0, 127]]]


@pytest.mark.parametrize("highest", [255, 1023, 4095, 16383, 65535])
def test_grey_with_alpha_of_10_to_14_bits_in_16_uses_the_whole_range(highest: int) -> None:
    samples = np.array([[(0, 65535), (highest // 2, 65535), (highest, 65535), (highest // 2, 0)]])
    assert pixels(png(samples, 16, GREY_ALPHA))[0].tolist() == [[0] * 3, [127] * 3, [255] * 3, [255] * 3]


@pytest.mark.parametrize("gamma", [0.35, 0.7, 1.0, 2.5])
@pytest.mark.parametrize("depth", [8, 16])
def test_the_gamma_of_a_png_is_applied(depth: int, gamma: float) -> None:
    """As libpng does it: the value in 0–1 to the power of 1 / (2.2 × gamma)."""
    values = np.array([[0, 40, 128, 200, 255]]) * (257 if depth == 16 else 1)
    stored = chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))
    expected = 255 * (np.array([0, 40, 128, 200, 255]) / 255) ** (1 / (2.2 * gamma))
    assert np.abs(pixels(png(values, depth, GREY, stored))[0, :, 0] - expected).max() <= 1
    if depth == 8:
        assert np.abs(pixels(png(values[..., None].repeat(3, -1), 8, RGB, stored))[0, :, 2] - expected).max() <= 1


@pytest.mark.parametrize("others", [(), (chunk(b"sRGB", b"\0"), chunk(b"gAMA", struct.pack(">I", 100_000)))])
def test_a_png_in_srgb_keeps_every_pixel(others: tuple[bytes, ...]) -> None:
    usual = others or (chunk(b"gAMA", struct.pack(">I", 45_455)),)
    assert np.array_equal(pixels(png(np.asarray(noise()), 8, RGB, *usual)), np.asarray(noise()))


def test_an_odd_tiff_writes_nothing_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    odd = encode(noise(), "TIFF", compression="tiff_lzw", tiffinfo={65_000: "a value of the file"})
    assert np.array_equal(pixels(odd), np.asarray(noise()))
    with pytest.raises(ImageError):
        decode_image(odd[:20] + b"\xff" * 400 + odd[420:])
    assert capfd.readouterr().err == ""
