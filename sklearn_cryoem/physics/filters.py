"""Preprocessing of images: background normalisation, hot pixels, power spectrum."""

from __future__ import annotations

import math

import numpy as np
from scipy import fft

from sklearn_cryoem.physics.fourier import Float32, Float64
from sklearn_cryoem.physics.masks import pixel_radius


def normalise_background(images: Float32, radius_px: float | None = None) -> Float32:
    """Give every image a background of mean 0 and standard deviation 1, as RELION wants its particles.

    Parameters
    ----------
    images : ndarray of shape (n_images, D, D)
        Real images.
    radius_px : float, optional
        The background is every pixel farther than this from the centre pixel D // 2. By default D / 2: the
        corners of the box.

    Returns
    -------
    normalised : ndarray of shape (n_images, D, D), float32
        An image whose background is constant, masked or torn, has standard deviation 1 over all its pixels
        instead; one that is constant altogether is 0.

    Raises
    ------
    ValueError
        If fewer than 2 pixels are background.
    """
    box = images.shape[-1]
    radius_px = box / 2 if radius_px is None else radius_px
    outside = pixel_radius(box) > radius_px  # (D, D)
    if np.count_nonzero(outside) < 2:
        raise ValueError(
            f"No background lies farther than {radius_px:g} pixels from the centre of a box of {box} pixels. "
            f"Use a particle radius below {box / 2:g} pixels, or larger images."
        )
    background = images[:, outside].astype(np.float64)  # (n_images, n_background)
    mean, sd = background.mean(axis=1), background.std(axis=1)
    least = 1e-6 * np.maximum(np.abs(mean), np.finfo(np.float32).tiny)
    constant = np.flatnonzero(sd <= least)
    if constant.size:  # one such image among a million must not stop anything
        whole = images[constant].std(axis=(1, 2), dtype=np.float64)
        sd[constant] = np.where(whole > least[constant], whole, np.inf)
    shift, scale = mean.astype(np.float32), (1.0 / sd).astype(np.float32)
    normalised: Float32 = (images - shift[:, None, None]) * scale[:, None, None]
    return normalised


def neighbour_residual(images: Float32) -> Float32:
    """Each pixel less the mean of its four neighbours; (n_images, D - 2, D - 2), without the edge."""
    across, down = images[:, :, 1:] - images[:, :, :-1], images[:, 1:] - images[:, :-1]
    residual: Float32 = across[:, 1:-1, :-1] - across[:, 1:-1, 1:]
    residual += down[:, :-1, 1:-1]
    residual -= down[:, 1:, 1:-1]
    residual *= 0.25
    return residual


def clip_hot_pixels(images: Float32, threshold: float = 12.0) -> Float32:
    """Replace pixels far off their neighbours by the median of the 3 x 3 pixels round them.

    Parameters
    ----------
    images : ndarray of shape (n_images, D, D)
        Real images.
    threshold : float
        How far off, in standard deviations of that difference over the image.

    Returns
    -------
    clipped : ndarray of shape (n_images, D, D), float32
    """
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="reflect")  # pixels of the edge count as well
    off = np.abs(neighbour_residual(padded))  # (n_images, D, D)
    # the mean of |residual| of noise is sqrt(2 / pi) of its standard deviation, and one pixel hardly moves it
    limit = threshold * math.sqrt(math.pi / 2.0) * off.mean(axis=(1, 2), keepdims=True)
    image, y, x = np.nonzero(off > limit)
    clipped = np.array(images, dtype=np.float32)
    around = [padded[image, y + dy, x + dx] for dy in range(3) for dx in range(3)]
    clipped[image, y, x] = np.median(around, axis=0) if len(image) else 0.0
    return clipped


def radial_power(images: Float32) -> Float64:
    """Mean of E|F|^2 over the frequencies of each shell, Eq. (1.1): white noise of variance s2 gives s2.

    Parameters
    ----------
    images : ndarray of shape (..., D, D)
        Real images.

    Returns
    -------
    power : ndarray of shape (..., D // 2 + 1), float64
        Entry r is the mean over all frequencies of the full plane whose radius rounds to r Fourier pixels;
        the corners beyond D // 2 are left out.
    """
    box = images.shape[-1]
    n_shells = box // 2 + 1
    ky, kx = np.fft.fftfreq(box, 1.0 / box)[:, None], np.fft.rfftfreq(box, 1.0 / box)
    shell = np.rint(np.hypot(kx, ky)).astype(np.int64)  # (D, D // 2 + 1)
    # Columns of the half transform stand for two frequencies, but for kx = 0 and (even box) Nyquist.
    weight = np.full(shell.shape, 2.0)
    weight[:, 0] = 1.0
    if box % 2 == 0:
        weight[:, -1] = 1.0
    kept = shell < n_shells
    order = np.argsort(shell[kept], kind="stable")
    starts = np.searchsorted(shell[kept][order], np.arange(n_shells))
    spectrum = fft.rfft2(images, norm="ortho", axes=(-2, -1), workers=1)
    power = np.abs(spectrum[..., kept]).astype(np.float64) ** 2 * weight[kept]
    sums = np.add.reduceat(power[..., order], starts, axis=-1)  # (..., n_shells)
    return np.asarray(sums / np.add.reduceat(weight[kept][order], starts))
