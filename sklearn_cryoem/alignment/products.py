"""The matrix products of the search: references, images, log posteriors, Eq. (4.3)-(4.4)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import i0e

from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64
from sklearn_cryoem.physics.polar import (
    angular_orders,
    even_orders,
    from_angular_orders,
    translation_phase,
)

Int = NDArray[np.signedinteger[Any]]
ArrayShapes = list[tuple[tuple[int, ...], type]]

REFERENCES_AT_ONCE = 4
TRANSFORMS_PER_TASK = 16  # non-uniform FFTs


@dataclass(frozen=True)
class ReferenceBank:
    """Every reference at every searched shift, ready for the matrix products of Eq. (4.3).

    Attributes
    ----------
    orders : ndarray of shape (n_references, n_orders, 2 n_rings, n_shifts), float32
        Re above Im of 2 pi r a_m[r] of each shifted reference; the first ones alone where memory is short.
    power : ndarray of shape (n_even, n_rings, n_references), complex64
        Even angular orders of pi r |A|^2 for the norm term, Eq. (4.4).
    """

    orders: Float32
    power: Complex64

    @staticmethod
    def shapes(space: SearchSpace, n_references: int, n_held: int, n_even: int) -> ArrayShapes:
        """Shapes and types of `orders`, for the first `n_held` references, and of `power`."""
        orders = n_held, space.n_orders, 2 * space.n_rings, space.n_shifts
        return [
            (orders, np.float32),
            ((min(n_even, space.n_even), space.n_rings, n_references), np.complex64),
        ]

    def fill(self, block: slice, values: Complex64, phase: Complex64, space: SearchSpace) -> None:
        """Enter references `block`, whose `values` are given; `phase` as in `shifted_orders`."""
        self.power[..., block] = reference_power(values, space, len(self.power))
        for z, value in zip(range(*block.indices(len(self.orders))), values, strict=False):
            self.orders[z] = shifted_orders(value, phase, space)

    def columns(self, block: slice) -> Float32:
        """Some references; (n_orders, 2 n_rings, k * n_shifts), column reference * n_shifts + shift."""
        some = self.orders[block]
        return some[0] if len(some) == 1 else np.concatenate(some, axis=-1)


def coarser_references(values: Complex64, space: SearchSpace) -> Complex64:
    """References given on a finer grid on that of `space`, by their angular orders."""
    orders = angular_orders(values[:, : space.n_rings], space.n_orders)
    return from_angular_orders(orders, space.grid.n_angles)


def reference_bank(values: Complex64, space: SearchSpace, n_even: int) -> ReferenceBank:
    """Shift the references and take their angular orders, Eq. (4.3).

    Parameters
    ----------
    values : ndarray of shape (n_references, n_rings, n_angles / 2), complex64
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
    n = len(values)
    bank = ReferenceBank(*(np.empty(*array) for array in ReferenceBank.shapes(space, n, n, n_even)))
    bank.fill(slice(0, n), values, shift_phase(space), space)
    return bank


def shift_phase(space: SearchSpace) -> Complex64:
    """What brings references to every shift of a search; (n_shifts, n_rings, n_angles / 2)."""
    # The image of a reference at shift u is displaced by -u: adding u to its content centres it.
    return translation_phase(space.grid, -space.shifts_px)


def shifted_orders(values: Complex64, phase: Complex64, space: SearchSpace) -> Float32:
    """Orders of a reference at every shift, as in `ReferenceBank`; (n_orders, 2 n_rings, n_shifts).

    Parameters
    ----------
    values : ndarray of shape (n_rings, n_angles / 2), complex64
        The reference on the polar grid of `space`.
    phase : ndarray of shape (n_shifts, n_rings, n_angles / 2), complex64
        `shift_phase`.
    space : SearchSpace
        Shifts and orders.
    """
    ring_area = (2.0 * np.pi * space.grid.radius).astype(np.float32)
    a = angular_orders(phase * values, space.n_orders)  # (n_shifts, n_rings, n_orders)
    a = a[..., space.order].transpose(2, 1, 0) * ring_area[:, None]
    # In the memory order of a bank: products of another one have other last digits.
    orders = np.empty((space.n_orders, 2, space.n_rings, space.n_shifts), dtype=np.float32)
    orders[:, 0], orders[:, 1] = a.real, a.imag
    return orders.reshape(space.n_orders, -1, space.n_shifts)


def reference_power(values: Complex64, space: SearchSpace, n_even: int) -> Complex64:
    """Even angular orders of pi r |A|^2, Eq. (4.4); (n_even, n_rings, n_references)."""
    area = (np.pi * space.grid.radius).astype(np.float32)
    squared = values.real**2 + values.imag**2  # (n_references, n_rings, n_angles / 2)
    power = even_orders(squared, min(n_even, space.n_even)).transpose(2, 1, 0) * area[:, None]
    return np.ascontiguousarray(power)


def ring_power(values: Complex64) -> Float64:
    """Mean of |A|^2 round each ring; (..., n_rings)."""
    power: Float64 = np.mean(
        values.real.astype(np.float64) ** 2 + values.imag.astype(np.float64) ** 2, axis=-1
    )
    return power


class Workspace:
    """Arrays used again for every product: fresh memory pages cost more than the arithmetic on them."""

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[Any]] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: type = np.float32) -> NDArray[Any]:
        """Return an uninitialised array; the contents of the last one of this name are lost."""
        size = prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)


def stack_real(orders: Complex64, precision: Float32, space: SearchSpace, work: Workspace) -> Float32:
    """Rows (Re x, Im x) and (-Im x, Re x) whose products with (Re a, Im a) are Re and Im of conj(x) a.

    x are `orders` (n, n_orders, n_rings) times `precision`, which is broadcast to them.
    """
    n, _, n_rings = orders.shape
    stacked = work("stacked", (space.n_orders, 2, n, 2 * n_rings))
    x = (orders * precision)[:, space.order].transpose(1, 0, 2)  # (n_orders, n, n_rings)
    stacked[:, 0, :, :n_rings] = x.real
    stacked[:, 0, :, n_rings:] = x.imag
    np.negative(x.imag, out=stacked[:, 1, :, :n_rings])
    stacked[:, 1, :, n_rings:] = x.real
    return stacked.reshape(space.n_orders, 2 * n, 2 * n_rings)


def norm_orders(ctf_power: Complex64, precision: Float32, power: Complex64, kappa: float = 0.0) -> Complex64:
    """Even angular orders of 1/2 sum beta C^2 |A|^2 over rotations, Eq. (4.4); (n_even, n, n_references).

    Where the angles of filaments are known, less the log of their prior, which is of order 2, Eq. (4.23).
    """
    weighted = (ctf_power.conj() * precision).transpose(1, 0, 2)  # (n_even, n, n_rings)
    n_even = min(len(weighted), len(power))
    norm: Complex64 = np.matmul(weighted[:n_even], power[:n_even])
    if kappa:
        norm = np.pad(norm, ((0, max(2 - n_even, 0)), (0, 0), (0, 0)))
        norm[0] += np.log(i0e(kappa)) + kappa
        norm[1] -= 0.5 * kappa
    return norm


def correlate(
    stacked: Float32, norm: Complex64, level: Float32, bank: Float32, space: SearchSpace, work: Workspace
) -> Float32:
    """Angular orders of the log posterior, Eq. (4.3)-(4.4), even ones first; (2, n_even, 2, n * columns).

    Axes: even or odd, order (the odd ones padded with one that has no weight), Re or Im, (image, column).
    """
    n, n_columns = level.shape
    c = work("orders", (2 * space.n_even, 2 * n, n_columns))
    np.matmul(stacked, bank, out=c[: space.n_orders])  # Re and Im of c_m
    return add_levels(c, norm, level, space)


def add_levels(c: Float32, norm: Complex64, level: Float32, space: SearchSpace) -> Float32:
    """Add the other terms of the log posterior to the orders of the cross term, in place.

    Parameters
    ----------
    c : ndarray of shape (2 n_even, 2 n, n_columns)
        Re above Im of each order; the last ones are set to zero if `space` has fewer orders.
    norm : ndarray of shape (orders, n, n_references), complex64
        Even orders 2, 4, .. of the norm term, Eq. (4.4).
    level : ndarray of shape (n, n_columns)
        Everything that is the same at all angles.
    space : SearchSpace
        Orders.
    """
    n, n_columns = level.shape
    c[space.n_orders :] = 0.0
    c[0, :n] += level
    if len(norm):
        parts = c.reshape(len(c), 2, n, norm.shape[2], -1)[1 : 1 + len(norm)]
        parts[:, 0] -= norm.real[..., None]
        parts[:, 1] -= norm.imag[..., None]
    return c.reshape(2, space.n_even, 2, n * n_columns)


def synthesise(c: Float32, space: SearchSpace, work: Workspace) -> tuple[Float32, Float32, Float32]:
    """From orders to angles, Eq. (4.3), a quarter of a turn of each symmetry, or half of a window.

    Returns
    -------
    same, mirrored : ndarrays of shape (2, n_angles / 4, n_columns)
        Cosines plus sines, for psi, and cosines minus sines, for -psi. First axis: even and odd orders; even
        plus odd is L(psi), even minus odd L(psi + pi). In a window (n_angles // 2 + 1, n_columns), all orders
        added: L(psi) and L(-psi), psi = 0 first.
    top : ndarray of shape (n_columns,)
        The largest of each column.
    """
    if space.angle_range_rad is not None:
        return _synthesise_window(c, space, work)
    shape = (2, space.n_angles // 4, c.shape[-1])
    waves = work("waves", (2, *shape))
    np.matmul(space.synthesis, c.transpose(2, 0, 1, 3), out=waves)  # cosines or sines, even or odd
    same = np.add(waves[0], waves[1], out=work("same", shape))
    mirrored = np.subtract(waves[0], waves[1], out=waves[1])
    better = waves[0]  # of psi and psi + pi
    np.abs(same[1], out=better[0])
    np.abs(mirrored[1], out=better[1])
    better[0] += same[0]
    better[1] += mirrored[0]
    return same, mirrored, better.reshape(-1, c.shape[-1]).max(axis=0)


def _synthesise_window(c: Float32, space: SearchSpace, work: Workspace) -> tuple[Float32, Float32, Float32]:
    orders = c.reshape(2 * space.n_even, 2, -1).transpose(1, 0, 2)  # (Re or Im, order, column)
    waves = work("waves", (2, space.n_angles // 2 + 1, c.shape[-1]))
    np.matmul(space.synthesis, orders, out=waves)  # cosines or sines
    same = np.add(waves[0], waves[1], out=work("same", waves.shape[1:]))
    mirrored = np.subtract(waves[0], waves[1], out=waves[1])
    return same, mirrored, np.maximum(same, mirrored, out=waves[0]).max(axis=0)


def synthesise_all(c: Float32, space: SearchSpace, work: Workspace) -> Float32:
    """Log posteriors of all angles, in the order of `mirrored_angles`; (4, n_angles / 4, n_columns)."""
    waves = work("waves", (2, 2, space.n_angles // 4, c.shape[-1]))
    np.matmul(space.synthesis, c.transpose(2, 0, 1, 3), out=waves)  # cosines or sines, even or odd
    even, odd = work("parts", (2, 2, *waves.shape[2:]))  # each of psi and of -psi
    np.add(waves[0, 0], waves[1, 0], out=even[0])
    np.subtract(waves[0, 0], waves[1, 0], out=even[1])
    np.add(waves[0, 1], waves[1, 1], out=odd[0])
    np.subtract(waves[0, 1], waves[1, 1], out=odd[1])
    table = np.empty((4, *waves.shape[2:]), dtype=np.float32)
    np.add(even, odd, out=table[:2])
    np.subtract(even, odd, out=table[2:])
    return table


def analyse(table: Float32, space: SearchSpace, work: Workspace) -> Float32:
    """Transpose of `synthesise_all`, Eq. (4.5): from angles to orders, each but 0 counted twice.

    Axes of what is returned as of `correlate`: even or odd, order, Re or Im of
    sum P exp(-i m psi), column.
    """
    even, odd = work("parts", (2, 2, *table.shape[1:]))  # each of psi and of -psi
    np.add(table[:2], table[2:], out=even)
    np.subtract(table[:2], table[2:], out=odd)
    waves = work("waves", (2, 2, *table.shape[1:]))
    np.add(even[0], even[1], out=waves[0, 0])
    np.subtract(even[0], even[1], out=waves[1, 0])
    np.add(odd[0], odd[1], out=waves[0, 1])
    np.subtract(odd[0], odd[1], out=waves[1, 1])
    d = work("orders", (2, space.n_even, 2, table.shape[-1]))
    np.matmul(space.synthesis.transpose(0, 1, 3, 2), waves, out=d.transpose(2, 0, 1, 3))
    return d


def cells_above(
    threshold: Float32, same: Float32, mirrored: Float32, top: Float32, space: SearchSpace
) -> tuple[Int, Int, Int, Float32]:
    """Cells whose log posterior reaches the threshold of their image: image, row, angle, log.

    Only columns whose best angle does are looked at, one in a hundred.
    """
    selected = np.flatnonzero(top >= threshold[:, None])
    image, row = np.divmod(selected.astype(np.int32), np.int32(top.shape[1]))
    a, b = same.take(selected, axis=-1), mirrored.take(selected, axis=-1)
    if space.angle_range_rad is None:
        log = np.concatenate([a[0] + a[1], b[0] + b[1], a[0] - a[1], b[0] - b[1]])  # (n_angles, n_selected)
    else:
        log = np.concatenate([a, b[1:]])  # 0 is its own mirror image
    cell = np.flatnonzero(log >= threshold[image])
    place, column = np.divmod(cell.astype(np.int32), np.int32(max(len(selected), 1)))
    return image[column], row[column], space.mirrored_angles[place], log.reshape(-1)[cell]
