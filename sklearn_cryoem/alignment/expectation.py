"""The E-step: posterior of reference, shift and angle of every image by matrix products, Eq. (4.2)-(4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sklearn_cryoem._core.parallel import row_blocks
from sklearn_cryoem.alignment.features import ImageFeatures
from sklearn_cryoem.alignment.products import (
    Int,
    ReferenceBank,
    Workspace,
    cells_above,
    correlate,
    norm_orders,
    stack_real,
    synthesise,
)
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64

POSTERIOR_FLOOR = 1e-5  # smaller posteriors are set to exactly zero
ALWAYS_KEPT = 0.5  # unless they reach this fraction of the largest posterior of their image
MARGIN = 1.0  # nats below the floor that are still added to the evidence
IMAGES_PER_PRODUCT = 64  # enough rows for an efficient matrix product
COLUMNS_PER_PRODUCT = 2880  # (image, reference, shift) columns whose orders are made at once
COLUMNS_PER_SYNTHESIS = 2880  # and those whose angles are


@dataclass(frozen=True)
class Posterior:
    """Posterior of a block of images: the cells (reference, shift, angle) that are not zero.

    Attributes
    ----------
    image, row, angle : ndarrays of shape (n_cells,), int
        Image within the block, reference * n_shifts + shift, and index of the angle of each cell.
    weight : ndarray of shape (n_cells,), float32
        Posterior of each cell; the cells of an image sum to 1.
    log_evidence : ndarray of shape (n_images,)
        log p(image) / p(image | noise alone).
    best_row, best_angle : ndarrays of shape (n_images,), int
        The most probable cell of each image.
    best_weight : ndarray of shape (n_images,)
        Its posterior.
    """

    image: Int
    row: Int
    angle: Int
    weight: Float32
    log_evidence: Float64
    best_row: Int
    best_angle: Int
    best_weight: Float64

    @classmethod
    def concatenate(cls, parts: Sequence[Posterior]) -> Posterior:
        """Posterior of the images of all parts, in their order."""
        if len(parts) == 1:
            return parts[0]
        offsets = np.cumsum([0] + [len(part.log_evidence) for part in parts[:-1]])
        names = ("row", "angle", "weight", "log_evidence", "best_row", "best_angle", "best_weight")
        return cls(
            np.concatenate([part.image + int(offset) for part, offset in zip(parts, offsets, strict=True)]),
            *(np.concatenate([getattr(part, name) for part in parts]) for name in names),
        )

    def near(self, near: Float64, n_shifts: int) -> tuple[Int, Int, Int]:
        """Most probable cell of each image near the class round which most of its posterior lies, Eq. (8.7).

        Parameters
        ----------
        near : ndarray of shape (n_references, n_classes)
            How much the posterior of each reference counts for each class: 0 for classes of another volume.
        n_shifts : int
            Of the search.

        Returns
        -------
        row, angle, label : ndarrays of shape (n_images,), int
            The cell, and the class.
        """
        n, reference = len(self.log_evidence), self.row // n_shifts
        mass = np.bincount(self.image * len(near) + reference, self.weight, n * len(near)).reshape(n, -1)
        volume = mass @ (near > 0.0)  # the posterior of its volume, for each class
        largest = volume >= volume.max(axis=1, keepdims=True) * (1.0 - 1e-9)
        label = np.where(largest, mass @ near, -1.0).argmax(axis=1)
        weight = self.weight * near[reference, label[self.image]]
        top = np.zeros(n)
        np.maximum.at(top, self.image, weight)
        best = np.flatnonzero(weight == top[self.image])
        best = best[np.unique(self.image[best], return_index=True)[1]]  # the first among equals
        return self.row[best], self.angle[best], label

    def split(self, blocks: Sequence[slice]) -> list[Posterior]:
        """Posteriors of blocks of rows that follow each other and cover all images."""
        order = np.argsort(self.image, kind="stable")
        image = self.image[order]
        parts = []
        for rows in blocks:
            first, last = np.searchsorted(image, (rows.start, rows.stop))
            own = order[first:last]
            parts.append(Posterior(
                self.image[own] - rows.start, self.row[own], self.angle[own], self.weight[own],
                self.log_evidence[rows], self.best_row[rows], self.best_angle[rows], self.best_weight[rows],
            ))  # fmt: skip
        return parts


@dataclass(frozen=True)
class Cells:
    """Cells that may carry weight, before they are normalised.

    Attributes
    ----------
    image, row, angle : ndarrays of shape (n_cells,), int
        As in `Posterior`.
    log : ndarray of shape (n_cells,), float32
        Log posterior but for the evidence.
    best : ndarray of shape (n_images,), float32
        Largest log of each image.
    bound : ndarray of shape (n_images,), float32
        A lower bound of the log evidence: the sum over the best angles of all (reference, shift) pairs.
    """

    image: Int
    row: Int
    angle: Int
    log: Float32
    best: Float32
    bound: Float32

    def above(self, floor: float) -> Cells:
        """Leave out the cells whose posterior must be smaller than `floor`."""
        is_above = self.log >= threshold_of(self.best, self.bound, floor)[self.image]
        if is_above.all():
            return self
        kept = np.flatnonzero(is_above)
        cells = (self.image[kept], self.row[kept], self.angle[kept], self.log[kept])
        return Cells(*cells, self.best, self.bound)


@dataclass(frozen=True)
class LogPrior:
    """Log priors of the references (n_references,) and of the shifts searched (n_shifts,)."""

    reference: Float64
    shift: Float64


def expect(
    features: ImageFeatures,
    precision: Float32,
    bank: ReferenceBank,
    space: SearchSpace,
    prior: LogPrior,
    floor: float = POSTERIOR_FLOOR,
) -> Posterior:
    """Posterior of reference, shift and angle of a block of images, Eq. (4.2).

    Parameters
    ----------
    features : ImageFeatures
        At the rings and orders of `space`.
    precision : ndarray of shape (n_rings,), float32
        1 / noise variance of each ring.
    bank : ReferenceBank
        The references.
    space : SearchSpace
        Shifts, angles and orders.
    prior : LogPrior
        Log priors of references and shifts.
    floor : float
        Posteriors below this are set to exactly zero, Eq. (4.5), unless they reach half the largest.

    Returns
    -------
    posterior : Posterior

    Notes
    -----
    For an image with K T (reference, shift) pairs, M orders and R rings: one product (2 x 2 R) by (2 R x K T)
    for each order, and two of (n_angles / 2 x M) by (M x K T). Everything after them touches only the cells
    within about log(1 / floor) of the evidence, usually one in a hundred.
    """
    return posterior_of([find_cells(features, precision, bank, space, prior, floor)], floor)


def find_cells(
    features: ImageFeatures,
    precision: Float32,
    bank: ReferenceBank,
    space: SearchSpace,
    prior: LogPrior,
    floor: float = POSTERIOR_FLOOR,
    first_reference: int = 0,
) -> Cells:
    """Cells of a block of images that may carry weight, for the references of one bank, Eq. (4.2)-(4.4).

    Parameters as in `expect`, but `bank` may hold some of the references only, from `first_reference` on;
    `prior` is that of all.
    """
    work = Workspace()
    last_reference = first_reference + bank.power.shape[2]
    part = LogPrior(prior.reference[first_reference:last_reference], prior.shift)
    found = []
    for rows in row_blocks(len(features), IMAGES_PER_PRODUCT):
        images = features.take(rows, space.n_rings, space.n_orders)
        cells = _search(images, precision, bank, space, part, floor, work).above(floor)
        row = cells.row + first_reference * space.n_shifts
        found.append((cells.image + rows.start, row, cells.angle, cells.log, cells.best, cells.bound))
    return Cells(*(np.concatenate(column) for column in zip(*found, strict=True)))


def reference_evidence(
    features: ImageFeatures, precision: Float32, bank: ReferenceBank, space: SearchSpace, prior: LogPrior
) -> Float32:
    """Log evidence of each reference, counting the best angle of each shift only; (n_images, n_references).

    Parameters as in `expect`, but all images go into one product. They leave out a constant.
    """
    work = Workspace()
    n, n_shifts = len(features), space.n_shifts
    stacked = stack_real(features.orders, precision, space, work)
    norm = norm_orders(features.ctf_power, precision, bank.power, space.kappa)
    level = ((prior.reference - norm[0].real)[:, :, None] + prior.shift).astype(np.float32)
    evidence = np.empty((n, len(prior.reference)), dtype=np.float32)
    for block in row_blocks(len(prior.reference), max(1, COLUMNS_PER_PRODUCT // (n * n_shifts))):
        c = correlate(
            stacked,
            norm[1:, :, block],
            level[:, block].reshape(n, -1),
            bank.columns(block),
            space,
            work,
        )
        top = synthesise(c, space, work)[2].reshape(n, -1, n_shifts)
        best = top.max(axis=2)
        evidence[:, block] = best + np.log(np.exp(top - best[..., None]).sum(axis=2))
    return evidence


def posterior_of(parts: Sequence[Cells], floor: float = POSTERIOR_FLOOR) -> Posterior:
    """Posterior of a block of images from what `find_cells` found in each group of references, Eq. (4.2)."""
    if len(parts) == 1:
        return _normalise(parts[0], floor)
    image, row, angle, log = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("image", "row", "angle", "log")
    )
    best = np.max([part.best for part in parts], axis=0)  # (n_images,)
    bound = np.logaddexp.reduce([part.bound for part in parts], axis=0)
    return _normalise(Cells(image, row, angle, log, best, bound).above(floor), floor)


def _search(
    features: ImageFeatures,
    precision: Float32,
    bank: ReferenceBank,
    space: SearchSpace,
    prior: LogPrior,
    floor: float,
    work: Workspace,
) -> Cells:
    """Cells whose posterior may reach `floor`, for as many images as fit in one product."""
    n, n_shifts = len(features), space.n_shifts
    stacked = stack_real(features.orders, precision, space, work)  # (n_orders, 2 n, 2 n_rings)
    norm = norm_orders(features.ctf_power, precision, bank.power, space.kappa)  # (n_even, n, n_references)
    level = pair_levels(prior, norm, space)
    best, bound = np.full(n, -np.inf, dtype=np.float32), np.full(n, -np.inf, dtype=np.float32)
    found = []
    for block in row_blocks(len(prior.reference), max(1, COLUMNS_PER_PRODUCT // (n * n_shifts))):
        columns = slice(block.start * n_shifts, block.stop * n_shifts)
        width = columns.stop - columns.start
        c = correlate(stacked, norm[1:, :, block], level[:, columns], bank.columns(block), space, work)
        for images in row_blocks(n, max(1, COLUMNS_PER_SYNTHESIS // width)):
            same, mirrored, top = synthesise(c[..., images.start * width : images.stop * width], space, work)
            top = top.reshape(-1, width)  # each a cell of its own, so they add up to a bound
            highest = np.maximum(best[images], top.max(axis=1))
            total = np.exp(top - highest[:, None]).sum(axis=1) + np.exp(bound[images] - highest)
            best[images], bound[images] = highest, highest + np.log(total)
            image, row, angle, log = cells_above(
                threshold_of(best[images], bound[images], floor), same, mirrored, top, space
            )
            found.append((image + images.start, row + columns.start, angle, log))
    image, row, angle, log = (np.concatenate(part) for part in zip(*found, strict=True))
    return Cells(image, row, angle, log, best, bound)


def pair_levels(prior: LogPrior, norm: Complex64, space: SearchSpace) -> Float32:
    """Log priors less order 0 of the norm, the same at every angle; (n_images, n_references * n_shifts)."""
    level = (prior.reference - norm[0].real)[:, :, None] + (prior.shift - np.log(space.n_angles))
    flat: Float32 = level.reshape(norm.shape[1], -1).astype(np.float32)
    return flat


def threshold_of(best: Float32, bound: Float32, floor: float) -> Float32:
    """Log below which a posterior must be smaller than `floor`; arguments as in `Cells`."""
    # over a flat posterior of more than 1 / floor cells every cell is below the floor: the largest stay
    lowest = np.minimum(bound + np.log(floor) - MARGIN, best + np.log(ALWAYS_KEPT))
    return np.asarray(lowest, dtype=np.float32)


def _normalise(cells: Cells, floor: float) -> Posterior:
    """Turn log posteriors into posteriors; the small ones become exactly zero, Eq. (4.5)."""
    best, n = cells.best, len(cells.best)
    image, row, angle, log = cells.image, cells.row, cells.angle, cells.log
    weight = np.exp(log - best[image])
    evidence = np.bincount(image, weight, n)
    at_top = np.flatnonzero(log >= best[image])
    at_top = at_top[np.unique(image[at_top], return_index=True)[1]]  # the first among equals
    best_row, best_angle, best_weight = row[at_top], angle[at_top], weight[at_top] / evidence
    kept = np.flatnonzero(weight >= np.minimum(floor * evidence, ALWAYS_KEPT)[image])
    image, row, angle, weight = image[kept], row[kept], angle[kept], weight[kept]
    weight /= np.bincount(image, weight, n)[image]
    return Posterior(
        image,
        row,
        angle,
        weight.astype(np.float32),
        best.astype(np.float64) + np.log(evidence),
        best_row,
        best_angle,
        best_weight,
    )
