"""Start a matplotlib figure and save it as PNG, without a display and without pyplot's global state."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    """A figure with one plot."""
    figure = empty_figure(width_in, height_in)
    return figure, figure.subplots()


def empty_figure(width_in: float, height_in: float) -> Figure:
    """A figure without a plot, to which you add several plots."""
    from matplotlib.figure import Figure  # this import takes half a second, and --help does not need it

    return Figure(figsize=(width_in, height_in), layout="constrained")


def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """The figure as the content of a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)  # the font lacks some scripts
        figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()
