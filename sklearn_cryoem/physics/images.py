"""Background, power and hot pixels of images: putting them right, and what one look tells of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from sklearn_cryoem.physics.fourier import Float32, Float64, rfft_weights
from sklearn_cryoem.physics.masks import pixel_radius

CLIP = 3.0  # standard deviations: pixels beyond it tell of a hot pixel, not of their line
BLANK = 0.35  # of the mean difference of neighbours: lines that differ or vary less are blank, binned or not
CONSTANT = 1e-2  # of the variance of the image: a background that was cut away, or images without noise
MIN_SEEN = 0.9  # of the backgrounds have to be there to be compared
_TINY = np.finfo(np.float32).tiny


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
    spectrum = fft.rfft2(images, norm="ortho", axes=(-2, -1), workers=1)
    power = np.abs(spectrum).astype(np.float64) ** 2
    return ring_sums(power, box) / ring_sums(np.ones(power.shape[-2:]), box)


def ring_sums(values: Float64, box: int) -> Float64:
    """Sum values on the frequencies of an rfft2 over rings of the full plane.

    Parameters
    ----------
    values : ndarray of shape (..., D, D // 2 + 1)
        The same for a frequency and its opposite.
    box : int
        Side D of the images.

    Returns
    -------
    sums : ndarray of shape (..., D // 2 + 1)
        Entry r is over the frequencies whose radius rounds to r Fourier pixels; corners are left out.
    """
    ky, kx = np.fft.fftfreq(box, 1.0 / box)[:, None], np.fft.rfftfreq(box, 1.0 / box)
    ring = np.rint(np.hypot(kx, ky)).ravel()
    order = np.argsort(ring, kind="stable")
    starts = np.searchsorted(ring[order], np.arange(box // 2 + 2))
    weighted = (values * rfft_weights(box)).reshape(*values.shape[:-2], ring.size)
    return np.asarray(np.add.reduceat(weighted[..., order[: starts[-1]]], starts[:-1], axis=-1))


@dataclass(frozen=True)
class Measures:
    """What one look at images tells of each.

    Attributes
    ----------
    level, spread : ndarrays of shape (n_images,)
        Mean and standard deviation of the background.
    log_power : ndarray of shape (n_images, n_bands)
        Natural logarithm of the mean power in bands of Fourier shells.
    hot_pixel : ndarray of shape (n_images,)
        How far the most outlying pixel lies from its four neighbours, in standard deviations of that.
    stripe : ndarray of shape (n_images,)
        How far the most outlying row or column lies from its two neighbours, in standard deviations of that.
    blank_lines : ndarray of shape (n_images,)
        Share of the rows, or of the columns, that are constant or repeat the next one.
    """

    level: Float64
    spread: Float64
    log_power: Float64
    hot_pixel: Float64
    stripe: Float64
    blank_lines: Float64

    def __len__(self) -> int:
        return len(self.level)

    @property
    def unusable(self) -> NDArray[np.bool_]:
        """Which images are constant or not finite; (n_images,)."""
        return np.isnan(self.level)

    @property
    def have_backgrounds(self) -> bool:
        """Whether images have noise round the particle: they are neither masked nor free of noise."""
        return bool(np.count_nonzero(self.spread > 0) >= MIN_SEEN * max(len(self), 1))

    @property
    def values(self) -> Float64:
        """Level in spreads, hot pixel, stripe, blank lines and powers of all; (n_images, 4 + n_bands)."""
        seen = self.spread > 0  # neither cut away nor unusable
        level = self.level / np.median(self.spread[seen]) if seen.any() else 0.0 * self.level
        return np.column_stack([level, self.hot_pixel, self.stripe, self.blank_lines, self.log_power])

    def normalised(self) -> Measures:
        """What the images would be measured as with a background of mean 0 and standard deviation 1."""
        # where the background is cut away, by all of the image, as `normalise_background` does
        log_spread = 0.5 * self.log_power.mean(axis=1)
        np.log(self.spread, out=log_spread, where=self.spread > 0)
        log_power = self.log_power - 2.0 * log_spread[:, None]
        sound = 0.0 * self.level  # NaN stays
        return replace(self, level=sound, spread=sound + 1.0, log_power=log_power)


def band_edges(box: int) -> list[int]:
    """Edges of the bands in Fourier pixels: half an octave each from shell 4 on, up to Nyquist."""
    edges = [1, 4]
    while edges[-1] < box // 2:
        edges.append(math.ceil(edges[-1] * math.sqrt(2.0)))
    edges[-1] = box // 2 + 1
    return edges


class Ruler:
    """Measures images of one box; one FFT and about fifteen passes over the pixels of each.

    Parameters
    ----------
    box : int
        Side of the images in pixels.
    radius_px : float
        The background lies farther than this from the centre pixel.
    """

    def __init__(self, box: int, radius_px: float) -> None:
        self.box = box
        outside = (pixel_radius(box) > radius_px).ravel()
        self._background = (outside / outside.sum()).astype(np.float32)  # (D^2,)
        ky, kx = np.fft.fftfreq(box, 1.0 / box)[:, None], np.fft.rfftfreq(box, 1.0 / box)[None]
        shell = np.rint(np.hypot(ky, kx)).ravel()
        edges = band_edges(box)
        bands = [(shell >= low) & (shell < high) for low, high in pairwise(edges)]
        self._bands = np.stack([band / band.sum() for band in bands], axis=1).astype(np.float32)

    def __call__(self, images: Float32) -> Measures:
        """Measure each image of an array (n_images, D, D); NaN for those that are constant or not finite."""
        n = len(images)
        low, high = images.min(axis=(1, 2)), images.max(axis=(1, 2))  # NaN and infinity show in them
        bad = ~(np.isfinite(low) & np.isfinite(high)) | (low == high)
        if bad.any():
            images = np.where(bad[:, None, None], np.float32(np.nan), images)
        mean = images.mean(axis=(1, 2), dtype=np.float64)
        x = images - mean.astype(np.float32)[:, None, None]
        largest = np.abs(x).max(axis=(1, 2))
        x /= largest[:, None, None]  # squares of any number stay in range
        unit = largest.astype(np.float64)
        squared = np.square(x).reshape(n, self._background.size)
        sd = np.sqrt(squared.mean(axis=1))
        level = (x.reshape(squared.shape) @ self._background).astype(np.float64)
        variance = (squared @ self._background).astype(np.float64) - level**2
        variance[variance < CONSTANT * sd**2] = 0.0  # a background that was cut away
        hot_pixel, blank_lines = _neighbours(x)
        return Measures(
            mean + level * unit,
            np.sqrt(variance) * unit,
            self._log_band_power(x) + 2.0 * np.log(unit)[:, None],
            hot_pixel,
            _stripe(x, sd),
            blank_lines,
        )

    def _log_band_power(self, x: Float32) -> Float64:
        spectrum = fft.rfft2(x, norm="ortho", axes=(1, 2), workers=1)
        spectrum = spectrum.reshape(len(x), len(self._bands))
        power = spectrum.real**2 + spectrum.imag**2  # (n, D (D / 2 + 1))
        return np.asarray(np.log(np.maximum(power @ self._bands, _TINY), dtype=np.float64))


def _neighbours(x: Float32) -> tuple[Float64, Float64]:
    """`hot_pixel` and `blank_lines` of `Measures`, from differences of neighbouring pixels."""
    residual = np.abs(neighbour_residual(x))
    # the mean of |residual| of noise is sqrt(2 / pi) of its standard deviation
    usual_residual = np.maximum(residual.mean(axis=(1, 2)) * math.sqrt(math.pi / 2.0), _TINY)
    across, down = np.abs(x[:, :, 1:] - x[:, :, :-1]), np.abs(x[:, 1:] - x[:, :-1])
    in_row, in_column = across.mean(axis=2), across.mean(axis=1)  # along rows; from column to column
    to_row, along_column = down.mean(axis=2), down.mean(axis=1)
    # the mean over a line of D pixels varies by 0.8 / sqrt(D): short ones are never sure to be blank
    share = np.clip(1.0 - 3.2 / math.sqrt(x.shape[1]), 0.0, BLANK)
    usual = 0.5 * share * (in_row.mean(axis=1) + to_row.mean(axis=1))[:, None]
    blank = np.maximum(
        _blank_share(in_row < usual, to_row < usual), _blank_share(along_column < usual, in_column < usual)
    )
    return (residual.max(axis=(1, 2)) / usual_residual).astype(np.float64), blank


def _stripe(x: Float32, sd: Float32) -> Float64:
    """Largest second difference of the means of rows, or of columns, against that of white noise."""
    limit = (CLIP * sd)[:, None, None]
    clipped = np.clip(x, -limit, limit)
    largest = [np.abs(np.diff(clipped.mean(axis=axis), n=2, axis=1)).max(axis=1) for axis in (1, 2)]
    # half the second difference of means of D pixels each
    return np.asarray(0.5 * np.maximum(*largest) * math.sqrt(x.shape[1] / 1.5) / sd, dtype=np.float64)


def _blank_share(is_constant: NDArray[np.bool_], repeats_next: NDArray[np.bool_]) -> Float64:
    blank = is_constant.copy()
    blank[:, :-1] |= repeats_next
    return np.asarray(blank.mean(axis=1))
