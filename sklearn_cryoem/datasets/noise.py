"""Noise of unit variance: white, or coloured with a documented spectrum."""

from __future__ import annotations

import numpy as np
from scipy import fft

from sklearn_cryoem.physics.fourier import Float32, Float64

NOISE_KINDS = ("white", "coloured")


def frequencies(box: int) -> Float64:
    """Cycles a pixel of every entry of an rfft2; (D, D // 2 + 1)."""
    return np.hypot(np.fft.fftfreq(box)[:, None], np.fft.rfftfreq(box)[None, :])


def coloured_power(box: int) -> Float64:
    """Power of the coloured noise at every frequency of an rfft2, shape (D, D // 2 + 1).

    P(f) is proportional to 0.5 + 3 exp(-f / 0.06), f in cycles a pixel: a floor from counting, and a rise
    towards low frequencies from ice and background. Normalised to a mean of 1 over all frequencies, so that
    each pixel has variance 1.
    """
    return unit_variance(0.5 + 3.0 * np.exp(-frequencies(box) / 0.06), box)


def unit_variance(power: Float64, box: int) -> Float64:
    """Powers (..., D, D // 2 + 1) scaled so that each pixel has variance 1."""
    columns = np.full(power.shape[-1], 2.0)  # how often a column occurs in the full transform
    columns[0] = 1.0
    if box % 2 == 0:
        columns[-1] = 1.0
    return power * (box**2 / (power * columns).sum(axis=(-2, -1), keepdims=True))


def draw_noise(rng: np.random.Generator, n_images: int, box: int, power: Float64 | None = None) -> Float32:
    """Images of independent noise of mean 0 and a given power, white of variance 1 by default.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all draws.
    n_images, box : int
        Number of images, and their side in pixels.
    power : ndarray of shape (D, D // 2 + 1) or (n_images, D, D // 2 + 1), optional
        At every frequency of an rfft2.

    Returns
    -------
    images : ndarray of shape (n_images, box, box), float32
    """
    images = rng.standard_normal((n_images, box, box), dtype=np.float32)
    if power is not None:
        gain = np.sqrt(power).astype(np.float32)
        spectrum = fft.rfft2(images, axes=(-2, -1), workers=1)
        images = fft.irfft2(spectrum * gain, s=(box, box), axes=(-2, -1), workers=1)
    return images
