"""Adaptive search: classes that a coarse search rules out are left out of the fine one, Eq. (4.6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.workers import ordered_map, row_blocks
from sklearn_cryoem.alignment.expectation import (
    COLUMNS_PER_PRODUCT,
    POSTERIOR_FLOOR,
    Cells,
    LogPrior,
    Posterior,
    class_evidence,
    posterior_of,
    threshold_of,
)
from sklearn_cryoem.alignment.features import ImageFeatures
from sklearn_cryoem.alignment.products import (
    Int,
    Workspace,
    cells_above,
    correlate,
    norm_orders,
    stack_real,
    synthesise,
)
from sklearn_cryoem.alignment.references import (
    coarser_references,
    polar_references,
    reference_bank,
    reference_power,
    shifted_orders,
)
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32
from sklearn_cryoem.physics.polar import translation_phase

LEAST_CLASSES = 3  # every image keeps at least these for the fine search
SAFETY = 3.0  # and classes less than this many nats below the last one kept,
RELATIVE_SAFETY = 0.05  # or this part of the evidence: a coarse grid misses the peak by a part of its height
MOST_CLASSES = 0.5  # where more than this part survives, an exhaustive search is quicker
IMAGES_PER_TASK = 64  # of the coarse search
CLASSES_PER_TASK = 4  # of the fine search
BANK_BYTES = 400e6  # references shifted for the fine search are kept for the next images if all fit

Bool = NDArray[np.bool_]
ReadImages = Callable[[slice], tuple[ImageFeatures, Float32]]


class AdaptiveSearch:
    """References ready for a coarse search of all of them and a fine one of those that survive, Eq. (4.6).

    Parameters
    ----------
    references : ndarray of shape (n_clusters, D, D)
        Masked, centred.
    space : SearchSpace
        The search wanted; its `coarse` is that of few rings, orders, angles and shifts.
    prior, coarse_prior : LogPrior
        Log priors of classes and shifts, for both.
    n_even : int
        Even orders of the norm term.
    n_jobs : int or None
        Workers: a task is a block of images in the coarse search, a few classes in the fine one.
    """

    def __init__(
        self,
        references: Float32,
        space: SearchSpace,
        prior: LogPrior,
        coarse_prior: LogPrior,
        n_even: int,
        n_jobs: int | None = None,
    ) -> None:
        if space.coarse is None:
            raise ValueError("The search space has no coarse one. Use find_cells for an exhaustive search.")
        self.space, self.coarse = space, space.coarse
        self.prior, self.coarse_prior, self.n_jobs = prior, coarse_prior, n_jobs
        self._values = polar_references(references, space.grid, n_jobs)  # (n_clusters, n_rings, n_angles / 2)
        coarser = coarser_references(self._values, self.coarse)
        self._coarse_bank = reference_bank(coarser, self.coarse, n_even, n_jobs)
        self._power = reference_power(self._values, space, n_even)
        self._phase = translation_phase(space.grid, -space.shifts_px)
        per_class = 8 * space.n_orders * space.n_rings * space.n_shifts
        self._keeps_shifted = per_class * len(references) <= BANK_BYTES
        self._shifted: dict[int, Float32] = {}

    def posterior(
        self, read: ReadImages, blocks: Sequence[slice], floor: float = POSTERIOR_FLOOR
    ) -> tuple[ImageFeatures, Posterior] | None:
        """Features of some images and their posterior of class, shift and angle, as from `expect`.

        Parameters
        ----------
        read : callable
            ``read(block)`` returns features at the rings and orders of `space` and 1 / noise variance
            (n, n_rings).
        blocks : sequence of slices
            What to read; at most `IMAGES_PER_TASK` images each.
        floor : float
            Posteriors below this are set to exactly zero.

        Returns
        -------
        features, posterior : ImageFeatures, Posterior
            Or None if so many classes survive that an exhaustive search is quicker.

        Notes
        -----
        Images are few for each class and classes few for each image. Class by class, all images that a class
        has left share its matrix products. Each image first sees the class that is best at coarse
        resolution, which tells what cells of the others have to reach.
        """
        images = _Images(list(ordered_map(partial(self._prepare, read), blocks, n_jobs=self.n_jobs)))
        survives = surviving(images.evidence, self.space.adaptive_fraction)
        if survives.mean() > MOST_CLASSES:
            return None
        leading = np.zeros_like(survives)
        leading[np.arange(len(survives)), images.evidence.argmax(axis=1)] = True
        for pairs in (leading, survives & ~leading):
            self._refine(images, pairs, floor)
        return images.features, images.posterior(floor)

    def _prepare(self, read: ReadImages, block: slice) -> _Prepared:
        features, precision = read(block)
        coarse, n_rings, n = self.coarse, self.coarse.n_rings, len(features)
        few = features.take(slice(None), n_rings, coarse.n_orders)
        stacked = stack_real(features.orders, precision, self.space, Workspace())
        return _Prepared(
            features,
            stacked.reshape(len(stacked), 2, n, -1),
            norm_orders(features.ctf_power, precision, self._power),
            class_evidence(few, precision[:, :n_rings], self._coarse_bank, coarse, self.coarse_prior),
        )

    def _refine(self, images: _Images, pairs: Bool, floor: float) -> None:
        """Search the given (image, class) pairs."""
        classes = np.flatnonzero(pairs.any(axis=0))
        tasks = [classes[rows] for rows in row_blocks(len(classes), CLASSES_PER_TASK)]

        def search(task: Int) -> list[tuple[NDArray[Any], ...]]:
            work = Workspace()
            return [
                part
                for z in task
                for part in self._one_class(images, int(z), np.flatnonzero(pairs[:, z]), floor, work)
            ]

        found = [part for parts in ordered_map(search, tasks, n_jobs=self.n_jobs) for part in parts]
        for chosen, best, bound, *cells in found:
            images.best[chosen] = np.maximum(images.best[chosen], best)
            images.bound[chosen] = np.logaddexp(images.bound[chosen], bound)
            images.cells.append(tuple(cells))

    def _one_class(
        self, images: _Images, z: int, members: Int, floor: float, work: Workspace
    ) -> Iterator[tuple[NDArray[Any], ...]]:
        """Images, their best cell and bound of evidence; image, row, angle and log of the cells found."""
        space, prior = self.space, self.prior
        bank = self._shifted_reference(z)
        constant = prior.cluster[z] - np.log(space.n_angles)
        for block in row_blocks(len(members), max(1, COLUMNS_PER_PRODUCT // space.n_shifts)):
            chosen = members[block]
            x = work("chosen", (space.n_orders, 2, len(chosen), 2 * space.n_rings))
            np.take(images.stacked, chosen, axis=2, out=x, mode="clip")
            norm = images.norm[:, chosen, z : z + 1]
            level = ((constant - norm[0].real) + prior.shift).astype(np.float32)  # (n, n_shifts)
            x = x.reshape(space.n_orders, 2 * len(chosen), -1)
            same, mirrored, top = synthesise(correlate(x, norm[1:], level, bank, space, work), space, work)
            top = top.reshape(level.shape)
            best = top.max(axis=1)
            bound = best + np.log(np.exp(top - best[:, None]).sum(axis=1))
            threshold = threshold_of(
                np.maximum(best, images.best[chosen]), np.logaddexp(bound, images.bound[chosen]), floor
            )
            image, row, angle, log = cells_above(threshold, same, mirrored, top, space)
            yield chosen, best, bound, chosen[image], row + z * space.n_shifts, angle, log

    def _shifted_reference(self, z: int) -> Float32:
        found = self._shifted.get(z)
        if found is None:
            found = shifted_orders(self._values[z : z + 1], self._phase, self.space)
            if self._keeps_shifted:
                self._shifted[z] = found
        return found


def surviving(evidence: Float32, fraction: float) -> Bool:
    """Smallest sets of classes that hold `fraction` of the posterior, and a few more for safety.

    Parameters
    ----------
    evidence : ndarray of shape (n_images, n_clusters)
        Log evidence of each class against noise alone.
    fraction : float
        Between 0 and 1.

    Returns
    -------
    survives : ndarray of shape (n_images, n_clusters), bool
    """
    falling = -np.sort(-evidence.astype(np.float64), axis=1)
    posterior = np.exp(falling - falling[:, :1])
    total = posterior.sum(axis=1, keepdims=True)
    needed = np.sum(np.cumsum(posterior, axis=1) < fraction * total, axis=1)  # all but the last one
    last = np.clip(needed, 0, evidence.shape[1] - 1)
    lowest = np.take_along_axis(falling, last[:, None], axis=1)[:, 0]
    lowest -= np.maximum(SAFETY, RELATIVE_SAFETY * falling[:, 0])
    few = falling[:, min(LEAST_CLASSES, evidence.shape[1]) - 1]
    return np.asarray(evidence >= np.minimum(lowest, few)[:, None])


@dataclass(frozen=True)
class _Prepared:
    """A block of images, ready for the fine search."""

    features: ImageFeatures
    stacked: Float32  # (n_orders, 2, n, 2 n_rings), see `stack_real`
    norm: Complex64  # (n_even, n, n_clusters)
    evidence: Float32  # (n, n_clusters), coarse


class _Images:
    """Images in the fine search, the cells found and what is known of their evidence."""

    def __init__(self, parts: Sequence[_Prepared]) -> None:
        self.features = ImageFeatures.concatenate([part.features for part in parts])
        self.stacked = np.concatenate([part.stacked for part in parts], axis=2)
        self.norm = np.concatenate([part.norm for part in parts], axis=1)
        self.evidence = np.concatenate([part.evidence for part in parts])
        n = len(self.features)
        self.best, self.bound = np.full((2, n), -np.inf, dtype=np.float32)
        self.cells: list[tuple[NDArray[Any], ...]] = []

    def posterior(self, floor: float) -> Posterior:
        """Posterior over all cells found."""
        image, row, angle, log = (np.concatenate(part) for part in zip(*self.cells, strict=True))
        return posterior_of([Cells(image, row, angle, log, self.best, self.bound).above(floor)], floor)
