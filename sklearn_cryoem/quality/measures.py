"""Numbers that tell a class of particles from junk: of its spectra, and of its average seen as a picture."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sklearn_cryoem.metrics import resolution_from_frc
from sklearn_cryoem.physics.fourier import HalfPlane
from sklearn_cryoem.physics.masks import pixel_radius
from sklearn_cryoem.quality.halves import ClassSums

Float64 = NDArray[np.float64]

FRC_THRESHOLD = 0.143
REFERENCE_SIZE = 100  # particles of the average whose information is stated, whatever the size of the class
LOW_SHELLS = 4  # of the box: blobs, gradients and edges
ALIGNED_NOISE = 6.0  # L of Eq. (6.5), as images of nothing but noise have it: 2.3 to 6.5
RIM = 0.85  # of the mask's radius: where the particle should have ended
N_RINGS = 10  # of the mask, as wide as each other
LARGEST_EDGE = 10.0
BLUR, SUPPORT = 0.12, 0.05  # of the mask's radius; of the largest power: where the particle is
CENTRING_STEPS = 10  # of a disc to its own centroid
OUTER = 0.6  # of the mask's radius: beyond, most particles have ended, and faults of the detector go on
LINE_WIDTH, LINE_ANGLES = 0.75, 90  # Fourier pixels to either side of a line; directions tried
SPECTRAL = ("resolution", "snr", "information", "significance", "strength")
PICTORIAL = ("contrast", "edge", "offset", "extent", "spikes", "lines")


def spectral_measures(sums: ClassSums, pixel_size: float, box: int, radius_px: float) -> dict[str, float]:
    """Resolution, signal-to-noise ratio, information, significance and low-resolution power of one class.

    Parameters
    ----------
    sums : ClassSums
        Of at least two particles.
    pixel_size : float
        In Angstrom; 1 for a resolution in pixels.
    box : int
        Side D in pixels.
    radius_px : float
        Radius of the particle's mask in pixels.

    Returns
    -------
    dict of float
        The values named in `SPECTRAL`.
    """
    curve = sums.correlation()  # (S + 1,)
    resolution = float(resolution_from_frc(curve, pixel_size, box, FRC_THRESHOLD))
    sizes = sums.layout.shell_sizes
    noise = sums.noise()
    signal = np.maximum(sums.signal(), 0.0) * sums.mean_ctf2  # in the images
    shells = slice(0, _n_resolved(curve))
    snr = (signal * sizes)[shells].sum() / (noise * sizes).sum()
    error = _standard_error(signal / noise, sums)  # (S,)
    certain = np.maximum(signal / noise - error, 0.0)  # (S,)
    bits = 0.5 * sums.per_shell * np.log2(1.0 + REFERENCE_SIZE * certain)  # Eq. (6.3)
    ratio = sums.signal() * sums.mean_ctf2 / noise  # (S,)
    low = slice(0, min(LOW_SHELLS, len(sizes)))
    strength = sums.power[low].sum() / (sums.n_images * sizes[low].sum())
    inner = slice(max(int(0.5 * box / radius_px), 1), shells.stop)  # finer than the outline, Eq. (6.4)
    return {
        "resolution": resolution,
        "snr": float(snr),
        "information": float(bits[shells].sum()),
        "significance": _significance(ratio[inner], error[inner], sums.per_shell[inner], sums.n_images),
        "strength": float(strength),
    }


def _standard_error(ratio: Float64, sums: ClassSums) -> Float64:
    """Standard error of the signal-to-noise ratio of each shell, from the product of two halves; (S,)."""
    half = 2.0 / sums.n_images
    variance = ((ratio + half) ** 2 + ratio**2) / np.maximum(sums.per_shell, 1.0)
    return np.asarray(np.sqrt(variance))


def _significance(ratio: Float64, error: Float64, per_shell: Float64, n_images: int) -> float:
    """Energy of the signal in one image over that of aligned noise, less its error, Eq. (6.4)-(6.5)."""
    energy = per_shell @ ratio - np.sqrt(((per_shell * error) ** 2).sum())  # Eq. (6.4)
    crowd = 4.0 * per_shell.sum() / (n_images * ALIGNED_NOISE)
    of_noise = 0.5 * ALIGNED_NOISE * (1.0 + np.sqrt(1.0 + crowd))  # Eq. (6.5)
    return float(max(energy, 0.0) / of_noise)


def _n_resolved(curve: Float64) -> int:
    """Shells from the first whose half averages, correlated as `curve` (S + 1,) says, agree."""
    below = np.flatnonzero(curve[1:] < FRC_THRESHOLD)
    return int(below[0]) if below.size else len(curve) - 1


class ClassPower(NamedTuple):
    """Where the power of one class comes from; everything by independent feature, (S,).

    Attributes
    ----------
    signal : ndarray of shape (S,)
        What its average explains.
    rest : ndarray of shape (S,)
        What it does not explain: noise, and how its particles differ.
    n_images : int
        Particles.
    n_resolved : int
        Shells up to its resolution.
    """

    signal: Float64
    rest: Float64
    n_images: int
    n_resolved: int

    @classmethod
    def of(cls, sums: ClassSums) -> ClassPower:
        """Of a class of at least two particles."""
        signal = np.maximum(sums.signal(), 0.0) * sums.mean_ctf2
        mean = sums.power / (sums.n_images * sums.layout.shell_sizes)
        rows = sums.per_shell * np.stack([signal, mean - signal])
        return cls(rows[0], rows[1], sums.n_images, _n_resolved(sums.correlation()))


def coherence(powers: list[ClassPower | None]) -> Float64:
    """Share of the power of each class above the usual noise that its average explains, Eq. (6.6).

    Parameters
    ----------
    powers : list of ClassPower or None
        Of the classes of one run.

    Returns
    -------
    ndarray of shape (n_classes,)
        0 to 1; 1 as well where nothing is above the usual noise but what is explained, NaN without particles.
    """
    known = [power for power in powers if power is not None]
    n_images = sum(power.n_images for power in known)
    usual = sum(power.n_images * power.rest for power in known) / max(n_images, 1)  # (S,)
    shares = np.full(len(powers), np.nan)
    for number, power in enumerate(powers):
        if power is not None:
            shells = slice(0, power.n_resolved)
            signal, excess = power.signal[shells].sum(), (power.rest - usual)[shells].sum()
            shares[number] = signal / (signal + excess) if excess > 0 else 1.0
    return shares


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
    inside, rim = radius < 1.0, (radius >= RIM) & (radius < 1.0)
    shared = first * second  # what both halves have: the power of the signal, place by place
    level, spread = average[rim].mean(), average[inside].std()
    support = _support(first, second, radius_px)
    weight = np.where(
        inside, np.maximum(shared, 0.0), 0.0
    )  # where the particle is: a hollow one not in the middle
    bright = (weight * average).sum() / max(weight.sum(), np.finfo(float).tiny) - level
    return {
        "contrast": float(bright / spread) if spread > 0 else 0.0,
        "edge": _edge(shared, radius, rim),
        "offset": _offset(support, radius_px),
        "extent": float((np.hypot(*support.T) < radius_px).sum() / inside.sum()),
        "spikes": _spikes(average, inside, plane),
        "lines": _lines(average, radius, plane.k_max),
    }


def _edge(shared: Float64, radius: Float64, rim: NDArray[np.bool_]) -> float:
    """Power of the signal at the mask's rim over that of the strongest ring within, maybe that of a shell."""
    ring = np.minimum((radius * N_RINGS).astype(np.int64), N_RINGS)  # (D, D), N_RINGS outside of the mask
    counts = np.bincount(ring.ravel(), minlength=N_RINGS)
    power = np.bincount(ring.ravel(), weights=shared.ravel(), minlength=N_RINGS) / np.maximum(counts, 1)
    strongest = power[: int(RIM * N_RINGS)].max()
    return (
        LARGEST_EDGE if strongest <= 0 else float(np.clip(shared[rim].mean() / strongest, 0.0, LARGEST_EDGE))
    )


def _support(first: Float64, second: Float64, radius_px: float) -> NDArray[np.int64]:
    """Places (x, y) of the particle's support from the middle of the box; (n_places, 2).

    The support is where both halves, blurred, are bright and agree.
    """
    one, other = (gaussian_filter(half, BLUR * radius_px) for half in (first, second))
    power = np.where((one > 0) & (other > 0), one * other, 0.0)
    y, x = np.nonzero(power > SUPPORT * power.max())
    return np.column_stack([x, y]) - first.shape[-1] // 2


def _offset(support: NDArray[np.int64], radius_px: float) -> float:
    """Distance from the centre of the particle's support to that of the box, over the radius of the mask.

    Each place counts alike, so that a dense part of an asymmetric particle does not pull. A disc as large as
    the mask follows the support out of the mask, and leaves neighbours behind.
    """
    centre = np.zeros(2)
    for _ in range(CENTRING_STEPS):
        near = np.hypot(*(support - centre).T) < radius_px
        if not near.any():
            break
        centre = support[near].mean(axis=0)
    return float(np.hypot(*centre) / radius_px)


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


def measure_class(
    sums: ClassSums, plane: HalfPlane, pixel_size: float, radius_px: float
) -> tuple[dict[str, float], ClassPower]:
    """All measures of one class of at least two particles, and what `coherence` compares."""
    measures = {
        **spectral_measures(sums, pixel_size, plane.box, radius_px),
        **pictorial_measures(sums.images(plane), radius_px, plane),
    }
    return measures, ClassPower.of(sums)
