"""Numbers that tell a class of particles from junk: of its spectra, and of its average seen as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sklearn_cryoem.manifold.blocks import FeatureLayout
from sklearn_cryoem.manifold.classes import wiener_ridge
from sklearn_cryoem.metrics import resolution_from_frc
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.features import FeatureBlocks
from sklearn_cryoem.physics.fourier import Float64, HalfPlane, images_from_features
from sklearn_cryoem.physics.masks import pixel_radius

FRC_THRESHOLD = 0.143
REFERENCE_SIZE = 100  # particles of the average whose information is stated, whatever the size of the class
LOW_SHELLS = 4  # of the box: blobs, gradients and edges
ALIGNED_NOISE = 6.0  # L of Eq. (6.5), as images of nothing but noise have it: 2.3 to 6.5
RIM = 0.85  # of the mask's radius: where the particle should have ended
N_RINGS = 10  # of the mask, as wide as each other
MAX_EDGE = 10.0
BLUR, SUPPORT = 0.12, 0.05  # of the mask's radius; of the largest power: where the particle is
CENTRING_STEPS = 10  # of a disc to its own centroid
OUTER = 0.6  # of the mask's radius: beyond, most particles have ended, and faults of the detector go on
LINE_WIDTH, LINE_ANGLES = 0.75, 90  # Fourier pixels to either side of a line; directions tried
SPECTRAL = ("resolution", "snr", "information", "significance", "strength")
PICTORIAL = ("contrast", "edge", "offset", "extent", "spikes", "lines")


# ---------------------------------------------------------------- sums over the particles of a class
@dataclass(frozen=True)
class ClassSums:
    """Sums over the two halves of a class: its particles with even and with odd place in it.

    Attributes
    ----------
    cross : ndarray of shape (2, P)
        Sum of c y.
    gram : ndarray of shape (2, P)
        Sum of c^2.
    n_images : int
        Particles.
    layout : FeatureLayout
        Which feature lies in which shell.
    power : ndarray of shape (S,)
        Mean power of a feature of an image, by shell, as all that follow.
    mean_ctf2 : ndarray of shape (S,)
        Mean of c^2.
    signal : ndarray of shape (S,)
        Power of the signal without the bias of noise, Eq. (6.1); negative by chance.
    signal_in_images : ndarray of shape (S,)
        The same times the mean c^2, at least 0.
    noise : ndarray of shape (S,)
        Power of the noise of one image, Eq. (6.2).
    """

    cross: Float64
    gram: Float64
    n_images: int
    layout: FeatureLayout
    power: Float64
    mean_ctf2: Float64
    signal: Float64
    signal_in_images: Float64
    noise: Float64

    @property
    def per_shell(self) -> Float64:
        """Independent features of each shell; (S,)."""
        return self.layout.shell_sizes * self.layout.information

    @cached_property
    def correlation(self) -> Float64:
        """Correlation of the averages of the two halves by ring, from ring 0; (S + 1,)."""
        layout = self.layout
        one, other = self.average(0), self.average(1)
        shared = layout.sum_shells(one * other)
        norm = np.sqrt(layout.sum_shells(one**2) * layout.sum_shells(other**2))
        curve = np.divide(shared, norm, out=np.zeros_like(shared), where=norm > 0)
        return np.concatenate([[1.0], curve])

    @property
    def n_resolved(self) -> int:
        """Shells from the first whose half averages agree."""
        below = np.flatnonzero(self.correlation[1:] < FRC_THRESHOLD)
        return int(below[0]) if below.size else len(self.correlation) - 1

    def average(self, half: int | None) -> Float64:
        """CTF-corrected average, Wiener filtered by the signal of both halves, Eq. (3.6); (P,)."""
        cross = self.cross.sum(axis=0) if half is None else self.cross[half]
        gram = self.gram.sum(axis=0) if half is None else self.gram[half]
        ridge = wiener_ridge(self.signal, self.noise)  # (S,)
        return np.asarray(cross / (gram + ridge[self.layout.shell]))


def class_sums(blocks: FeatureBlocks) -> ClassSums:
    """Add up the particles of one class, aligned and masked.

    Parameters
    ----------
    blocks : FeatureBlocks
        The particles of the class; those without poses are taken as aligned.
    """
    layout = blocks.layout
    cross, gram = np.zeros((2, layout.n_features)), np.zeros((2, layout.n_norms))
    power = np.zeros(layout.n_shells)
    for index in range(len(blocks)):
        block = blocks.load(index, layout.n_shells)
        power += block.power.sum(axis=0)
        for half in (0, 1):
            rows = slice(half, None, 2)  # blocks begin at even rows
            cross[half] += block.data[rows].sum(axis=0, dtype=np.float64)
            gram[half] += block.norm[rows].sum(axis=0, dtype=np.float64)
    gram = gram[:, layout.norm_index]  # (2, P)
    n_values = blocks.n_samples * layout.shell_sizes  # (S,), as all that follow
    power, mean_ctf2 = power / n_values, layout.sum_shells(gram.sum(axis=0)) / n_values
    weight, shared = layout.sum_shells(gram[0] * gram[1]), layout.sum_shells(cross[0] * cross[1])
    signal = np.divide(shared, weight, out=np.zeros_like(shared), where=weight > 0)  # Eq. (6.1)
    in_images = np.maximum(signal, 0.0) * mean_ctf2
    noise = np.maximum(power - in_images, 1e-3 * power)  # Eq. (6.2)
    return ClassSums(cross, gram, blocks.n_samples, layout, power, mean_ctf2, signal, in_images, noise)


# ---------------------------------------------------------------- of spectra
def spectral_measures(sums: ClassSums, pixel_length: float, box: int, radius_px: float) -> dict[str, float]:
    """What the spectra of one class of at least two particles say: the values named in `SPECTRAL`.

    Parameters
    ----------
    sums : ClassSums
        Of the class.
    pixel_length : float
        In Angstrom; 1 for a resolution in pixels.
    box : int
        Side D in pixels.
    radius_px : float
        Radius of the particle's mask in pixels.
    """
    sizes, per_shell, noise = sums.layout.shell_sizes, sums.per_shell, sums.noise
    signal, resolved = sums.signal_in_images, slice(0, sums.n_resolved)
    error = _standard_error(signal / noise, sums)  # (S,)
    certain = np.maximum(signal / noise - error, 0.0)  # (S,)
    bits = 0.5 * per_shell * np.log2(1.0 + REFERENCE_SIZE * certain)  # Eq. (6.3)
    ratio = sums.signal * sums.mean_ctf2 / noise  # (S,)
    low = slice(0, min(LOW_SHELLS, len(sizes)))
    inner = slice(max(int(0.5 * box / radius_px), 1), resolved.stop)  # finer than the outline, Eq. (6.4)
    return {
        "resolution": float(resolution_from_frc(sums.correlation, pixel_length, box, FRC_THRESHOLD)),
        "snr": float((signal * sizes)[resolved].sum() / (noise * sizes).sum()),
        "information": float(bits[resolved].sum()),
        "significance": _significance(ratio[inner], error[inner], per_shell[inner], sums.n_images),
        "strength": float((sums.power * sizes)[low].sum() / sizes[low].sum()),
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


class ClassPower(NamedTuple):
    """Where the power of one class comes from, by shell; (S,)."""

    signal: Float64  # what its average explains
    rest: Float64  # what it does not explain: noise, and how its particles differ
    n_images: int
    n_resolved: int  # shells up to its resolution


def coherence(powers: list[ClassPower | None]) -> Float64:
    """Share of the power of each class above the usual noise that its average explains, Eq. (6.6).

    It is 1 where nothing but what is explained is above the usual noise, NaN without particles; (n_classes,).
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


# ---------------------------------------------------------------- of the average as a picture
def pictorial_measures(pictures: NDArray[Any], radius_px: float, plane: HalfPlane) -> dict[str, float]:
    """What the average of one class looks like: the values named in `PICTORIAL`.

    Parameters
    ----------
    pictures : ndarray of shape (3, D, D)
        Averages of the first half, the second half and of all.
    radius_px : float
        Radius of the particle's mask in pixels.
    plane : HalfPlane
        Frequencies that the averages hold.
    """
    first, second, average = pictures.astype(np.float64)
    radius = pixel_radius(average.shape[-1]) / radius_px  # (D, D), 1 at the mask's edge
    inside, rim = radius < 1.0, (radius >= RIM) & (radius < 1.0)
    shared = first * second  # what both halves have: the power of the signal, place by place
    level, spread = average[rim].mean(), average[inside].std()
    support = _support(first, second, radius_px)
    weight = np.where(inside, np.maximum(shared, 0.0), 0.0)  # a hollow particle is not in the middle
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
    return MAX_EDGE if strongest <= 0 else float(np.clip(shared[rim].mean() / strongest, 0.0, MAX_EDGE))


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
    if not squares.any():
        return 0.0
    n_coefficients = 2.0 * plane.n_coefficients
    share = squares.max() * picture.size / n_coefficients / squares.sum()
    return float(share * np.sqrt(n_coefficients * inside.mean()))


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


# ---------------------------------------------------------------- all of them
def measure_class(
    stack: ParticleStack, plane: HalfPlane, radius_px: float, rows: NDArray[np.intp]
) -> tuple[dict[str, float], ClassPower | None]:
    """All measures of the class that some rows of a stack are, and what `coherence` compares.

    With fewer than two particles the measures are NaN and there is no power. `plane` holds the frequencies
    used, and `radius_px` is the radius of the particle's mask.
    """
    if len(rows) < 2:
        return dict.fromkeys((*SPECTRAL, *PICTORIAL), np.nan), None
    sums = class_sums(FeatureBlocks(stack[rows], plane, None, cache_bytes=0))
    features = np.stack([sums.average(half) for half in (0, 1, None)]).astype(np.float32)
    pictures = images_from_features(features.view(np.complex64), plane)
    measures = spectral_measures(sums, stack.pixel_length, plane.box, radius_px)
    measures |= pictorial_measures(pictures, radius_px, plane)
    signal, rest = sums.per_shell * np.stack([sums.signal_in_images, sums.power - sums.signal_in_images])
    return measures, ClassPower(signal, rest, sums.n_images, sums.n_resolved)
