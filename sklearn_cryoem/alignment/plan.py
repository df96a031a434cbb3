"""A model made ready for the search of any number of images, and their posteriors, Eq. (4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.workers import even_blocks, row_blocks
from sklearn_cryoem.alignment import adaptive
from sklearn_cryoem.alignment.adaptive import AdaptiveSearch
from sklearn_cryoem.alignment.dense import fits_dense
from sklearn_cryoem.alignment.expectation import (
    POSTERIOR_FLOOR,
    Cells,
    Posterior,
    find_cells,
    posterior_of,
)
from sklearn_cryoem.alignment.features import FeatureSource, ImageFeatures
from sklearn_cryoem.alignment.model import AlignmentModel
from sklearn_cryoem.alignment.references import ReferenceBank, polar_references, reference_bank
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64

Rows = NDArray[np.int64]

IMAGES_PER_SHARD = 64
IMAGES_PER_SEARCH = 512  # of an adaptive one: many images share the products of each class
SHARDS_PER_BANK = 8  # where the bank does not fit: images that each group of classes sees in turn


@dataclass(frozen=True)
class Plan:
    """What a pass does: a model, where to search, and how.

    What follows from the model is made once, in each process, when it is first needed.

    Attributes
    ----------
    model : AlignmentModel
        References, noise, priors.
    space : SearchSpace
        Where to search.
    n_even : int
        Even orders of the norm term.
    broad : bool
        Whether posteriors are expected to be broad: whole tables of them are then quicker than lists.
    scale : ndarray of shape (all images,) or None
        Intensity of every image, Eq. (4.13), where the source has scales.
    """

    model: AlignmentModel
    space: SearchSpace
    n_even: int
    broad: bool = False
    scale: Float64 | None = None

    @property
    def n_references(self) -> int:
        """Number of references."""
        return len(self.model.references)

    @property
    def fits_dense(self) -> bool:
        """Whether whole tables of posteriors can be held."""
        fits = self.n_references <= classes_at_once(self.space)
        return fits and fits_dense(self.space, self.n_references, IMAGES_PER_SHARD)

    @cached_property
    def values(self) -> Complex64:
        """References on the polar grid; (n_references, n_rings, n_angles / 2)."""
        return polar_references(self.model.references, self.space.grid)

    @cached_property
    def bank(self) -> ReferenceBank:
        """All references at every shift."""
        return reference_bank(self.values, self.space, self.n_even)

    @cached_property
    def adaptive(self) -> AdaptiveSearch | None:
        """Coarse and fine search, Eq. (4.6), if the space has a coarse one."""
        if self.space.coarse is None:
            return None
        priors = self.model.log_prior(self.space), self.model.log_prior(self.space.coarse)
        return AdaptiveSearch(self.values, self.space, *priors, self.n_even)

    def read(self, source: FeatureSource, rows: Rows) -> tuple[ImageFeatures, Float32]:
        """Features of `rows` and the precision of each (n, n_rings)."""
        features = source(rows, self.space.n_rings, self.space.n_orders)
        return features, self.model.precision(source.group[rows], self.space.n_rings)

    def posteriors(
        self, source: FeatureSource, rows: Rows, floor: float = POSTERIOR_FLOOR
    ) -> Iterator[tuple[ImageFeatures, Posterior]]:
        """Features and posteriors of `rows`, in order, a block of images at a time, Eq. (4.2).

        The search is adaptive, Eq. (4.6), if the space has a coarse one, as long as that rules out enough.
        """
        done = 0
        if self.adaptive is not None:
            for block in even_blocks(len(rows), IMAGES_PER_SEARCH, 1):
                mine = rows[block]
                shards = (
                    self.read(source, mine[part]) for part in even_blocks(len(mine), IMAGES_PER_SHARD, 1)
                )
                found = self.adaptive.posterior(shards, floor)
                if found is None:  # references so alike, or images so noisy, that it decides little
                    break
                yield found
                done = block.stop
        yield from self._exhaustive(source, rows[done:], floor)

    def _exhaustive(
        self, source: FeatureSource, rows: Rows, floor: float
    ) -> Iterator[tuple[ImageFeatures, Posterior]]:
        """Whole search; where the bank does not fit it is made for a group of classes at a time."""
        prior = self.model.log_prior(self.space)
        groups = row_blocks(self.n_references, classes_at_once(self.space))
        shards = even_blocks(len(rows), IMAGES_PER_SHARD, 1)
        for bundle in row_blocks(len(shards), SHARDS_PER_BANK):
            images = [self.read(source, rows[block]) for block in shards[bundle]]
            found: list[list[Cells]] = [[] for _ in images]
            for group in groups:
                bank = self.bank if len(groups) == 1 else self._part_of_bank(group)
                for cells, shard in zip(found, images, strict=True):
                    cells.append(find_cells(*shard, bank, self.space, prior, floor, group.start))
            for (features, _), cells in zip(images, found, strict=True):
                yield features, posterior_of(cells, floor)

    def _part_of_bank(self, group: slice) -> ReferenceBank:
        return reference_bank(self.values[group], self.space, self.n_even)


def classes_at_once(space: SearchSpace) -> int:
    """How many classes, shifted to every shift of `space`, fit in the memory for them; at least 1."""
    per_class = 8 * space.n_orders * space.n_rings * space.n_shifts
    return max(1, int(adaptive.BANK_BYTES // per_class))
