"""ICC profiles: values by their definition, and what must stay as it is."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from cifar_ray.data.decode import decode_image, decode_square

# Columns: red, green and blue in XYZ, adapted to D50
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
D50 = (0.9642, 1.0, 0.8249)


def profile(space: bytes, kind: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """An ICC profile of version 2 (ICC.1:2001-04, section 6)."""
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = start + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, kind, space, connection)
    header += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + xyz(D50)[8:] + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + body


def xyz(values: Any) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def rgb_profile(matrix: npt.NDArray[np.float64], trc: bytes) -> bytes:
    colours = {name: xyz(matrix[:, column]) for column, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return profile(b"RGB ", b"mntr", {b"wtpt": xyz(D50), **colours, b"rTRC": trc, b"gTRC": trc, b"bTRC": trc})


def cmyk_profile() -> bytes:
    """Greys only: lightness falls with the mean of the three inks and with black."""
    identity = bytes(range(256))
    corners = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    grid = b"".join(bytes([round(255 * (1 - k) * (1 - (c + m + y) / 3)), 128, 128]) for c, m, y, k in corners)
    unit = struct.pack(">9i", *(65536 * (place % 4 == 0) for place in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + unit + identity * 4 + grid + identity * 3
    return profile(b"CMYK", b"prtr", {b"wtpt": xyz(D50), b"A2B0": table, b"A2B1": table}, connection=b"Lab ")


def to_srgb(linear: npt.NDArray[np.float64], matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """IEC 61966-2-1."""
    seen = np.clip(linear @ matrix.T @ np.linalg.inv(SRGB).T, 0, 1)
    return 255 * np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * np.maximum(seen, 1e-9) ** (1 / 2.4) - 0.055)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colours() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8))


@pytest.mark.parametrize(("matrix", "gamma"), [(DISPLAY_P3, 2.2), (ADOBE_RGB, 2.19921875), (SRGB, 1.0)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_other_rgb_profiles_are_converted_to_srgb(kind: str, matrix: npt.NDArray[np.float64], gamma: float) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = np.asarray(decode_image(encode(colours(), kind, icc_profile=rgb_profile(matrix, curve(gamma)), **options)))
    expected = to_srgb((np.asarray(colours()) / 255) ** gamma, matrix)
    assert np.abs(decoded - expected).max() <= 2
    assert np.abs(decoded.astype(int) - np.asarray(colours())).max() > 20


def test_a_large_jpeg_is_converted_too() -> None:
    orange = encode(Image.new("RGB", (800, 600), (200, 100, 50)), "JPEG", quality=98, icc_profile=rgb_profile(DISPLAY_P3, curve(2.2)))
    expected = to_srgb((np.array([200, 100, 50]) / 255) ** 2.2, DISPLAY_P3)
    assert np.abs(decode_square(orange, 32, "crop") - expected).max() <= 3


def srgb_curve() -> bytes:
    values = np.linspace(0, 1, 1024)
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return b"curv\0\0\0\0" + struct.pack(">I1024H", 1024, *(round(65535 * value) for value in linear))


@pytest.mark.parametrize("srgb", [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), rgb_profile(SRGB, srgb_curve())])
def test_srgb_profiles_keep_every_pixel(srgb: bytes) -> None:
    assert np.array_equal(np.asarray(decode_image(encode(colours(), icc_profile=srgb))), np.asarray(colours()))


@pytest.mark.parametrize(
    "damaged",
    [b"", b"no profile", bytes(200), rgb_profile(DISPLAY_P3, curve(2.2))[:300], b"\xff" * 70_000, rgb_profile(np.zeros((3, 3)), b"")],
)
def test_a_damaged_profile_is_ignored(damaged: bytes) -> None:
    assert np.array_equal(np.asarray(decode_image(encode(colours(), icc_profile=damaged))), np.asarray(colours()))


@pytest.mark.parametrize(("extra_bytes", "is_used"), [(900_000, True), (1_500_000, True), (3_900_000, True), (4_300_000, False)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_profile_of_up_to_4_mb_is_used(kind: str, extra_bytes: int, is_used: bool) -> None:
    """Pillow refuses a PNG with a profile over 1 MB."""
    tags = {b"wtpt": xyz(D50), b"kTRC": curve(1.8)}
    long = profile(b"GRAY", b"mntr", {**tags, b"priv": np.random.default_rng(0).bytes(extra_bytes)})
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(2, 0))
    expected = decode_image(encode(ramp, icc_profile=profile(b"GRAY", b"mntr", tags))) if is_used else ramp.convert("RGB")
    assert np.array_equal(np.asarray(decode_image(encode(ramp, kind, icc_profile=long))), np.asarray(expected))


def test_profiles_with_any_byte_changed_do_no_harm() -> None:
    generator = np.random.default_rng(0)
    sound = rgb_profile(DISPLAY_P3, curve(2.2))
    for _ in range(200):
        changed = bytearray(sound)
        for place in generator.integers(0, len(sound), 4):
            changed[place] = generator.integers(256)
        assert decode_image(encode(colours(), icc_profile=bytes(changed))).size == (40, 24)


def test_a_grey_profile_is_applied_to_a_grey_picture_only() -> None:
    grey = profile(b"GRAY", b"mntr", {b"wtpt": xyz(D50), b"kTRC": curve(1.8)})
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    decoded = np.asarray(decode_image(encode(ramp, icc_profile=grey)))
    assert np.abs(decoded - to_srgb(np.repeat((np.arange(256)[None, :, None] / 255) ** 1.8, 3, -1), SRGB)).max() <= 2
    assert np.array_equal(np.asarray(decode_image(encode(colours(), icc_profile=grey))), np.asarray(colours()))
    p3 = rgb_profile(DISPLAY_P3, curve(1.0))
    assert np.array_equal(np.asarray(decode_image(encode(ramp, icc_profile=p3)))[..., 0], np.asarray(ramp))


def test_16_bit_grey_keeps_its_values_with_a_profile() -> None:
    grey = profile(b"GRAY", b"mntr", {b"wtpt": xyz(D50), b"kTRC": curve(1.0)})
    values = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    assert np.asarray(decode_image(encode(values, icc_profile=grey)))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted_by_its_profile(kind: str) -> None:
    inks = {(0, 0, 0, 0): 255, (0, 0, 0, 255): 0, (255, 0, 0, 0): 162, (255, 255, 255, 0): 0}
    for ink, grey in inks.items():
        image = Image.new("CMYK", (16, 16), ink)
        with_profile = decode_image(encode(image, kind, icc_profile=cmyk_profile()))
        assert np.abs(np.asarray(with_profile).astype(int) - grey).max() <= 4
        assert np.array_equal(np.asarray(decode_image(encode(image, kind))), np.asarray(image.convert("RGB")))


def test_transparent_pixels_of_a_picture_with_a_profile_are_white() -> None:
    clear = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    assert np.asarray(decode_image(encode(clear, icc_profile=rgb_profile(DISPLAY_P3, curve(2.2))))).min() == 255


def test_profiles_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(colours(), icc_profile=rgb_profile(ADOBE_RGB, curve(1.9)))
    first = np.asarray(decode_image(data))
    monkeypatch.setattr(ImageCms, "buildTransform", None)
    assert np.array_equal(np.asarray(decode_image(data)), first)
