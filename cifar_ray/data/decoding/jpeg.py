"""JPEG files before their pixels are decoded: number of scans, and missing end markers (ITU T.81, annexes B and G)."""

from __future__ import annotations

import re
from collections.abc import Iterator

_SIGNATURE = b"\xff\xd8\xff"

# Each scan of a progressive JPEG covers all pixels, and a few bytes can describe one: 10 MB of scans take minutes to decode.
# Cameras and programs write about ten scans.
MAX_SCANS = 100

_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # without those that stand alone: TEM, RST0–7, SOI
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame, for all coding processes
_RESTARTS = tuple(bytes((0xFF, marker)) for marker in range(0xD0, 0xD8))
_COEFFICIENTS = 64


def has_too_many_scans(jpeg: bytes) -> bool:
    """Whether a JPEG has more than `MAX_SCANS` scans; those of embedded thumbnails, or after the end of the image, do not count."""
    if jpeg.count(b"\xff" + bytes([_START_OF_SCAN])) <= MAX_SCANS:
        return False
    scans = 0
    for marker, _ in _segments(jpeg):
        scans += marker == _START_OF_SCAN
        if scans > MAX_SCANS:
            return True
    return False


def end_marker_variants(jpeg: bytes) -> tuple[bytes, ...]:
    """Append an end marker to a JPEG that has none, after two different fillings.

    If the last scan is complete, decoders skip the filling, and both results have the same pixels. If not, decoders read the filling as
    pixels, and the results differ.

    Returns:
        Two files; none if the file is not a JPEG, has an end marker, or lacks the header of a scan.
    """
    if not jpeg.startswith(_SIGNATURE):
        return ()
    missing_bits: dict[int, list[int]] = {}  # number of bits that no scan has sent yet, per coefficient, by component
    for marker, body in _segments(jpeg):
        if marker == _END_OF_IMAGE:
            return ()
        if marker in _FRAMES:
            missing_bits = {body[place]: [1] * _COEFFICIENTS for place in range(6, len(body) - 2, 3)}
        elif marker == _START_OF_SCAN and body and len(body) >= 2 * body[0] + 4:
            first, last, bits = body[2 * body[0] + 1 : 2 * body[0] + 4]
            for component in body[1 : 2 * body[0] : 2]:
                sent = missing_bits.get(component, [])
                sent[first : last + 1] = [bits & 15] * len(sent[first : last + 1])
    if not missing_bits or any(map(any, missing_bits.values())):
        return ()
    return tuple(
        b"".join([jpeg.rstrip(b"\xff"), filling, *(restart + filling for restart in _RESTARTS), bytes((0xFF, _END_OF_IMAGE))])
        for filling in (b"\x00" * _COEFFICIENTS, b"\xaa" * _COEFFICIENTS)
    )


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment up to the end of the image; skips the coded pixels."""
    position = 0
    while (found := _MARKER.search(jpeg, position)) is not None:
        marker, start = found[1][0], found.end() + 2
        if marker == _END_OF_IMAGE:
            yield marker, b""
            return
        position = found.end() + max(2, int.from_bytes(jpeg[found.end() : start]))
        yield marker, jpeg[start:position]
