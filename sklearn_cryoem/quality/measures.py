"""Numbers that tell a class of particles from junk: of its spectra, and of its average seen as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem.metrics import resolution_from_frc
from sklearn_cryoem.physics.fourier import HalfPlane
from sklearn_cryoem.physics.masks import pixel_radius
from sklearn_cryoem.quality.halves import ClassSums

Float64 = NDArray[np.float64]

FRC_THRESHOLD = 0.143
REFERENCE_SIZE = 100  # particles of the average whose information is stated, whatever the size of the class
LOW_SHELLS = 4  # of the box: blobs, gradients and edges
CORE, RIM = 0.6, 0.85  # of the mask's radius: the particle's middle, and where it should have ended
LARGEST_EDGE = 10.0
OUTER = 0.6  # of the mask's radius: beyond, most particles have ended, and faults of the detector go on
LINE_WIDTH, LINE_ANGLES = 0.75, 90  # Fourier pixels to either side of a line; directions tried
SPECTRAL = ("resolution", "snr", "information", "strength")
PICTORIAL = ("contrast", "edge", "offset", "spikes", "lines")


def spectral_measures(sums: ClassSums, pixel_size: float, box: int) -> dict[str, float]:
    """Resolution, signal-to-noise ratio, information and low-resolution power of one class.

    Parameters
    ----------
    sums : ClassSums
        Of at least two particles.
    pixel_size : float
        In Angstrom; 1 for a resolution in pixels.
    box : int
        Side D in pixels.

    Returns
    -------
    dict of float
        The values named in `SPECTRAL`.
    """
    curve = sums.correlation()  # (S + 1,)
    resolution = float(resolution_from_frc(curve, pixel_size, box, FRC_THRESHOLD))
    below = np.flatnonzero(curve[1:] < FRC_THRESHOLD)
    n_resolved = int(below[0]) if below.size else len(curve) - 1  # shells from the first
    sizes = sums.layout.shell_sizes
    noise = sums.noise()
    signal = np.maximum(sums.signal(), 0.0) * sums.mean_ctf2  # in the images
    shells = slice(0, n_resolved)
    snr = (signal * sizes)[shells].sum() / (noise * sizes).sum()
    certain = np.maximum(signal / noise - _standard_error(signal / noise, sums), 0.0)  # (S,)
    bits = 0.5 * sums.per_shell * np.log2(1.0 + REFERENCE_SIZE * certain)  # Eq. (6.3)
    low = slice(0, min(LOW_SHELLS, len(sizes)))
    strength = sums.power[low].sum() / (sums.n_images * sizes[low].sum())
    return {
        "resolution": resolution,
        "snr": float(snr),
        "information": float(bits[shells].sum()),
        "strength": float(strength),
    }


def _standard_error(ratio: Float64, sums: ClassSums) -> Float64:
    """Standard error of the signal-to-noise ratio of each shell, from the product of two halves; (S,)."""
    half = 2.0 / sums.n_images
    variance = ((ratio + half) ** 2 + ratio**2) / np.maximum(sums.per_shell, 1.0)
    return np.asarray(np.sqrt(variance))


def pictorial_measures(pictures: NDArray[Any], radius_px: float, plane: HalfPlane) -> dict[str, float]:
    """What the average of one class looks like.

    Parameters
    ----------
    pictures : ndarray of shape (3, D, D)
        Averages of the first half, the second half and of all.
    radius_px : float
        Radius of the particle's mask in pixels.
    plane : HalfPlane
        Frequencies that the averages hold.

    Returns
    -------
    dict of float
        The values named in `PICTORIAL`.
    """
    first, second, average = pictures.astype(np.float64)
    radius = pixel_radius(average.shape[-1]) / radius_px  # (D, D), 1 at the mask's edge
    inside, core, rim = radius < 1.0, radius < CORE, (radius >= RIM) & (radius < 1.0)
    shared = first * second  # what both halves have: the power of the signal, place by place
    centre_power, rim_power = shared[core].mean(), shared[rim].mean()
    edge = LARGEST_EDGE if centre_power <= 0 else np.clip(rim_power / centre_power, 0.0, LARGEST_EDGE)
    level, spread = average[rim].mean(), average[inside].std()
    contrast = (average[core].mean() - level) / spread if spread > 0 else 0.0
    return {
        "contrast": float(contrast),
        "edge": float(edge),
        "offset": _offset(average - level, inside),
        "spikes": _spikes(average, inside, plane),
        "lines": _lines(average, radius, plane.k_max),
    }


def _offset(picture: Float64, inside: NDArray[np.bool_]) -> float:
    """Distance of the centre of mass of what is bright from the centre, over the radius of the mask."""
    box = picture.shape[-1]
    axis = np.arange(box) - box // 2
    mass = np.where(inside, np.maximum(picture, 0.0), 0.0)
    total = mass.sum()
    if total <= 0:
        return 0.0
    x, y = (mass * axis).sum() / total, (mass * axis[:, None]).sum() / total
    return float(np.hypot(x, y) / np.sqrt(inside.sum() / np.pi))


def _spikes(picture: Float64, inside: NDArray[np.bool_], plane: HalfPlane) -> float:
    """Share of the power that one point of this resolution holds, times the root of how many there are.

    A particle of many pixels has about 1 at any resolution; hot pixels, aligned to each other, 3 and more.
    """
    squares = (picture[inside] - np.median(picture[inside])) ** 2  # (n_pixels,)
    n_points = 2.0 * plane.n_coefficients * inside.mean()
    share = (
        squares.max() * picture.size / (2.0 * plane.n_coefficients) / squares.sum() if squares.any() else 0.0
    )
    return float(share * np.sqrt(n_points))


def _lines(picture: Float64, radius: Float64, k_max: float) -> float:
    """Share of the power in one line of the Fourier plane; 0 to 1.

    Stripes have it in the particle and beyond; a bad row or column at all fine detail, where long particles
    have none, and layered ones at one period alone. The larger is taken.
    """
    whole = _line_share(picture, radius < 1.0, 3.0, k_max)
    outer = _line_share(picture, (radius >= OUTER) & (radius < 1.0), 3.0, k_max)
    fine = [
        _line_share(picture, radius < 1.0, low * k_max, high * k_max)
        for low, high in ((0.5, 0.75), (0.75, 1.0))
    ]
    return max(float(np.sqrt(whole * outer)), min(fine))


def _line_share(picture: Float64, where: NDArray[np.bool_], k_min: float, k_max: float) -> float:
    """Largest share of the power between two radii that lies on a line through the origin."""
    box = picture.shape[-1]
    power = np.abs(np.fft.rfft2(np.where(where, picture - picture[where].mean(), 0.0))) ** 2
    ky, kx = np.fft.fftfreq(box, 1.0 / box)[:, None], np.fft.rfftfreq(box, 1.0 / box)
    ring = (np.hypot(kx, ky) >= k_min) & (np.hypot(kx, ky) < min(k_max, box // 2))
    weight = np.where(kx > 0, 2.0, 1.0) * power  # column 0 holds both signs of ky, others stand for two
    ky, kx = np.broadcast_to(ky, ring.shape)[ring], np.broadcast_to(kx, ring.shape)[ring]
    angles = np.arange(LINE_ANGLES) * np.pi / LINE_ANGLES
    along = [weight[ring][np.abs(kx * np.sin(a) - ky * np.cos(a)) <= LINE_WIDTH].sum() for a in angles]
    total = weight[ring].sum()
    return float(max(along) / total) if total > 0 else 0.0


def measure_class(sums: ClassSums, plane: HalfPlane, pixel_size: float, radius_px: float) -> dict[str, float]:
    """All measures of one class of at least two particles."""
    return {
        **spectral_measures(sums, pixel_size, plane.box),
        **pictorial_measures(sums.images(plane), radius_px, plane),
    }
