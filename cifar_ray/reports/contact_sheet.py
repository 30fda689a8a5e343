"""Contact sheets: a grid of pictures with captions, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cifar_ray.reports.canvas import font_for, isolated

_SIDE_PX = 96
_GAP_PX = 8
_FONT_PX = 12
_LINE_PX = 15
_ELLIPSIS = "…"


@dataclass(frozen=True)
class Cell:
    """One cell of a sheet.

    Attributes:
        pictures: uint8 `[S, S, 3]` each, or PIL images; shown side by side.
        caption: lines below the pictures; each is shortened to fit.
    """

    pictures: Sequence[npt.NDArray[np.uint8] | Image.Image]
    caption: Sequence[str] = ()


def sheet(cells: Sequence[Cell], columns: int, side_px: int = _SIDE_PX) -> bytes:
    """Lay out cells in rows. Small pictures are enlarged without smoothing.

    Args:
        cells: at least one; all get the width and height of the largest.
        columns: cells per row.
        side_px: width and height of each picture on the sheet.
    """
    pictures = max(len(cell.pictures) for cell in cells)
    lines = max(len(cell.caption) for cell in cells)
    width, height = pictures * (side_px + 2) - 2, side_px + lines * _LINE_PX + (4 if lines else 0)
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (columns * (width + _GAP_PX) + _GAP_PX, rows * (height + _GAP_PX) + _GAP_PX), "white")
    draw = ImageDraw.Draw(page)
    for number, cell in enumerate(cells):
        left, top = _GAP_PX + number % columns * (width + _GAP_PX), _GAP_PX + number // columns * (height + _GAP_PX)
        for place, picture in enumerate(cell.pictures):
            page.paste(_resized(picture, side_px), (left + place * (side_px + 2), top))
        for line, text in enumerate(cell.caption):
            font = ImageFont.truetype(font_for(text), _FONT_PX)
            draw.text((left, top + side_px + 2 + line * _LINE_PX), isolated(_shortened(text, width, font)), fill="black", font=font)
    file = io.BytesIO()
    page.save(file, "PNG", optimize=True)
    return file.getvalue()


def _resized(picture: npt.NDArray[np.uint8] | Image.Image, side_px: int) -> Image.Image:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if image.size == (side_px, side_px):
        return image
    method = Image.Resampling.NEAREST if image.width < side_px else Image.Resampling.LANCZOS
    return image.resize((side_px, side_px), method)


def _shortened(text: str, width_px: int, font: ImageFont.FreeTypeFont) -> str:
    """Cut out the middle, because file names differ at their ends."""
    if font.getlength(text) <= width_px:
        return text
    length = len(text)
    while length > 2 and font.getlength(text[: length // 2] + _ELLIPSIS + text[-(length // 2) :]) > width_px:
        length -= 1
    return text[: length // 2] + _ELLIPSIS + text[-(length // 2) :]
