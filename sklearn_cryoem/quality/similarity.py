"""How alike class averages are, turned, mirrored and shifted onto each other; classifications compared."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import fft
from scipy.optimize import linear_sum_assignment

from sklearn_cryoem._core.validation import check_number
from sklearn_cryoem.datasets import Volume, project
from sklearn_cryoem.datasets.volumes import centred
from sklearn_cryoem.particles.classes import check_labels
from sklearn_cryoem.physics import polar
from sklearn_cryoem.physics.fourier import Float64

# With 16, and without equal rings, classes of junk correlate with some projection of a map by 0.92 to 0.95,
# of particles by 0.94 to 0.99; so by 0.52 to 0.55, and 0.72 to 0.93.
MAX_RINGS = 8
SHIFT_SHARE = 0.05  # of the box: averages are centred, so they lie close to each other


class Similarity(NamedTuple):
    """Of each of n averages with each of m others, and how to bring the others onto them."""

    correlation: Float64
    """(n, m) from -1 to 1."""
    angle_rad: Float64
    """(n, m) turn of the other, as `Poses` has it."""
    shift_px: Float64
    """(n, m, 2) move of the other before the turn."""
    mirrored: NDArray[np.bool_]
    """(n, m) whether the other is mirrored before the turn."""


def similarity(
    averages: ArrayLike, others: ArrayLike, *, mirror: bool = True, n_rings: int | None = None
) -> Similarity:
    """Correlation of averages over all in-plane turns, mirrors and small shifts, Eq. (6.10).

    Parameters
    ----------
    averages : array_like of shape (n, D, D)
        Class averages, masked and centred.
    others : array_like of shape (m, D, D)
        Other averages, or projections of a map; of the same box and pixel size.
    mirror : bool, default=True
        Whether the others may be mirrored.
    n_rings : int, optional
        Fourier rings that are compared; by default 8, an eighth of the box in the finest
        detail, which averages of some tens of particles resolve.

    Returns
    -------
    Similarity

    Raises
    ------
    ValueError
        If the boxes differ.

    Notes
    -----
    Shifts of up to a twentieth of the box are tried. A pair costs about 0.3 ms at the default rings, whatever
    the box.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_cryoem.datasets import make_ribosome_phantom, project
    >>> image = project(make_ribosome_phantom(), 0.3, 0.8, box=32, pixel_size=12.0)
    >>> found = similarity(image, np.rot90(image, axes=(1, 2)))
    >>> bool(found.correlation[0, 0] > 0.98)
    True
    """
    one, other = (np.ascontiguousarray(images, dtype=np.float32) for images in (averages, others))
    box = one.shape[-1]
    if one.ndim != 3 or one.shape[1:] != other.shape[1:]:
        raise ValueError(
            f"similarity: averages of shape {one.shape} and {other.shape}, expected (n, D, D) of the same "
            "box. Bring them to one pixel size and box."
        )
    check_number("n_rings", n_rings, owner="similarity", minimum=1, integer=True, allow_none=True)
    n_rings = min(MAX_RINGS if n_rings is None else n_rings, (box - 1) // 2)
    grid = polar.polar_grid(box, n_rings, 0.5 * box)
    moves = _moves(box, n_rings)  # (n_shifts, 2)
    spectrum = np.mean([_spectrum(images, grid) for images in (one, other)], axis=0)  # (R,)
    first = _orders(one, grid, spectrum)  # (M, n, R)
    n_angles = 4 * len(first)
    columns = []  # of the table, one for each of the others
    for image in other:
        moved = _orders(image[None], grid, spectrum, polar.translation_phase(grid, moves))  # (M, n_shifts, R)
        ways = np.concatenate([moved.conj(), moved] if mirror else [moved.conj()], axis=1)
        products = np.matmul(first, ways.transpose(0, 2, 1))  # (M, n, n_ways)
        along = fft.irfft(products, n_angles, axis=0, norm="forward", workers=1)  # over turns
        best = along.transpose(1, 2, 0).reshape(len(one), -1).argmax(axis=1)  # (n,)
        way, turn = np.divmod(best, n_angles)
        correlation, angle = along[turn, np.arange(len(one)), way], turn * (2.0 * np.pi / n_angles)
        columns.append((correlation, angle, moves[way % len(moves)], way >= len(moves)))
    return Similarity(*(np.stack(values, axis=1) for values in zip(*columns, strict=True)))


def _moves(box: int, n_rings: int) -> Float64:
    """Shifts that are tried, (n_shifts, 2): an eighth of the finest period apart."""
    reach, step = SHIFT_SHARE * box, box / (8.0 * n_rings)
    n = int(np.ceil(reach / step))
    steps = step * np.arange(-n, n + 1)
    grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    return np.asarray(grid[np.hypot(*grid.T) <= reach + 0.5 * step])


def _spectrum(images: NDArray[np.float32], grid: polar.PolarGrid) -> Float64:
    """Mean power of images on each ring, each image having the same power in all; (R,)."""
    power = np.mean(np.abs(polar.polar_transform(images, grid)) ** 2, axis=2)  # (n, R)
    total = np.maximum((power * grid.radius).sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.maximum(np.mean(power / total, axis=0, dtype=np.float64), np.finfo(np.float32).tiny)


def _orders(
    images: NDArray[np.float32], grid: polar.PolarGrid, spectrum: Float64, phase: Any = 1.0
) -> NDArray[np.complex64]:
    """Angular orders on each ring, (M, n, R), so that the products of two sum up to a correlation."""
    values = polar.polar_transform(images, grid) * phase  # (n, R, A / 2)
    orders = polar.angular_orders(values, grid.n_angles // 2) * np.sqrt(grid.radius / spectrum)[:, None]
    twice = np.where(np.arange(orders.shape[-1]) > 0, 2.0, 1.0)  # orders m and -m
    power = (twice * np.abs(orders) ** 2).sum(axis=(1, 2))
    scaled = orders / np.sqrt(np.maximum(power, np.finfo(np.float32).tiny))[:, None, None]
    return np.ascontiguousarray(scaled.transpose(2, 0, 1).astype(np.complex64))


def map_correlation(
    averages: ArrayLike, volume: Volume, pixel_size: float, *, n_rings: int | None = None
) -> Float64:
    """Correlation of each average with the projection of a known map that is most like it, Eq. (6.10).

    Parameters
    ----------
    averages : array_like of shape (n_classes, D, D)
        Class averages, masked and centred.
    volume : Volume
        The map, see `datasets.load_volume`. It is moved to its centre of mass; its hand does not matter, as
        projections are mirrored too.
    pixel_size : float
        Of the averages, in Angstrom.
    n_rings : int, optional
        As of `similarity`.

    Returns
    -------
    ndarray of shape (n_classes,)
        From -1 to 1; NaN of empty averages.

    Notes
    -----
    About 200 directions, 10 degrees apart, over half a sphere, each in all in-plane turns: 0.1 s a class.
    """
    images = np.asarray(averages, dtype=np.float32)
    n = round(2.0 * np.pi / np.radians(10.0) ** 2)
    place = np.arange(n)
    tilt = np.arccos(1.0 - (place + 0.5) / n)  # equal areas of half a sphere, along a spiral
    rot = place * np.pi * (3.0 - np.sqrt(5.0))
    shown = project(centred(volume), rot, tilt, box=images.shape[-1], pixel_size=pixel_size)
    best = similarity(images, shown, n_rings=n_rings).correlation.max(axis=1)
    return np.where(images.any(axis=(1, 2)), best, np.nan)


def compare_classes(labels: ArrayLike, others: ArrayLike) -> pd.DataFrame:
    """Set two classifications of the same particles side by side, class by class.

    Classes are paired one to one so that as many particles as possible are in paired classes. A particle
    whose classes are no pair has moved; where one classification has more classes, so have some of each class
    that was divided.

    Parameters
    ----------
    labels, others : array_like of shape (n_images,), int
        Class of each particle from 0; a particle of -1 in either is left out.

    Returns
    -------
    DataFrame
        One row for each class of `labels`: ``class`` and ``partner`` (numbers from 1, as in files; 0 without
        one), ``size`` and ``partner_size``, ``shared`` (particles in both), ``moved_out`` and ``moved_in``.

    Examples
    --------
    >>> compare_classes([0, 0, 0, 1, 1], [2, 2, 1, 1, 1])[["partner", "shared", "moved_in"]].values.tolist()
    [[3, 2, 0], [2, 2, 1]]
    """
    one = check_labels(labels, len(np.asarray(labels)))
    other = check_labels(others, len(one))
    both = (one >= 0) & (other >= 0)
    shape = (one.max(initial=0) + 1, other.max(initial=0) + 1)
    table = np.zeros(shape, dtype=np.int64)
    np.add.at(table, (one[both], other[both]), 1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    partner, shared = np.full(shape[0], -1), np.zeros(shape[0], dtype=np.int64)
    partner[rows], shared[rows] = columns, table[rows, columns]
    partner[shared == 0] = -1
    sizes, other_sizes = table.sum(axis=1), np.append(table.sum(axis=0), 0)[partner]
    return pd.DataFrame({
        "class": np.arange(1, shape[0] + 1), "size": sizes, "partner": partner + 1,
        "partner_size": other_sizes, "shared": shared, "moved_out": sizes - shared,
        "moved_in": other_sizes - shared,
    })  # fmt: skip
