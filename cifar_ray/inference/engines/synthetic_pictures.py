"""Synthetic pictures for comparing the logits of two engines; a bundle has no pictures of its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_COUNT = 16
# Brightness and the two opponent colours vary in photographs in about this proportion (Ruderman et al. 1998)
_OPPONENT_COLOURS = np.array([[0.55, 0.20, 0.05], [0.55, 0.0, -0.10], [0.55, -0.20, 0.05]])
_CONTRAST = 90.0

Pixels = npt.NDArray[np.uint8]


def like_photographs(size_px: int) -> Pixels:
    """Random pictures whose amplitudes fall with the frequency as 1/f, like those of photographs (Field 1987).

    Rounding errors are similar to those on photographs. Measured with two engines in bf16: 1.5 % and 1.4 % on these pictures, 1.8 % and
    2.8 % on 16 photographs of ants and bees, but 16 % and 7 % on gradients without detail.

    Args:
        size_px: side of the pictures, px.

    Returns:
        uint8 `[16, size_px, size_px, 3]`, always the same.
    """
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size_px), np.fft.rfftfreq(size_px), indexing="ij"))
    frequency[0, 0] = 1
    shape = (_COUNT, 3, *frequency.shape)
    spectrum = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / frequency
    channels = np.fft.irfft2(spectrum, s=(size_px, size_px))
    channels /= channels.std(axis=(2, 3), keepdims=True) + 1e-9
    colours = _CONTRAST * np.einsum("co,noyx->nyxc", _OPPONENT_COLOURS, channels) + rng.uniform(80, 170, (_COUNT, 1, 1, 1))
    pictures: Pixels = colours.clip(0, 255).astype(np.uint8)
    return pictures


def gradients(size_px: int) -> Pixels:
    """Gradients between four corners of random colours; the recorded deviation of a stored int8 form was measured on these pictures.

    Args:
        size_px: side of the pictures, px.

    Returns:
        uint8 `[16, size_px, size_px, 3]`, always the same.
    """
    corners = np.random.default_rng(0).integers(0, 256, (_COUNT, 2, 2, 3))
    ramp = np.linspace(0, 1, size_px)
    weights = np.stack([1 - ramp, ramp])
    pictures: Pixels = np.einsum("nijc,iy,jx->nyxc", corners, weights, weights).astype(np.uint8)
    return pictures
