"""E- and M-step of a block of images at once, where posteriors are so broad that lists of cells cost more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.em import Additive
from sklearn_cryoem._core.parallel import row_blocks
from sklearn_cryoem.alignment.expectation import COLUMNS_PER_PRODUCT, POSTERIOR_FLOOR, LogPrior, pair_levels
from sklearn_cryoem.alignment.features import ImageFeatures
from sklearn_cryoem.alignment.maximisation import Statistics, undo_shifts
from sklearn_cryoem.alignment.products import (
    Int,
    ReferenceBank,
    Workspace,
    analyse,
    correlate,
    norm_orders,
    stack_real,
    synthesise_all,
)
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64
from sklearn_cryoem.physics.polar import translation_phase

REFERENCES_AT_ONCE = 8  # whose shifts are undone


@dataclass(frozen=True)
class DenseSums(Additive):
    """Sums of a block of images, shifts not yet undone, and what it says of every image.

    Attributes
    ----------
    numerator : ndarray of shape (n_orders, n_references * n_shifts, 2 n_rings), float32
        Re next to Im of sum P exp(-i m psi) C X, orders as in `SearchSpace.order`.
    denominator : ndarray of shape (n_even, n_references, n_rings), complex64
        Even orders of sum P C^2.
    mass : ndarray of shape (n_references * n_shifts,)
        Posterior of each (reference, shift) pair.
    power : ndarray of shape (n_rings,)
        Sum of the power of the images.
    row, angle, log_evidence : lists of ndarrays of shape (n_images,)
        Best cell of every image and log p(image) / p(image | noise alone), as in `Posterior`, of each block.
    n_cells : int
        Cells whose posterior reaches the floor of `find_cells`, estimated from a quarter of the angles.
    """

    numerator: Float32
    denominator: Complex64
    mass: Float64
    power: Float64
    row: list[Int]
    angle: list[Int]
    log_evidence: list[Float64]
    n_cells: int


def dense_sums(
    features: ImageFeatures, precision: Float32, bank: ReferenceBank, space: SearchSpace, prior: LogPrior
) -> DenseSums:
    """Posterior of every cell and the sums of the M-step, Eq. (4.2)-(4.5); parameters as in `expect`.

    Notes
    -----
    The products of the search and the same ones backwards, with nothing but arithmetic on whole tables
    between them. No posterior is set to zero.
    """
    work = Workspace()
    n, n_shifts, n_references = len(features), space.n_shifts, len(prior.reference)
    stacked = stack_real(features.orders, precision, space, work)  # (n_orders, 2 n, 2 n_rings)
    norm = norm_orders(features.ctf_power, precision, bank.power, space.kappa)  # (n_even, n, n_references)
    level = pair_levels(prior, norm, space)
    blocks = row_blocks(n_references, max(1, COLUMNS_PER_PRODUCT // (n * n_shifts)))
    tables, tops = [], []
    for block in blocks:
        columns = slice(block.start * n_shifts, block.stop * n_shifts)
        c = correlate(stacked, norm[1:, :, block], level[:, columns], bank.columns(block), space, work)
        tables.append(synthesise_all(c, space, work))  # (4, n_angles / 4, n * columns)
        tops.append(tables[-1].max(axis=(0, 1)).reshape(n, -1))
    top = np.concatenate(tops, axis=1)  # (n, n_references * n_shifts)
    row = top.argmax(axis=1)
    best = top[np.arange(n), row]
    angle = _best_angle(tables, blocks, row, space, n)
    mass = np.empty_like(top)
    for block, table in zip(blocks, tables, strict=True):
        width = (block.stop - block.start) * n_shifts
        table -= np.repeat(best, width)
        np.exp(table, out=table)
        mass[:, block.start * n_shifts : block.stop * n_shifts] = table.sum(axis=(0, 1)).reshape(n, width)
    total = mass.sum(axis=1, dtype=np.float64)  # (n,)
    share = (1.0 / total).astype(np.float32)
    numerator, denominator, n_cells = _backwards(features, tables, blocks, share, space, work)
    return DenseSums(
        numerator,
        denominator,
        (mass * share[:, None]).sum(axis=0, dtype=np.float64),
        features.power.sum(axis=0, dtype=np.float64),
        [row],
        [angle],
        [best.astype(np.float64) + np.log(total)],
        n_cells,
    )


def _backwards(
    features: ImageFeatures,
    tables: list[Float32],
    blocks: list[slice],
    share: Float32,
    space: SearchSpace,
    work: Workspace,
) -> tuple[Float32, Complex64, int]:
    """Numerators, denominators, and how many cells reach the floor, from posteriors times 1 / `share`."""
    n, n_shifts = len(features), space.n_shifts
    stacked = stack_real(features.orders, share[:, None, None], space, work)  # (n_orders, 2 n, 2 n_rings)
    gain = np.where(space.order == 0, 1.0, 0.5).astype(np.float32)[:, None, None]  # `analyse` counts m twice
    stacked *= gain
    ctf_power = features.ctf_power.transpose(1, 0, 2) * share[:, None]  # (n_even, n, n_rings)
    ctf_power *= gain[: len(ctf_power)]
    n_references = blocks[-1].stop
    numerator = np.empty((space.n_orders, n_references * n_shifts, 2 * space.n_rings), dtype=np.float32)
    denominator = np.empty((len(ctf_power), n_references, space.n_rings), dtype=np.complex64)
    floor, n_cells = POSTERIOR_FLOOR / share, 0
    for block, table in zip(blocks, tables, strict=True):
        columns = slice(block.start * n_shifts, block.stop * n_shifts)
        n_cells += 4 * int(np.count_nonzero(table[0] >= np.repeat(floor, columns.stop - columns.start)))
        d = analyse(table, space, work).reshape(2 * space.n_even, 2 * n, -1)[: space.n_orders]
        np.matmul(d.transpose(0, 2, 1), stacked, out=numerator[:, columns])
        turned = d[: len(ctf_power)].reshape(len(ctf_power), 2, n, -1, n_shifts).sum(axis=4)
        even = (turned[:, 0] + 1j * turned[:, 1]).transpose(0, 2, 1)  # (n_even, n_in_block, n)
        denominator[:, block] = np.matmul(even, ctf_power)
    return numerator, denominator, n_cells


def _best_angle(tables: list[Float32], blocks: list[slice], row: Int, space: SearchSpace, n: int) -> Int:
    """Angle of the largest log of each image, which lies in the (reference, shift) pair `row`; (n,)."""
    angle = np.empty(n, dtype=np.int64)
    for block, table in zip(blocks, tables, strict=True):
        first, stop = block.start * space.n_shifts, block.stop * space.n_shifts
        own = np.flatnonzero((first <= row) & (row < stop))
        column = own * (stop - first) + row[own] - first
        places = table.reshape(space.n_angles, -1)[:, column].argmax(axis=0)
        angle[own] = space.mirrored_angles[places]
    return angle


def dense_statistics(sums: DenseSums, space: SearchSpace, n_even: int) -> Statistics:
    """Statistics from sums over all images: shifts are undone once, a few references at a time, Eq. (4.5)."""
    n_orders, n_rings, n_shifts = space.n_orders, space.n_rings, space.n_shifts
    n_references = sums.denominator.shape[1]
    undo = translation_phase(space.grid, space.shifts_px)  # (n_shifts, n_rings, n_angles / 2)
    table = sums.numerator.reshape(n_orders, n_references, n_shifts, 2, n_rings)

    def centred(block: slice) -> NDArray[Any]:
        part = table[:, block].reshape(n_orders, -1, 2, n_rings)
        k = block.stop - block.start
        summed = part[..., 0, :] + 1j * part[..., 1, :]
        return undo_shifts(summed, np.tile(undo, (k, 1, 1)), n_shifts * np.arange(k), space)

    blocks = row_blocks(n_references, REFERENCES_AT_ONCE)
    numerator = np.concatenate([centred(block) for block in blocks])
    denominator = np.zeros((n_references, n_even, n_rings), dtype=np.complex128)
    denominator[:, : len(sums.denominator)] = sums.denominator.transpose(1, 0, 2)
    mass = sums.mass.reshape(n_references, n_shifts)
    return Statistics(
        numerator=numerator.astype(np.complex128),
        denominator=denominator,
        power=sums.power,
        n_images=np.full(n_rings, float(sum(len(row) for row in sums.row))),
        mass=mass.sum(axis=1),
        shift_square=np.array([(mass @ (space.shifts_px**2).sum(axis=1)).sum()]),
        log_evidence=np.array([np.concatenate(sums.log_evidence).sum()]),
        shift_sum=mass @ space.shifts_px,
        turn_sum=np.zeros(n_references),
    )
