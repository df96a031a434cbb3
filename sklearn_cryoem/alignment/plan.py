"""A model made ready for the search of any number of images, and their posteriors, Eq. (4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.memory import bytes_at_once, kept_by_worker
from sklearn_cryoem._core.parallel import even_blocks, row_blocks
from sklearn_cryoem.alignment import adaptive
from sklearn_cryoem.alignment.adaptive import AdaptiveSearch
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
BANK_SHARE = 0.1  # of the memory limit, or BANK_BYTES: classes that an exhaustive search sees at once
TABLE_BYTES, TABLE_SHARE = 100e6, 0.025  # of log posteriors of one block of images, and of the limit, at most
KEPT_SHARE = 0.25  # of a memory limit that was set: references that all workers keep shifted


@dataclass(frozen=True)
class Room:
    """How much memory a worker may take; it follows from the limit of the process that plans the work.

    Attributes
    ----------
    bank : float
        Bytes of the shifted references that an exhaustive search holds at once. Blocks follow from it, and so
        may the last digits of results: it is the same for any number of workers.
    tables : float
        Bytes of whole tables of posteriors, likewise.
    kept : float
        Bytes of shifted references that an adaptive search keeps; results do not depend on it.
    """

    bank: float
    tables: float
    kept: float

    @classmethod
    def of(cls, n_workers: int = 1) -> Room:
        """Room of each of some workers."""
        return cls(
            bytes_at_once(adaptive.BANK_BYTES, BANK_SHARE),
            bytes_at_once(TABLE_BYTES, TABLE_SHARE),
            kept_by_worker(KEPT_SHARE, adaptive.BANK_BYTES, n_workers),
        )

    def classes_at_once(self, space: SearchSpace) -> int:
        """How many classes, shifted to every shift of `space`, an exhaustive search holds; at least 1."""
        return max(1, int(self.bank // space.shifted_bytes))

    def fits_dense(self, space: SearchSpace, n_references: int) -> bool:
        """Whether all angles are searched, and whole tables of posteriors can be held."""
        cells = n_references * space.n_shifts * space.n_angles
        fits = n_references <= self.classes_at_once(space) and 4.0 * IMAGES_PER_SHARD * cells <= self.tables
        return fits and space.angle_range_rad is None


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
    room : Room
        Memory of each worker.
    """

    model: AlignmentModel
    space: SearchSpace
    n_even: int
    broad: bool = False
    scale: Float64 | None = None
    room: Room = field(default_factory=Room.of)

    @classmethod
    def of(
        cls, source: FeatureSource, model: AlignmentModel, space: SearchSpace, broad: bool = False
    ) -> Plan:
        """Plan of a pass over images of `source`, which knows their intensities."""
        return cls(model, space, source.n_even, broad, source.scale, Room.of(source.pool.n_workers))

    @property
    def n_references(self) -> int:
        """Number of references."""
        return len(self.model.references)

    @property
    def fits_dense(self) -> bool:
        """Whether whole tables of posteriors can be held."""
        return self.room.fits_dense(self.space, self.n_references)

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
        return AdaptiveSearch(self.values, self.space, *priors, self.n_even, self.room.kept)

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
        groups = row_blocks(self.n_references, self.room.classes_at_once(self.space))
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
