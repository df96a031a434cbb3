"""The M-step's sums: the E-step's products backwards, Eq. (4.5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from sklearn_cryoem._core.em import Additive
from sklearn_cryoem._core.parallel import row_blocks
from sklearn_cryoem.alignment.expectation import Posterior
from sklearn_cryoem.alignment.features import ImageFeatures
from sklearn_cryoem.alignment.products import Int
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64
from sklearn_cryoem.physics.polar import angular_orders, from_angular_orders, translation_phase

Complex128 = NDArray[np.complex128]

# The prior spectrum of a reference is its own, plus the average one with this many mean reference sizes.
POOLED_SIZES = 0.5
ORDER_NATS = 0.01  # of a reference in all orders that are left out
ORDERS_BEYOND_SIGNAL = 4  # that are kept, so that signal can rise there
PAIRS_BYTES = 32e6  # of the (reference, shift, image) whose posteriors are transformed at once


@dataclass(frozen=True)
class Statistics(Additive):
    """Sums over images from which references, noise and priors follow; they add over blocks, Eq. (4.2).

    Attributes
    ----------
    numerator : ndarray of shape (n_references, n_orders, n_rings), complex128
        Angular orders 0, 1, .. of sum w R^-1 S^-1 C X.
    denominator : ndarray of shape (n_references, n_even, n_rings), complex128
        Angular orders 0, 2, .. of sum w C^2.
    power : ndarray of shape (n_rings,)
        Sum over images of the mean of |F|^2 round each ring.
    n_images : ndarray of shape (n_rings,)
        How many images the sums of each ring hold.
    mass : ndarray of shape (n_references,)
        Posterior mass of each reference.
    shift_square : ndarray of shape (1,)
        Sum of the posterior mean of |u|^2 in square pixels.
    log_evidence : ndarray of shape (1,)
        Sum of log p(image) / p(image | noise alone).
    shift_sum : ndarray of shape (n_references, 2)
        Sum of the posterior mean of u over the images of each reference, Eq. (4.15), in pixels.
    turn_sum : ndarray of shape (n_references,)
        The same of psi where the search is a window of angles, else 0.
    """

    numerator: Complex128
    denominator: Complex128
    power: Float64
    n_images: Float64
    mass: Float64
    shift_square: Float64
    log_evidence: Float64
    shift_sum: Float64
    turn_sum: Float64

    def scaled(self, factor: float) -> Statistics:
        """All sums times `factor`."""
        return Statistics(*(getattr(self, part.name) * factor for part in fields(self)))

    def resized(self, n_orders: int, n_rings: int) -> Statistics:
        """Truncate, or pad with zeros, to other numbers of orders and rings."""
        n_references, n_even = self.denominator.shape[:2]
        return replace(
            self,
            numerator=_fit(self.numerator, (n_references, n_orders, n_rings)),
            denominator=_fit(self.denominator, (n_references, n_even, n_rings)),
            power=_fit(self.power, (n_rings,)),
            n_images=_fit(self.n_images, (n_rings,)),
        )

    def folded(self) -> Statistics:
        """Sums of references from those of references and then their mirror images, Eq. (4.18)."""
        n = len(self.mass) // 2
        return replace(
            self,
            numerator=self.numerator[:n] + self.numerator[n:].conj(),
            denominator=self.denominator[:n] + self.denominator[n:].conj(),
            mass=self.mass[:n] + self.mass[n:],
            shift_sum=self.shift_sum[:n] + self.shift_sum[n:] * (1.0, -1.0),
            turn_sum=self.turn_sum[:n] - self.turn_sum[n:],
        )

    def turn_centred(self) -> Statistics:
        """Sums in frames that are turned so that the mean angle of the images of each is 0, Eq. (4.15).

        Only a search in a window has such means: references then keep to the frame of the known poses.
        """
        # Without this, references wander by 2 to 3 degrees towards an end of the window; with it by 0.6.
        if not self.turn_sum.any():
            return self
        turn = np.exp(1j * self.turn_sum / np.maximum(self.mass, 1e-9))[:, None]  # (n_references, 1)
        m = np.arange(self.numerator.shape[1])
        even = 2 * np.arange(self.denominator.shape[1])
        x, y = self.shift_sum.T
        shift = (x + 1j * y) / turn[:, 0]
        return replace(
            self,
            numerator=self.numerator * (turn**m)[:, :, None],
            denominator=self.denominator * (turn**even)[:, :, None],
            shift_sum=np.column_stack([shift.real, shift.imag]),
            turn_sum=np.zeros_like(self.turn_sum),
        )


def own_nats(ctf_power: Float64, inverse_prior: Float64, n_images: float, radius: Float64) -> Float64:
    """Nats that an image gains by being part of each reference, Eq. (4.20); (n_references,).

    Parameters
    ----------
    ctf_power, inverse_prior : ndarrays of shape (n_references, n_rings)
        Sums G of C^2, and what the prior adds to them.
    n_images : float
        Images of all references.
    radius : ndarray of shape (n_rings,)
        Of each ring, in Fourier pixels.
    """
    share = ctf_power.sum(axis=0) / n_images / np.maximum(ctf_power + inverse_prior, 1e-300)
    return np.asarray(share @ (2.0 * np.pi * radius))


def signal_power(power: Float64, noise_power: Float64, mass: Float64) -> Float64:
    """Prior variance tau2 of each reference and ring: power of the plain estimate less its noise, Eq. (4.2).

    The power of a ring is averaged over its neighbours, and every reference is shrunk towards the
    average spectrum of all: one of few images borrows from the others instead of losing its signal for
    good, as it would if tau2 were taken from the regularised reference.

    Parameters
    ----------
    power, noise_power : ndarrays of shape (n_references, n_rings)
        Power of the references of maximum likelihood, and that of their noise.
    mass : ndarray of shape (n_references,)
        Posterior mass of each reference.
    """
    excess = np.maximum(power - noise_power, 0.0)
    padded = np.pad(excess, ((0, 0), (1, 1)), mode="edge")
    smooth = 0.25 * padded[:, :-2] + 0.5 * padded[:, 1:-1] + 0.25 * padded[:, 2:]
    weight = mass[:, None] / max(mass.mean(), 1e-12)  # (n_references, 1)
    pooled = (weight * smooth).sum(axis=0) / weight.sum()  # (n_rings,)
    shrunk: Float64 = (weight * smooth + POOLED_SIZES * pooled) / (weight + POOLED_SIZES)
    return shrunk


def order_power(references: Complex64) -> Float32:
    """Power of each angular order of references (k, n_rings, n_angles / 2); (k, n_rings, n_angles / 2)."""
    a = angular_orders(references, references.shape[-1])
    return a.real**2 + a.imag**2


def orders_needed(power: Float32, information: Float64) -> int:
    """Angular orders beyond which references hardly move a likelihood, and a few more, Eq. (4.24).

    Parameters
    ----------
    power : ndarray of shape (n_references, n_rings, n_angles / 2)
        `order_power`.
    information : ndarray of shape (n_rings,)
        Mean of C^2 over the noise variance, of an image.
    """
    nats = np.mean(power, axis=0).T @ (information * np.arange(1.0, len(information) + 1.0))
    tail = 4.0 * np.pi * np.cumsum(nats[::-1])[::-1]  # of each order and those above it
    return int(np.count_nonzero(tail > ORDER_NATS)) + ORDERS_BEYOND_SIGNAL


def blend(old: Statistics | None, new: Statistics, step: float) -> Statistics:
    """Online EM: (1 - step) * old + step * new, Eq. (4.8); `new` is scaled to the whole set beforehand."""
    if old is None:
        return new
    return old.resized(*new.numerator.shape[1:]).scaled(1.0 - step) + new.scaled(step)


def accumulate(
    features: ImageFeatures, posterior: Posterior, space: SearchSpace, n_references: int, n_even: int
) -> Statistics:
    """Statistics of a block of images given their posterior, Eq. (4.5).

    Parameters
    ----------
    features : ImageFeatures
        At the rings and orders of `space`.
    posterior : Posterior
        Of the same images.
    space : SearchSpace
        Shifts, angles and orders.
    n_references, n_even : int
        References; even orders of the denominators.

    Notes
    -----
    The posterior over angles of every (reference, shift, image) that has one is transformed to orders; one
    sparse product sums the images of each reference and shift in all orders, and shifts are undone once.
    """
    # (n_orders, n, n_rings)
    images = np.ascontiguousarray(features.orders[:, space.order].transpose(1, 0, 2))
    ctf_power = np.ascontiguousarray(features.ctf_power.transpose(1, 0, 2))  # (n_even, n, n_rings)
    undo_shift = translation_phase(space.grid, space.shifts_px)  # (n_shifts, n_rings, n_angles / 2)
    pairs = _Pairs.of(posterior, len(features))
    n_rows = n_references * space.n_shifts
    mass = np.bincount(posterior.row, posterior.weight, n_rows).reshape(n_references, -1)
    numerator = np.zeros((n_references, space.n_orders, space.n_rings), dtype=np.complex128)
    denominator = np.zeros((n_references, n_even, space.n_rings), dtype=np.complex128)
    for some in pairs.blocks(space):
        turned = pairs.orders(posterior, some, space)  # (n_orders, n_pairs), complex64
        row, image = pairs.row[some], pairs.image[some]
        used, starts = np.unique(row, return_index=True)  # (reference, shift) pairs
        summed = _sums_of_images(turned, starts, image, images)  # (n_orders, n_used, n_rings)
        reference, first = np.unique(used // space.n_shifts, return_index=True)
        undo = undo_shift[used % space.n_shifts]
        numerator[reference] += undo_shifts(summed, undo, first, space)
        of_reference = starts[first]
        even = _sums_of_images(turned[: len(ctf_power)], of_reference, image, ctf_power)
        denominator[reference, : len(ctf_power)] += even.transpose(1, 0, 2)  # shifts do not touch C^2
    return Statistics(
        numerator=numerator,
        denominator=denominator,
        power=features.power.sum(axis=0, dtype=np.float64),
        n_images=np.full(space.n_rings, float(len(features))),
        mass=mass.sum(axis=1),
        shift_square=np.array([(mass @ (space.shifts_px**2).sum(axis=1)).sum()]),
        log_evidence=np.array([posterior.log_evidence.sum()]),
        shift_sum=mass @ space.shifts_px,
        turn_sum=_turn_sum(posterior, space, n_references),
    )


def _turn_sum(posterior: Posterior, space: SearchSpace, n_references: int) -> Float64:
    if space.angle_range_rad is None:
        return np.zeros(n_references)
    angle = posterior.weight * space.angles_rad[posterior.angle]
    return np.asarray(np.bincount(posterior.row // space.n_shifts, angle, n_references), dtype=np.float64)


@dataclass(frozen=True)
class _Pairs:
    """The (reference, shift) rows and images with weight, in this order, and the cells of each.

    Attributes
    ----------
    cells : ndarray of shape (n_cells,), int
        Cells of a posterior, pair after pair.
    first : ndarray of shape (n_pairs + 1,), int
        Where the cells of each pair begin, and where the last ones end.
    row, image : ndarrays of shape (n_pairs,), int
        Of each pair.
    """

    cells: Int
    first: Int
    row: Int
    image: Int

    @classmethod
    def of(cls, posterior: Posterior, n_images: int) -> _Pairs:
        key = posterior.row.astype(np.int64) * n_images + posterior.image
        cells = np.argsort(key, kind="stable")
        key = key[cells]
        first = np.flatnonzero(np.diff(key, prepend=-1))
        return cls(cells, np.append(first, len(key)), *np.divmod(key[first], n_images))

    def blocks(self, space: SearchSpace) -> Iterator[slice]:
        """As many pairs at a time as have their shifts undone in the memory of `PAIRS_BYTES`, at most."""
        yield from row_blocks(len(self.row), max(1, int(PAIRS_BYTES / (16 * space.n_rings * space.n_angles))))

    def orders(self, posterior: Posterior, some: slice, space: SearchSpace) -> Complex64:
        """Angular orders of the posterior over angles of some pairs; (n_orders, n_pairs)."""
        first = self.first[some.start : some.stop + 1]
        cells = self.cells[first[0] : first[-1]]
        table = np.zeros((len(first) - 1, space.n_angles), dtype=np.float32)
        pair = np.repeat(np.arange(len(table)), np.diff(first))
        table[pair, posterior.angle[cells]] = posterior.weight[cells]
        return np.ascontiguousarray((table @ space.analysis).view(np.complex64).T)


def _sums_of_images(turned: Complex64, starts: Int, image: Int, values: Complex64) -> Complex64:
    """Sums of `values` (m, n, n_rings) of images times `turned` (m, n_pairs); (m, n_groups, n_rings).

    Pairs of a group follow each other from `starts` on; `image` (n_pairs,) is that of each pair. All orders
    are blocks of one sparse matrix.
    """
    (n_orders, n_pairs), n_images = turned.shape, values.shape[1]
    order = np.arange(n_orders)[:, None]
    ends = np.append((starts + order * n_pairs).ravel(), n_orders * n_pairs)
    matrix = csr_array(
        (turned.ravel(), (image + order * n_images).ravel(), ends),
        shape=(n_orders * len(starts), n_orders * n_images),
    )
    return np.asarray(matrix @ values.reshape(n_orders * n_images, -1)).reshape(n_orders, len(starts), -1)


def undo_shifts(summed: Complex64, undo_shift: Complex64, first: Int, space: SearchSpace) -> Complex64:
    """Numerators of a few references from their sums at every shift, Eq. (4.5).

    Parameters
    ----------
    summed : ndarray of shape (n_orders, n_rows, n_rings)
        Sums at some shifts of each reference, one reference after the other; orders as in
        `SearchSpace.order`.
    undo_shift : ndarray of shape (n_rows, n_rings, n_angles / 2)
        `translation_phase` of the shift of each row.
    first : ndarray of shape (k,), int
        First row of each reference.
    space : SearchSpace
        Orders.

    Returns
    -------
    numerator : ndarray of shape (k, n_orders, n_rings), complex64
        Orders 0, 1, ..
    """
    ascending = np.empty((*summed.shape[1:], space.n_orders), dtype=np.complex64)
    ascending[..., space.order] = summed.transpose(1, 2, 0)
    values = from_angular_orders(ascending, space.grid.n_angles)  # (n_rows, n_rings, n_angles / 2)
    values *= undo_shift
    centred = np.add.reduceat(values, first, axis=0)
    return angular_orders(centred, space.n_orders).transpose(0, 2, 1)


def _fit(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if array.shape == shape:
        return array
    fitted = np.zeros(shape, dtype=array.dtype)
    common = tuple(slice(min(a, b)) for a, b in zip(array.shape, shape, strict=True))
    fitted[common] = array[common]
    return fitted
