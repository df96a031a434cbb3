"""From images to half-plane Fourier features and back, Eq. (1.1)-(1.3), and images of other pixels.

Coefficients are sorted by radius, so that every resolution limit is a prefix: frequency marching slices
columns and never copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Complex64 = NDArray[np.complex64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class HalfPlane:
    """The Fourier coefficients that are kept, one of each conjugate pair, sorted by radius, Eq. (1.2).

    Attributes
    ----------
    box : int
        Side D of the images in pixels.
    k_max : float
        Largest radius kept, in Fourier pixels.
    kx, ky : ndarray of shape (J,), int
        Frequency of each coefficient in Fourier pixels; ``kx >= 0``, and ``ky > 0`` where ``kx == 0``.
    """

    box: int
    k_max: float
    kx: Int
    ky: Int

    @property
    def n_coefficients(self) -> int:
        """Number J of coefficients."""
        return int(self.kx.size)

    @cached_property
    def radius(self) -> Float64:
        """|k| in Fourier pixels, ascending; shape (J,)."""
        return np.hypot(self.kx, self.ky)

    @cached_property
    def azimuth(self) -> Float64:
        """atan2(ky, kx) in radians; shape (J,)."""
        return np.arctan2(self.ky, self.kx)

    @cached_property
    def shell(self) -> Int:
        """Nearest integer radius of each coefficient, from 1; shape (J,)."""
        return np.rint(self.radius).astype(np.int64)

    @cached_property
    def mirrored(self) -> Int:
        """Coefficient that each becomes in the mirror image, y -> -y; where kx = 0, its conjugate; (J,)."""
        place = np.lexsort((self.ky, self.kx))
        partner = np.lexsort((np.where(self.kx > 0, -self.ky, self.ky), self.kx))
        index = np.empty_like(place)
        index[partner] = place
        return index


def half_plane(box: int, k_max: float | None = None) -> HalfPlane:
    """List the coefficients of Eq. (1.2) for images of side `box`.

    Parameters
    ----------
    box : int
        Side D of the images in pixels, at least 4.
    k_max : float, optional
        Largest radius kept, in Fourier pixels; at most the largest that stays clear of Nyquist, which is
        also the default: (D - 1) // 2.

    Raises
    ------
    ValueError
        If no coefficient would be left.
    """
    limit = float((box - 1) // 2)
    k_max = limit if k_max is None else min(float(k_max), limit)
    ky, kx = np.meshgrid(np.arange(-int(limit), int(limit) + 1), np.arange(int(limit) + 1), indexing="ij")
    radius_squared = kx**2 + ky**2
    kept = (radius_squared > 0) & (radius_squared <= (k_max + 1e-9) ** 2) & ((kx > 0) | (ky > 0))
    kx, ky, radius_squared = kx[kept], ky[kept], radius_squared[kept]
    if kx.size == 0:
        raise ValueError(
            f"No Fourier coefficient has 0 < |k| <= {k_max:g} in a box of {box} pixels. "
            "Ask for a finer resolution, or use larger images."
        )
    order = np.lexsort((kx, ky, radius_squared))
    return HalfPlane(box, k_max, kx[order].astype(np.int64), ky[order].astype(np.int64))


def coarser_shells(side: float, min_resolution: float | None, n_shells: float) -> int:
    """Count the shells, 1, 2, .., of a box of length `side` that are coarser than a resolution.

    Raises
    ------
    ValueError
        If fewer than two of `n_shells` are left.
    """
    if min_resolution is None:
        return 0
    n_coarser = max(int(np.ceil(side / min_resolution - 1e-9)) - 1, 0)
    if n_coarser + 2 > n_shells:
        raise ValueError(
            f"min_resolution={min_resolution:g} leaves less than two Fourier shells of detail down to "
            f"{side / n_shells:.3g}. Give a coarser one: 40 to 60 Angstrom are usual."
        )
    return n_coarser


def rfft_weights(box: int) -> Float64:
    """How often each column of an rfft2 occurs in the full transform; (D // 2 + 1,)."""
    weights = np.full(box // 2 + 1, 2.0)
    weights[0] = 1.0  # kx = 0 holds both members of a pair
    if box % 2 == 0:
        weights[-1] = 1.0  # so does Nyquist, which only even boxes have
    return weights


def centre_phase(box: int, kx: Int, ky: Int) -> Complex64:
    """exp(2 pi i k.c / D) with c = D // 2: moves the origin from the corner pixel to the centre pixel."""
    centre = box // 2
    phase: Complex64 = np.exp(2j * np.pi * centre * (kx + ky) / box).astype(np.complex64)
    return phase


def fourier_features(images: Float32, plane: HalfPlane) -> Complex64:
    """Half-plane coefficients of `images` about the centre pixel, times sqrt(2), Eq. (1.1)-(1.3).

    Parameters
    ----------
    images : ndarray of shape (n_images, D, D)
        Real images.
    plane : HalfPlane
        Which coefficients to keep; of the same box.

    Returns
    -------
    features : ndarray of shape (n_images, J), complex64
        White noise of variance s2 per pixel has variance s2 in the real and in the imaginary part.
        ``features.view(np.float32)`` is the real vector of length 2 J, real and imaginary part in turn.

    Notes
    -----
    One real FFT an image: O(n_images D^2 log D).
    """
    spectrum = fft.rfft2(images, norm="ortho", axes=(-2, -1), workers=1)  # (n_images, D, D // 2 + 1)
    scale = np.float32(np.sqrt(2.0)) * centre_phase(plane.box, plane.kx, plane.ky)
    # gathered by flat index: `spectrum[..., ky, kx]` would come out transposed in memory
    flat = (plane.ky % plane.box) * spectrum.shape[-1] + plane.kx  # (J,)
    features = np.take(spectrum.reshape(*spectrum.shape[:-2], -1), flat, axis=-1)
    features *= scale
    return np.asarray(features, dtype=np.complex64)


def images_from_features(features: Complex64, plane: HalfPlane) -> Float32:
    """Inverse of `fourier_features`; frequencies outside the half plane (DC included) are zero.

    Parameters
    ----------
    features : ndarray of shape (..., J), complex
        Half-plane coefficients times sqrt(2).
    plane : HalfPlane
        Which coefficients they are.

    Returns
    -------
    images : ndarray of shape (..., D, D), float32
    """
    box = plane.box
    scale = np.float32(np.sqrt(0.5)) * np.conj(centre_phase(box, plane.kx, plane.ky))
    spectrum = np.zeros((*features.shape[:-1], box, box // 2 + 1), dtype=np.complex64)
    values = features * scale
    spectrum[..., plane.ky, plane.kx] = values
    on_axis = plane.kx == 0  # the column kx = 0 holds both members of a pair
    spectrum[..., -plane.ky[on_axis], 0] = np.conj(values[..., on_axis])
    images: Float32 = fft.irfft2(spectrum, s=(box, box), norm="ortho", axes=(-2, -1), workers=1)
    return images


def fourier_resize(images: Float32, box: int) -> Float32:
    """Resample `images` to side `box` by cropping or padding their Fourier transform.

    The centre pixel stays the centre pixel, and pixel values keep their scale: the mean is preserved. White
    noise of variance s2 has variance s2 (box / D)^2 afterwards when cropped.

    Parameters
    ----------
    images : ndarray of shape (n_images, D, D)
        Real images.
    box : int
        New side in pixels.

    Returns
    -------
    resized : ndarray of shape (n_images, box, box), float32
    """
    old = images.shape[-1]
    if box == old:
        return images
    limit = (min(old, box) - 1) // 2
    kx = np.arange(limit + 1)
    ky = np.arange(-limit, limit + 1)
    spectrum = fft.rfft2(images, axes=(-2, -1), workers=1)  # (n_images, D, D // 2 + 1)
    kept = spectrum[..., ky[:, None], kx]  # (n_images, 2 limit + 1, limit + 1)
    turn = np.exp(2j * np.pi * (old // 2 / old - box // 2 / box) * (ky[:, None] + kx)).astype(np.complex64)
    resized = np.zeros((*images.shape[:-2], box, box // 2 + 1), dtype=np.complex64)
    resized[..., ky[:, None], kx] = kept * turn * np.float32((box / old) ** 2)
    images_resized: Float32 = fft.irfft2(resized, s=(box, box), axes=(-2, -1), workers=1)
    return images_resized


def resample(images: Float32, box: int, ratio: float) -> Float32:
    """Bring images to larger pixels and another box about the centre pixel; 0 beyond the old one.

    Each image is the trigonometric polynomial of its Fourier coefficients; those that the new pixels can hold
    are summed at the places of the new pixels, which need not be a multiple of anything. As it is a product
    of one matrix for each axis, it costs D^2 D' + D D'^2.

    Parameters
    ----------
    images : ndarray of shape (n_images, D, D)
        Real images.
    box : int
        New side D' in new pixels.
    ratio : float
        New pixel size over the old one, at least 1.

    Returns
    -------
    resampled : ndarray of shape (n_images, D', D'), float32
        White noise keeps its variance, so images of normalised background stay normalised, and the same
        particle under the same dose has the same signal-to-noise ratio at every frequency.

    Raises
    ------
    ValueError
        If the new pixels are smaller.
    """
    old = images.shape[-1]
    if ratio < 1.0 or box < 1:
        raise ValueError(f"{box} pixels that are {ratio:g} times larger cannot be made. Use larger pixels.")
    matrix = _resampling_matrix(old, box, float(ratio))  # (D', D)
    along = np.matmul(images, matrix.T)  # (n_images, D, D')
    resampled: Float32 = np.matmul(matrix, along)
    return resampled


@lru_cache(maxsize=16)
def _resampling_matrix(old: int, box: int, ratio: float) -> Float32:
    """Weight of each old pixel in each new one along an axis; (D', D)."""
    place = (np.arange(box) - box // 2) * ratio + old // 2  # of the new pixels among the old ones
    if ratio == 1.0:
        return np.asarray(np.arange(old) == place[:, None], dtype=np.float32)  # a crop
    finest = int(min((old - 1) // 2, np.ceil(old / (2.0 * ratio)) - 1))
    turn = 2.0 * np.pi / old * (place[:, None] - np.arange(old))  # (D', D)
    sums = 1.0 + 2.0 * sum(np.cos(k * turn) for k in range(1, finest + 1))
    sums[np.abs(place - 0.5 * (old - 1)) > 0.5 * old] = 0.0  # the polynomial goes on periodically, images end
    # along one axis the variance of white noise falls by the ratio: taken back by its square root
    return np.asarray(sums / old * np.sqrt(ratio), dtype=np.float32)
