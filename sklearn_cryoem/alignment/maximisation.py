"""The M-step's sums: the E-step's products backwards, Eq. (4.5)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.em import Additive
from sklearn_cryoem.alignment.expectation import Posterior
from sklearn_cryoem.alignment.features import ImageFeatures
from sklearn_cryoem.alignment.products import Int
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64
from sklearn_cryoem.physics.polar import angular_orders, from_angular_orders, translation_phase

Complex128 = NDArray[np.complex128]
_Pairs = tuple[NDArray[np.int64], NDArray[np.int64], Float32]


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
    For every reference the posterior over angles is transformed to orders, one matrix product for every
    order sums the images of each shift, and the shifts are undone once.
    """
    images = np.ascontiguousarray(
        features.orders[:, space.order].transpose(1, 0, 2)
    )  # (n_orders, n, n_rings)
    ctf_power = np.ascontiguousarray(features.ctf_power.transpose(1, 0, 2))  # (n_even, n, n_rings)
    undo_shift = translation_phase(space.grid, space.shifts_px)  # (n_shifts, n_rings, n_angles / 2)
    reference = posterior.row // space.n_shifts
    by_reference = np.argsort(reference.astype(np.uint16), kind="stable")  # by digits: linear in their number
    ends = np.cumsum(np.bincount(reference, minlength=n_references))
    sums = [
        _reference_sums(posterior, cells, images, ctf_power, undo_shift, space)
        for cells in np.split(by_reference, ends[:-1])
    ]
    mass = np.array([part[2] for part in sums])  # (n_references, n_shifts)
    denominator = np.zeros((n_references, n_even, space.n_rings), dtype=np.complex128)
    denominator[:, : len(ctf_power)] = [part[1] for part in sums]
    return Statistics(
        numerator=np.array([part[0] for part in sums], dtype=np.complex128),
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


def _posterior_of_pairs(posterior: Posterior, cells: Int, space: SearchSpace, n_images: int) -> _Pairs:
    """Shift and image of each (shift, image) pair that carries weight, and its posterior over angles."""
    pair = posterior.row[cells] % space.n_shifts * n_images + posterior.image[cells]
    line = np.zeros(space.n_shifts * n_images, dtype=np.int32)
    line[pair] = 1
    used = np.flatnonzero(line)  # (n_pairs,)
    line[used] = np.arange(len(used))
    table = np.zeros((len(used), space.n_angles), dtype=np.float32)
    table[line[pair], posterior.angle[cells]] = posterior.weight[cells]
    return *np.divmod(used, n_images), table


def _reference_sums(
    posterior: Posterior,
    cells: Int,
    images: Complex64,
    ctf_power: Complex64,
    undo_shift: Complex64,
    space: SearchSpace,
) -> tuple[Complex64, Complex64, Float64]:
    """Numerator (n_orders, n_rings), denominator (n_even, n_rings) and mass (n_shifts,) from some cells."""
    n_orders, n_rings, n_images = space.n_orders, space.n_rings, images.shape[1]
    line, column, table = _posterior_of_pairs(posterior, cells, space, n_images)
    weight = table.sum(axis=1, dtype=np.float64)
    mass = np.asarray(np.bincount(line, weight, space.n_shifts), dtype=np.float64)
    if not len(line):
        return (
            np.zeros((n_orders, n_rings), np.complex64),
            np.zeros((len(ctf_power), n_rings), np.complex64),
            mass,
        )
    turned = (table @ space.analysis).view(np.complex64)  # (n_pairs, n_orders)
    shift, image = (np.flatnonzero(np.bincount(index)) for index in (line, column))
    if len(line) == len(shift) * len(image):  # pairs come in the order of shifts, then images
        dense = np.ascontiguousarray(turned.T).reshape(n_orders, len(shift), len(image))
    else:
        dense = np.zeros((n_orders, len(shift), len(image)), dtype=np.complex64)
        dense[:, np.searchsorted(shift, line), np.searchsorted(image, column)] = turned.T
    summed = np.matmul(dense, images[:, image])  # (n_orders, n_shifts, n_rings)
    even = dense[: len(ctf_power)].sum(axis=1)  # shifts do not touch C^2
    denominator = np.matmul(even[:, None, :], ctf_power[:, image])[:, 0]
    return undo_shifts(summed[:, None], undo_shift[shift], space)[0], denominator, mass


def undo_shifts(summed: Complex64, undo_shift: Complex64, space: SearchSpace) -> Complex64:
    """Numerators of a few references from their sums at every shift, Eq. (4.5).

    Parameters
    ----------
    summed : ndarray of shape (n_orders, k, n_shifts, n_rings)
        Orders as in `SearchSpace.order`.
    undo_shift : ndarray of shape (n_shifts, n_rings, n_angles / 2)
        `translation_phase` of these shifts.
    space : SearchSpace
        Orders.

    Returns
    -------
    numerator : ndarray of shape (k, n_orders, n_rings), complex64
        Orders 0, 1, ..
    """
    ascending = np.empty((*summed.shape[1:], space.n_orders), dtype=np.complex64)
    ascending[..., space.order] = summed.transpose(1, 2, 3, 0)
    values = from_angular_orders(ascending, space.grid.n_angles)  # (k, n_shifts, n_rings, n_angles / 2)
    centred = np.einsum("ktrj,trj->krj", values, undo_shift)
    return angular_orders(centred, space.n_orders).transpose(0, 2, 1)


def _fit(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if array.shape == shape:
        return array
    fitted = np.zeros(shape, dtype=array.dtype)
    common = tuple(slice(min(a, b)) for a, b in zip(array.shape, shape, strict=True))
    fitted[common] = array[common]
    return fitted
