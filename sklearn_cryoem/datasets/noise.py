"""Noise of unit variance: white, or coloured with a documented spectrum."""

from __future__ import annotations

import numpy as np
from scipy import fft

from sklearn_cryoem.physics.fourier import Float32, Float64

NOISE_KINDS = ("white", "coloured")


def coloured_power(box: int) -> Float64:
    """Power of the coloured noise at every frequency of an rfft2, shape (D, D // 2 + 1).

    P(f) is proportional to 0.5 + 3 exp(-f / 0.06), f in cycles a pixel: a floor from counting, and a rise
    towards low frequencies from ice and background. Normalised to a mean of 1 over all frequencies, so that
    each pixel has variance 1.
    """
    f = np.hypot(np.fft.fftfreq(box)[:, None], np.fft.rfftfreq(box)[None, :])  # (D, D // 2 + 1)
    power = 0.5 + 3.0 * np.exp(-f / 0.06)
    columns = np.full(power.shape[1], 2.0)  # how often a column occurs in the full transform
    columns[0] = 1.0
    if box % 2 == 0:
        columns[-1] = 1.0
    return power * (box**2 / (power * columns).sum())


def draw_noise(rng: np.random.Generator, n_images: int, box: int, kind: str) -> Float32:
    """Images of independent noise, mean 0 and variance 1 per pixel; (n_images, box, box) float32."""
    images = rng.standard_normal((n_images, box, box), dtype=np.float32)
    if kind == "coloured":
        gain = np.sqrt(coloured_power(box)).astype(np.float32)
        spectrum = fft.rfft2(images, axes=(-2, -1), workers=1)
        images = fft.irfft2(spectrum * gain, s=(box, box), axes=(-2, -1), workers=1)
    return images
