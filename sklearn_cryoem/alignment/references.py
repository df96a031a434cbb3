"""References made ready for the search: shifted, on polar rings, as angular orders, Eq. (4.3)-(4.4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sklearn_cryoem._core.parallel import even_blocks, row_blocks
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64
from sklearn_cryoem.physics.polar import (
    PolarGrid,
    angular_orders,
    even_orders,
    from_angular_orders,
    polar_transform,
    translation_phase,
)

CLASSES_AT_ONCE = 4
TRANSFORMS_PER_TASK = 16  # non-uniform FFTs


@dataclass(frozen=True)
class ReferenceBank:
    """Every reference at every searched shift, ready for the matrix products of Eq. (4.3).

    Attributes
    ----------
    orders : ndarray of shape (n_orders, 2 n_rings, n_clusters * n_shifts), float32
        Re above Im of 2 pi r a_m[r] of each shifted reference; the column is class * n_shifts + shift.
    power : ndarray of shape (n_even, n_rings, n_clusters), complex64
        Even angular orders of pi r |A|^2 for the norm term, Eq. (4.4).
    """

    orders: Float32
    power: Complex64


def polar_references(references: Float32, grid: PolarGrid) -> Complex64:
    """`polar_transform` of many references, a few at a time; (n_clusters, n_rings, n_angles / 2)."""
    blocks = even_blocks(len(references), TRANSFORMS_PER_TASK)
    return np.concatenate([polar_transform(references[block], grid) for block in blocks])


def coarser_references(values: Complex64, space: SearchSpace) -> Complex64:
    """References given on a finer grid on that of `space`, by their angular orders."""
    orders = angular_orders(values[:, : space.n_rings], space.n_orders)
    return from_angular_orders(orders, space.grid.n_angles)


def reference_bank(values: Complex64, space: SearchSpace, n_even: int) -> ReferenceBank:
    """Shift the references and take their angular orders, Eq. (4.3).

    Parameters
    ----------
    values : ndarray of shape (n_clusters, n_rings, n_angles / 2), complex64
        References on the polar grid of `space`.
    space : SearchSpace
        Shifts and orders.
    n_even : int
        Even orders wanted of the norm term.

    Notes
    -----
    K T R FFTs of length n_angles, once an iteration: shifting references instead of images is what makes the
    cost of shifts independent of the number of images.
    """
    # The image of a reference at shift u is displaced by -u: adding u to its content centres it.
    phase = translation_phase(space.grid, -space.shifts_px)  # (n_shifts, n_rings, n_angles / 2)
    blocks = row_blocks(len(values), CLASSES_AT_ONCE)
    orders = np.empty((space.n_orders, 2 * space.n_rings, len(values) * space.n_shifts), dtype=np.float32)

    for classes in blocks:
        columns = slice(classes.start * space.n_shifts, classes.stop * space.n_shifts)
        orders[..., columns] = shifted_orders(values[classes], phase, space)
    return ReferenceBank(orders, reference_power(values, space, n_even))


def shifted_orders(values: Complex64, phase: Complex64, space: SearchSpace) -> Float32:
    """Orders of a few references at every shift, as in `ReferenceBank`.

    Parameters
    ----------
    values : ndarray of shape (k, n_rings, n_angles / 2), complex64
        References on the polar grid of `space`.
    phase : ndarray of shape (n_shifts, n_rings, n_angles / 2), complex64
        `translation_phase` of minus the shifts.
    space : SearchSpace
        Shifts and orders.
    """
    ring_area = (2.0 * np.pi * space.grid.radius).astype(np.float32)
    a = angular_orders(phase * values[:, None], space.n_orders)  # (k, n_shifts, n_rings, n_orders)
    a = a[..., space.order].transpose(3, 2, 0, 1).reshape(space.n_orders, space.n_rings, -1)
    a *= ring_area[:, None]
    return np.concatenate([a.real, a.imag], axis=1)  # (n_orders, 2 n_rings, k * n_shifts)


def reference_power(values: Complex64, space: SearchSpace, n_even: int) -> Complex64:
    """Even angular orders of pi r |A|^2, Eq. (4.4); (n_even, n_rings, n_clusters)."""
    area = (np.pi * space.grid.radius).astype(np.float32)
    squared = values.real**2 + values.imag**2  # (n_clusters, n_rings, n_angles / 2)
    power = even_orders(squared, min(n_even, space.n_even)).transpose(2, 1, 0) * area[:, None]
    return np.ascontiguousarray(power)


def ring_power(values: Complex64) -> Float64:
    """Mean of |A|^2 round each ring; (..., n_rings)."""
    power: Float64 = np.mean(
        values.real.astype(np.float64) ** 2 + values.imag.astype(np.float64) ** 2, axis=-1
    )
    return power
