"""A model made ready for the search of images: shifted references, made once for all workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.memory import bytes_at_once, kept_by_worker
from sklearn_cryoem._core.parallel import even_blocks, row_blocks
from sklearn_cryoem.alignment.adaptive import AdaptiveSearch
from sklearn_cryoem.alignment.expectation import Cells, Posterior, find_cells, posterior_of
from sklearn_cryoem.alignment.features import (
    ALIGNED,
    FeatureCache,
    ImageFeatures,
    SharedFeatures,
    arrays_in,
)
from sklearn_cryoem.alignment.model import AlignmentModel
from sklearn_cryoem.alignment.products import (
    ArrayShapes,
    ReferenceBank,
    coarser_references,
    reference_bank,
    shift_phase,
)
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64

Result = TypeVar("Result")
Rows = NDArray[np.int64]
PlacedRows = tuple[Rows, Float64]  # images, and the shifts (n, 2) in pixels that they are brought into

IMAGES_PER_BLOCK = 64  # images whose features are made at once
IMAGES_PER_SEARCH = 512  # images of one adaptive search: they share the products of each reference
BLOCKS_PER_BANK = 8  # blocks that each group of references sees in turn, where the bank does not fit
BANK_BYTES, BANK_SHARE = 400e6, 0.1  # shifted references that a worker holds, and of the memory limit at most
TABLE_BYTES, TABLE_SHARE = 100e6, 0.025  # log posteriors of one block of images, likewise
KEPT_SHARE = 0.25  # part of a memory limit that shifted references take which workers keep


@dataclass(frozen=True)
class PreparedSearch:
    """A model made ready for the search of any number of images.

    What follows from the model is made once: by all workers in a file that they share, or else in each
    process when it is first needed. The sizes of bank and tables decide how the work is cut, and so the last
    digits of results: no number of workers changes them.

    Attributes
    ----------
    model : AlignmentModel
        References, with their mirror images where these are searched, noise, priors.
    space : SearchSpace
        Where to search.
    n_even : int
        Even orders of the norm term.
    bank_bytes : float
        Shifted references that an exhaustive search holds at once.
    table_bytes : float
        Whole tables of posteriors.
    kept_bytes : float
        Shifted references that are kept, if that is more; results do not depend on it.
    path : Path or None
        File that the workers share, see `searched`.
    """

    model: AlignmentModel
    space: SearchSpace
    n_even: int
    bank_bytes: float
    table_bytes: float
    kept_bytes: float
    path: Path | None

    @classmethod
    def of(cls, features: SharedFeatures, model: AlignmentModel, space: SearchSpace) -> PreparedSearch:
        """Search by the workers of `features`, in the memory that each of them may take."""
        return cls(
            model.with_mirrors() if space.mirror else model,
            space,
            features.images.n_even,
            bank_bytes=bytes_at_once(BANK_BYTES, BANK_SHARE),
            table_bytes=bytes_at_once(TABLE_BYTES, TABLE_SHARE),
            kept_bytes=kept_by_worker(KEPT_SHARE, BANK_BYTES, features.n_workers),
            path=None,
        )

    @property
    def n_references(self) -> int:
        """Number of references."""
        return len(self.model.weight)

    @property
    def references_at_once(self) -> int:
        """References, at every shift of `space`, that an exhaustive search holds; at least 1."""
        return max(1, int(self.bank_bytes // self.space.shifted_bytes))

    @property
    def fits_dense(self) -> bool:
        """Whether all angles are searched, and whole tables of posteriors can be held."""
        space, n_references = self.space, self.n_references
        table_bytes = 4.0 * IMAGES_PER_BLOCK * n_references * space.n_shifts * space.n_angles
        fits = n_references <= self.references_at_once and table_bytes <= self.table_bytes
        return fits and space.angle_range_rad is None

    @property
    def shapes(self) -> ArrayShapes:
        """Of the arrays that are made of the references: `values`, `bank`, and that of the coarse space."""
        n, space = self.n_references, self.space
        n_held = min(n, int(max(self.bank_bytes, self.kept_bytes) // space.shifted_bytes))
        n_held *= n_held == n or space.coarse is not None
        values = (n, space.n_rings, space.grid.n_angles // 2), np.complex64
        shapes = [values, *ReferenceBank.shapes(space, n, n_held, self.n_even)]
        if space.coarse is not None:
            shapes += ReferenceBank.shapes(space.coarse, n, n, self.n_even)
        return shapes

    @property
    def blocks(self) -> list[slice]:
        """References that are made at once."""
        return even_blocks(self.n_references, self.model.at_once)

    @cached_property
    def arrays(self) -> list[NDArray[Any]]:
        """The arrays of `shapes`: in the file, where `make` fills them, or of this process, filled."""
        if self.path is not None:
            return arrays_in(self.path, self.shapes)
        arrays: list[NDArray[Any]] = [np.empty(*array) for array in self.shapes]
        for block in self.blocks:
            self.make(block, arrays)
        return arrays

    def make(self, block: slice, arrays: list[NDArray[Any]]) -> None:
        """Enter some references into the arrays."""
        values, *banks = arrays
        values[block] = self.model.polar(self.space.grid, block)
        ReferenceBank(*banks[:2]).fill(block, values[block], self._phases[0], self.space)
        if (coarse := self.space.coarse) is not None:
            coarser = coarser_references(values[block], coarse)
            ReferenceBank(*banks[2:]).fill(block, coarser, self._phases[1], coarse)

    @cached_property
    def _phases(self) -> list[Complex64]:
        return [shift_phase(space) for space in (self.space, self.space.coarse) if space is not None]

    @property
    def values(self) -> Complex64:
        """References on the polar grid; (n_references, n_rings, n_angles / 2)."""
        return self.arrays[0]

    @cached_property
    def precision(self) -> Float32:
        """1 / noise variance of the rings that count; (n_rings,)."""
        return self.model.precision(self.space)

    @cached_property
    def bank(self) -> ReferenceBank:
        """As many references at every shift as are held."""
        return ReferenceBank(*self.arrays[1:3])

    @cached_property
    def adaptive(self) -> AdaptiveSearch | None:
        """Coarse and fine search, Eq. (4.6), if the space has a coarse one."""
        space, coarse = self.space, self.space.coarse
        if coarse is None:
            return None
        banks = self.bank, ReferenceBank(*self.arrays[3:])
        priors = self.model.log_prior(space), self.model.log_prior(coarse)
        return AdaptiveSearch(self.values, space, coarse, *banks, *priors)

    def read(self, cache: FeatureCache, rows: Rows, shift_px: Float64, block: slice) -> ImageFeatures:
        """Features of a block of `rows` at the rings and orders of the search."""
        return cache(rows[block], shift_px[block], self.space.n_rings, self.space.n_orders)

    def posteriors(
        self, cache: FeatureCache, rows: Rows, shift_px: Float64
    ) -> Iterator[tuple[ImageFeatures, Posterior]]:
        """Features and posteriors of `rows`, in order, a block of images at a time, Eq. (4.2).

        The search is adaptive, Eq. (4.6), if the space has a coarse one, as long as that rules out enough.

        Parameters
        ----------
        cache : FeatureCache
            The images.
        rows, shift_px : ndarrays of shape (n,) and (n, 2)
            Which images, and the shifts that they are brought into.
        """
        done = 0
        if self.adaptive is not None:
            for block in even_blocks(len(rows), IMAGES_PER_SEARCH, 1):
                mine, shifts = rows[block], shift_px[block]
                parts = even_blocks(len(mine), IMAGES_PER_BLOCK, 1)
                blocks = (self.read(cache, mine, shifts, part) for part in parts)
                found = self.adaptive.posterior(blocks, self.precision)
                if found is None:  # references so alike, or images so noisy, that it decides little
                    break
                yield found
                done = block.stop
        yield from self._exhaustive(cache, rows[done:], shift_px[done:])

    def _exhaustive(
        self, cache: FeatureCache, rows: Rows, shift_px: Float64
    ) -> Iterator[tuple[ImageFeatures, Posterior]]:
        """Whole search; where the bank does not fit it is made for a group of references at a time."""
        prior = self.model.log_prior(self.space)
        groups = row_blocks(self.n_references, self.references_at_once)
        blocks = even_blocks(len(rows), IMAGES_PER_BLOCK, 1)
        for bundle in row_blocks(len(blocks), BLOCKS_PER_BANK):
            images = [self.read(cache, rows, shift_px, block) for block in blocks[bundle]]
            found: list[list[Cells]] = [[] for _ in images]
            for group in groups:
                bank = ReferenceBank(self.bank.orders[group], self.bank.power[..., group])
                if group.stop > len(self.bank.orders):
                    bank = reference_bank(self.values[group], self.space, self.n_even)
                for cells, part in zip(found, images, strict=True):
                    cells.append(
                        find_cells(part, self.precision, bank, self.space, prior, first_reference=group.start)
                    )
            for part, cells in zip(images, found, strict=True):
                yield part, posterior_of(cells)


def searched(
    features: SharedFeatures,
    function: Callable[[PlacedRows, FeatureCache, Any], Result],
    tasks: Iterable[PlacedRows],
    search: PreparedSearch,
) -> Iterator[Result]:
    """Yield ``function(task, cache, search)`` for every task, in order, after the references are ready."""
    shared = replace(search, kept_bytes=kept_by_worker(KEPT_SHARE, BANK_BYTES, 1))
    n_bytes = sum(ALIGNED + math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shared.shapes)
    if (path := features.workspace(n_bytes)) is None:
        return features.map(function, tasks, search)
    shared = replace(shared, path=path)
    return features.map(function, tasks, shared, first=(_make_ready, shared.blocks))


def _make_ready(block: slice, cache: FeatureCache, search: PreparedSearch) -> None:
    search.make(block, search.arrays)
