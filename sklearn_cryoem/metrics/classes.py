"""What classes are worth without a truth: resolution of their averages, and how many they really are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft
from scipy.stats import entropy

from sklearn_cryoem._core.parallel import row_blocks
from sklearn_cryoem.physics.images import ring_sums

FRC_PIXELS = 2**17  # transformed at once: transforms are ten times larger than the averages


def fourier_ring_correlation(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Correlation of two images (or of two stacks, image by image) ring by ring in Fourier space.

    Parameters
    ----------
    first, second : array_like of shape (..., D, D)
        Usually averages over two halves of the particles of a class.

    Returns
    -------
    correlation : ndarray of shape (..., D // 2 + 1)
        Entry r is for the frequencies whose radius rounds to r Fourier pixels, that is for the resolution
        D * pixel_size / r. A ring on which one of the images is zero gives 0.

    Raises
    ------
    ValueError
        If the shapes differ or the images are not square.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != other.shape or one.ndim < 2 or one.shape[-1] != one.shape[-2]:
        raise ValueError(
            f"The images have shapes {one.shape} and {other.shape}, expected two of the same "
            "shape (..., D, D). Bring both to one box first."
        )
    box = one.shape[-1]
    spectrum_one, spectrum_other = fft.rfft2(one, workers=1), fft.rfft2(other, workers=1)
    cross = ring_sums((spectrum_one * spectrum_other.conj()).real, box)
    norm = np.sqrt(ring_sums(np.abs(spectrum_one) ** 2, box) * ring_sums(np.abs(spectrum_other) ** 2, box))
    return np.divide(cross, norm, out=np.zeros_like(cross), where=norm > 0)


def resolution_from_frc(
    correlation: ArrayLike, pixel_size: float, box: int, threshold: float = 0.143
) -> NDArray[np.float64] | float:
    """Resolution at which a Fourier ring correlation first falls below a threshold.

    Parameters
    ----------
    correlation : array_like of shape (..., n_rings)
        From `fourier_ring_correlation`; ring 0 is not looked at.
    pixel_size : float
        In Angstrom (1 for a resolution in pixels).
    box : int
        Side D of the images in pixels.
    threshold : float
        0.143 for two half sets, 0.5 for two images of independent origin.

    Returns
    -------
    resolution : float or ndarray of shape (...)
        In Angstrom, interpolated between rings. The resolution of the last ring if the curve never falls
        below the threshold; infinity if it starts below.
    """
    curve = np.asarray(correlation, dtype=np.float64)
    below = curve[..., 1:] < threshold  # (..., n_rings - 1), rings from 1
    n_rings = curve.shape[-1] - 1
    first = np.where(below.any(axis=-1), below.argmax(axis=-1) + 1, n_rings + 1)  # first ring below
    right = np.minimum(first, n_rings)
    high = np.take_along_axis(curve, np.maximum(right - 1, 0)[..., None], axis=-1)[..., 0]
    low = np.take_along_axis(curve, right[..., None], axis=-1)[..., 0]
    step = np.divide(high - threshold, high - low, out=np.zeros_like(high), where=high > low)
    crossing = np.where(first > n_rings, float(n_rings), right - 1 + step)  # in rings
    crossing = np.where(first == 1, 0.0, crossing)
    with np.errstate(divide="ignore"):
        resolution = np.where(crossing > 0, box * pixel_size / np.asarray(crossing), np.inf)
    return float(resolution) if resolution.ndim == 0 else resolution


def class_resolution(
    first: NDArray[np.float32], second: NDArray[np.float32], pixel_size: float, n_shells: int
) -> NDArray[np.float64]:
    """Resolution of each class: where the correlation of its two half averages falls below 0.143.

    Parameters
    ----------
    first, second : ndarray of shape (n_classes, D, D)
        Averages over two halves of the images.
    pixel_size : float
        In Angstrom (1 for a resolution in pixels).
    n_shells : int
        Rings of Fourier space that averages have, beside ring 0.

    Returns
    -------
    resolution : ndarray of shape (n_classes,)
        As of `resolution_from_frc`.
    """
    n_classes, box = first.shape[:2]
    curves = [
        fourier_ring_correlation(first[some], second[some])[:, : n_shells + 1]
        for some in row_blocks(n_classes, max(1, FRC_PIXELS // box**2))
    ]
    return np.asarray(resolution_from_frc(np.concatenate(curves), pixel_size, box))


def effective_count(sizes: ArrayLike) -> float:
    """Exponential of the entropy of class sizes: as many equal classes would be as mixed, Eq. (3.8).

    Parameters
    ----------
    sizes : array_like of shape (n_classes,)
        Particles of each class; empty classes do not count.

    Returns
    -------
    count : float
        0 without particles.
    """
    size = np.asarray(sizes, dtype=np.float64)
    return float(np.exp(entropy(size))) if size.any() else 0.0


class EffectiveClasses(NamedTuple):
    """How many classes a classification really uses, Eq. (3.8)."""

    occupied: int
    """Classes with at least one particle."""
    perplexity: float
    """exp(entropy of the class sizes): the number of equal classes that would be as mixed."""


def effective_classes(labels: ArrayLike) -> EffectiveClasses:
    """Count classes that hold particles, and the exponential of the entropy of their sizes, Eq. (3.8).

    Parameters
    ----------
    labels : array_like of shape (n_images,), int
        Class of each particle; negative labels are left out.

    Returns
    -------
    effective : EffectiveClasses
        ``(occupied, perplexity)``.
    """
    values = np.asarray(labels)
    _, sizes = np.unique(values[values >= 0], return_counts=True)
    return EffectiveClasses(int(sizes.size), effective_count(sizes))
