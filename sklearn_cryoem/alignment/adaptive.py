"""Adaptive search: references that a coarse search rules out are left out of the fine one, Eq. (4.6)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.parallel import row_blocks
from sklearn_cryoem.alignment.expectation import (
    COLUMNS_PER_PRODUCT,
    POSTERIOR_FLOOR,
    Cells,
    LogPrior,
    Posterior,
    posterior_of,
    reference_evidence,
    threshold_of,
)
from sklearn_cryoem.alignment.features import ImageFeatures
from sklearn_cryoem.alignment.products import (
    Int,
    ReferenceBank,
    Workspace,
    add_levels,
    cells_above,
    norm_orders,
    shift_phase,
    shifted_orders,
    stack_real,
    synthesise,
)
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32

# With these figures a search at 128 pixels is 2.5 to 3.8 times quicker, and hardly ever finds anything else.
COARSE_POSTERIOR = 0.999  # of the coarse posterior that the references searched in full hold together
MIN_REFERENCES = 3  # every image keeps at least so many for the fine search
MARGIN_NATS = 3.0  # an image also keeps references less than this below the last one kept
RELATIVE_MARGIN = 0.05  # or this part of the evidence: a coarse grid misses a part of a peak's height
MAX_SURVIVING = 0.5  # where more than this part survives, an exhaustive search is quicker

Bool = NDArray[np.bool_]
_Prepared = tuple[ImageFeatures, Float32, Complex64, Float32]  # a block of images, see `_Images`


# Only whole references are left out. All angles and shifts of one come out of the same matrix products, so
# leaving out some of them would save little.
class AdaptiveSearch:
    """References ready for a coarse search of all of them and a fine one of those that survive, Eq. (4.6).

    Parameters
    ----------
    values : ndarray of shape (n_references, n_rings, n_angles / 2), complex64
        References on the polar grid of `space`.
    space, coarse : SearchSpace
        The search wanted, and that of few rings, orders, angles and shifts.
    bank, coarse_bank : ReferenceBank
        The references for both. Shifted references that the first does not hold are made when needed.
    prior, coarse_prior : LogPrior
        Log priors of references and shifts, for both.
    """

    def __init__(
        self,
        values: Complex64,
        space: SearchSpace,
        coarse: SearchSpace,
        bank: ReferenceBank,
        coarse_bank: ReferenceBank,
        prior: LogPrior,
        coarse_prior: LogPrior,
    ) -> None:
        self.space, self.coarse = space, coarse
        self.prior, self.coarse_prior, self._values = prior, coarse_prior, values
        self._bank, self._coarse_bank = bank, coarse_bank

    def posterior(
        self, blocks: Iterable[ImageFeatures], precision: Float32
    ) -> tuple[ImageFeatures, Posterior] | None:
        """Features of some images and their posterior of reference, shift and angle, as from `expect`.

        Parameters
        ----------
        blocks : iterable of ImageFeatures
            Features of some images at the rings and orders of `space`, a block at a time.
        precision : ndarray of shape (n_rings,)
            1 / noise variance.

        Returns
        -------
        features, posterior : ImageFeatures, Posterior
            Or None if so many references survive that an exhaustive search is quicker.

        Notes
        -----
        Images are few for each reference and references few for each image. All images that a reference has
        left share its matrix products. Each image first sees the reference that is best at coarse
        resolution, which tells what cells of the others have to reach.
        """
        images = _Images(self._prepare(block, precision) for block in blocks)
        survives = surviving(images.evidence, COARSE_POSTERIOR)
        if survives.mean() > MAX_SURVIVING:
            return None
        leading = np.zeros_like(survives)
        leading[np.arange(len(survives)), images.evidence.argmax(axis=1)] = True
        for pairs in (leading, survives & ~leading):
            self._refine(images, pairs)
        return images.features, images.posterior()

    def _prepare(self, features: ImageFeatures, precision: Float32) -> _Prepared:
        coarse, n_rings, n = self.coarse, self.coarse.n_rings, len(features)
        few = features.take(slice(None), n_rings, coarse.n_orders)
        stacked = stack_real(features.orders, precision, self.space, Workspace())
        return (
            features,
            stacked.reshape(len(stacked), 2, n, -1),
            norm_orders(features.ctf_power, precision, self._bank.power, self.space.kappa),
            reference_evidence(few, precision[:n_rings], self._coarse_bank, coarse, self.coarse_prior),
        )

    def _refine(self, images: _Images, pairs: Bool) -> None:
        """Search the given (image, reference) pairs, reference after reference."""
        work = Workspace()
        reference, image = np.nonzero(pairs.T)
        for block in row_blocks(len(reference), max(1, COLUMNS_PER_PRODUCT // self.space.n_shifts)):
            self._search(images, image[block], reference[block], work)

    def _search(self, images: _Images, chosen: Int, reference: Int, work: Workspace) -> None:
        """Add what a few pairs, sorted by reference, say of their images."""
        space, prior = self.space, self.prior
        norm = images.norm[:, chosen, reference]  # (n_even, n_pairs)
        constant = prior.reference[reference] - np.log(space.n_angles)
        level = ((constant - norm[0].real)[:, None] + prior.shift).astype(np.float32)  # (n_pairs, n_shifts)
        c = self._correlate(images, chosen, reference, work)
        same, mirrored, top = synthesise(add_levels(c, norm[1:, :, None], level, space), space, work)
        top = top.reshape(level.shape)
        best = top.max(axis=1)
        bound = best + np.log(np.exp(top - best[:, None]).sum(axis=1))
        np.maximum.at(images.best, chosen, best)
        np.logaddexp.at(images.bound, chosen, bound)
        threshold = threshold_of(images.best[chosen], images.bound[chosen], POSTERIOR_FLOOR)
        pair, shift, angle, log = cells_above(threshold, same, mirrored, top, space)
        images.cells.append((chosen[pair], shift + reference[pair] * space.n_shifts, angle, log))

    def _correlate(self, images: _Images, chosen: Int, reference: Int, work: Workspace) -> Float32:
        """Re and Im of c_m of every pair at every shift: the pairs of a reference share its products."""
        space = self.space
        x = work("chosen", (space.n_orders, 2, len(chosen), 2 * space.n_rings))
        np.take(images.stacked, chosen, axis=2, out=x, mode="clip")
        c = work("orders", (2 * space.n_even, 2, len(chosen), space.n_shifts))
        starts = np.flatnonzero(np.diff(reference, prepend=-1))
        for start, end in pairwise((*starts, len(reference))):
            bank = self._shifted_reference(int(reference[start]))[:, None]
            np.matmul(x[:, :, start:end], bank, out=c[: space.n_orders, :, start:end])
        return c.reshape(2 * space.n_even, 2 * len(chosen), -1)

    @cached_property
    def _phase(self) -> Complex64:
        return shift_phase(self.space)

    def _shifted_reference(self, z: int) -> Float32:
        if z < len(self._bank.orders):
            found: Float32 = self._bank.orders[z]
            return found
        return shifted_orders(self._values[z], self._phase, self.space)


def surviving(evidence: Float32, fraction: float) -> Bool:
    """Smallest sets of references that hold `fraction` of the posterior, and a few more for safety.

    Parameters
    ----------
    evidence : ndarray of shape (n_images, n_references)
        Log evidence of each reference against noise alone.
    fraction : float
        Between 0 and 1.

    Returns
    -------
    survives : ndarray of shape (n_images, n_references), bool
    """
    falling = -np.sort(-evidence.astype(np.float64), axis=1)
    posterior = np.exp(falling - falling[:, :1])
    total = posterior.sum(axis=1, keepdims=True)
    needed = np.sum(np.cumsum(posterior, axis=1) < fraction * total, axis=1)  # all but the last one
    last = np.clip(needed, 0, evidence.shape[1] - 1)
    lowest = np.take_along_axis(falling, last[:, None], axis=1)[:, 0]
    lowest -= np.maximum(MARGIN_NATS, RELATIVE_MARGIN * falling[:, 0])
    few = falling[:, min(MIN_REFERENCES, evidence.shape[1]) - 1]
    return np.asarray(evidence >= np.minimum(lowest, few)[:, None])


class _Images:
    """Images in the fine search, the cells found and what is known of their evidence."""

    def __init__(self, parts: Iterable[_Prepared]) -> None:
        features, stacked, norm, evidence = zip(*parts, strict=True)
        self.features = ImageFeatures.concatenate(features)
        self.stacked = np.concatenate(stacked, axis=2)  # (n_orders, 2, n, 2 n_rings), see `stack_real`
        self.norm = np.concatenate(norm, axis=1)  # (n_even, n, n_references)
        self.evidence = np.concatenate(evidence)  # (n, n_references), coarse
        n = len(self.features)
        self.best, self.bound = np.full((2, n), -np.inf, dtype=np.float32)
        self.cells: list[tuple[NDArray[Any], ...]] = []

    def posterior(self) -> Posterior:
        """Posterior over all cells found."""
        image, row, angle, log = (np.concatenate(part) for part in zip(*self.cells, strict=True))
        cells = Cells(image, row, angle, log, self.best, self.bound)
        return posterior_of([cells.above(POSTERIOR_FLOOR)])
