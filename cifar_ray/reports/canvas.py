"""Start a matplotlib figure and save it as PNG, without a display and without pyplot's global state; choose fonts for any script."""

from __future__ import annotations

import io
import unicodedata
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEFT_TO_RIGHT_MARK = "\u200e"  # invisible


def new_figure(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    """A figure with one plot."""
    figure = empty_figure(width_in, height_in)
    return figure, figure.subplots()


def empty_figure(width_in: float, height_in: float) -> Figure:
    """A figure without a plot, to which you add several plots."""
    from matplotlib.figure import Figure  # this import takes half a second, and --help does not need it

    return Figure(figsize=(width_in, height_in), layout="constrained")


def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """The figure as the content of a PNG file; texts in scripts that matplotlib's font lacks get a font of this machine."""
    _choose_fonts(figure)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)  # no font of this machine covers the script
        figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def _choose_fonts(figure: Figure) -> None:
    from matplotlib.font_manager import FontProperties, fontManager
    from matplotlib.text import Text

    own = own_font()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)  # noqa: S101
        if text.get_text().isascii() or (path := font_for(text.get_text())) == own:
            continue
        fontManager.addfont(str(path))
        text.set_fontfamily([*text.get_fontfamily(), FontProperties(fname=path).get_name()])


def own_font() -> Path:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew and more."""
    import matplotlib  # this import takes half a second, and --help does not need it

    return Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")


def font_for(text: str) -> Path:
    """The font that covers a text: `own_font` if it does, else the font of this machine that lacks the fewest characters."""
    return _font_for(frozenset(character for character in text if character.isprintable() and not character.isspace()))


@cache
def _font_for(characters: frozenset[str]) -> Path:
    own = own_font()
    lacking = {own: _lacking(own, characters)}
    if lacking[own]:
        from matplotlib.font_manager import findSystemFonts

        regular_first = sorted(map(Path, findSystemFonts()), key=lambda path: ("regular" not in path.name.lower(), path.name))
        for path in regular_first:
            lacking[path] = _lacking(path, characters)
            if not lacking[path]:
                break
    return min(lacking, key=lambda path: lacking[path])  # the first of equals


def _lacking(path: Path, characters: frozenset[str]) -> int:
    """Number of characters that a font lacks; all, if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(str(path))
    except (RuntimeError, OSError):
        return len(characters)
    return sum(not font.get_char_index(ord(character)) for character in characters)


def isolated(name: str) -> str:
    """A name or line that may run from right to left, with marks that keep numbers and arrows around it in their places."""
    is_from_right = any(unicodedata.bidirectional(character) in ("R", "AL") for character in name)
    return f"{_LEFT_TO_RIGHT_MARK}{name}{_LEFT_TO_RIGHT_MARK}" if is_from_right else name
