"""Overlay heatmaps on pictures, without torch and matplotlib, because a server's ingress, which loads neither, draws them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

_MAX_OPACITY = 0.65  # opacity at the maximum of the heatmap
# matplotlib's `inferno` at nine evenly spaced values
_INFERNO = np.array(
    [(0, 0, 4), (33, 12, 74), (87, 16, 110), (138, 34, 106), (188, 55, 84), (228, 90, 49), (249, 142, 9), (249, 203, 53), (252, 255, 164)]
)


def overlay(image: npt.NDArray[np.uint8], heatmap: npt.NDArray[np.float32], side_px: int = 160) -> Image.Image:
    """Overlay a heatmap on its picture; the opacity is proportional to the heat.

    Args:
        image: uint8 `[S, S, 3]`.
        heatmap: float32 `[S, S]`, 0–1.
        side_px: side of the result; small pictures are enlarged, so that details are visible.

    Returns:
        RGB, `side_px` square.
    """
    enlarged = Image.fromarray(image).resize((side_px, side_px), Image.Resampling.NEAREST)
    heat = np.asarray(Image.fromarray(heatmap).resize((side_px, side_px), Image.Resampling.BILINEAR)).clip(0, 1)
    places = np.linspace(0, 1, len(_INFERNO))
    colours = np.stack([np.interp(heat, places, channel) for channel in _INFERNO.T], axis=-1)
    opacity = _MAX_OPACITY * heat[..., None]
    return Image.fromarray((np.asarray(enlarged) * (1 - opacity) + colours * opacity).round().astype(np.uint8))
