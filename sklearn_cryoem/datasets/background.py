"""What images show besides particles: noise, and what automatic pickers bring along."""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage

from sklearn_cryoem.physics.fourier import Float32, Float64

NOISE_KINDS = ("white", "coloured")
JUNK_KINDS = ("noise", "ice", "edge", "off_centre")


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


def junk_image(kind: str, box: int, rng: np.random.Generator) -> Float32:
    """What a junk image shows besides noise, in units of the noise's standard deviation; (box, box).

    Parameters
    ----------
    kind : {"noise", "ice", "edge", "off_centre"}
        "noise" shows nothing, "ice" one to four bright blobs, "edge" a step across the field, as at the rim
        of a carbon hole. "off_centre" shows nothing here: its particle comes from its pose.
    box : int
        Side in pixels.
    rng : numpy.random.Generator
        Draws sizes, heights and places.
    """
    axis = (np.arange(box) - box // 2).astype(np.float64)
    x, y = axis[None, :], axis[:, None]
    image = np.zeros((box, box))
    if kind == "ice":
        for _ in range(rng.integers(1, 5)):
            centre = rng.uniform(-0.45 * box, 0.45 * box, size=2)
            sd = rng.uniform(0.04, 0.12) * box
            image += rng.uniform(2.0, 6.0) * np.exp(
                -0.5 * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / sd**2
            )
    elif kind == "edge":
        angle = rng.uniform(0.0, 2.0 * np.pi)
        distance = x * np.cos(angle) + y * np.sin(angle) - rng.uniform(-0.25, 0.25) * box
        image += rng.uniform(1.5, 3.0) * 0.5 * (1.0 + np.tanh(distance / 2.0))
    return image.astype(np.float32)


def grainy_junk_image(kind: str, box: int, rng: np.random.Generator) -> Float32:
    """As `junk_image`, with the sharp outlines, the grain and the fringes that real contaminants have.

    "ice" shows one to three lumps of irregular outline, 0.06 to 0.2 of the box in radius, anywhere; "edge"
    carbon of more grain than ice, whose rim has a fringe.
    """
    axis = (np.arange(box) - box // 2).astype(np.float64)
    x, y = axis[None, :], axis[:, None]
    inside = np.zeros((box, box))
    if kind == "ice":
        for _ in range(rng.integers(1, 4)):
            x_0, y_0 = rng.uniform(-0.5 * box, 0.5 * box, size=2)
            azimuth = np.arctan2(y - y_0, x - x_0)
            radius = rng.uniform(0.06, 0.2) * box
            for order in (2, 3, 5):  # lumps are not round
                radius = radius * (1.0 + rng.uniform(0.0, 0.25) * np.cos(order * azimuth + rng.uniform(0, 7)))
            inside = np.maximum(inside, rng.uniform(0.5, 1.0) * _step(radius - np.hypot(x - x_0, y - y_0)))
    elif kind == "edge":
        angle = rng.uniform(0.0, 2.0 * np.pi)
        inside = _step(x * np.cos(angle) + y * np.sin(angle) - rng.uniform(-0.25, 0.25) * box)
    else:
        return np.zeros((box, box), dtype=np.float32)
    grain = ndimage.gaussian_filter(rng.standard_normal((box, box)), 1.0) * 3.5  # about 1 in a pixel
    # phase contrast: what is wide shows by its rim, bright inside and dark outside
    seen = inside - 0.7 * ndimage.gaussian_filter(inside, 0.08 * box)
    height = rng.uniform(2.0, 6.0) if kind == "ice" else rng.uniform(1.5, 3.0)
    return (height * seen + (0.3 * height) * inside * grain).astype(np.float32)


def _step(distance: Float64) -> Float64:
    """From 0 outside to 1 inside, over about two pixels."""
    return 0.5 * (1.0 + np.tanh(distance))
