"""One pass of E- and M-step over rows of the set, task by task, Eq. (4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import add, iadd

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.memory import PROCESS_BYTES, bytes_at_once, claim_room, kept_by_worker
from sklearn_cryoem._core.parallel import even_blocks, row_blocks
from sklearn_cryoem.alignment.adaptive import AdaptiveSearch
from sklearn_cryoem.alignment.dense import dense_statistics, dense_sums
from sklearn_cryoem.alignment.expectation import Cells, Posterior, find_cells, posterior_of
from sklearn_cryoem.alignment.features import FeatureCache, ImageFeatures, SharedFeatures
from sklearn_cryoem.alignment.frames import KnownPoses, to_image_frame, turned
from sklearn_cryoem.alignment.maximisation import Statistics, accumulate
from sklearn_cryoem.alignment.model import AlignmentModel
from sklearn_cryoem.alignment.products import ReferenceBank, reference_bank
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64

Rows = NDArray[np.int64]
PlacedRows = tuple[Rows, Float64]  # images, and the shifts (n, 2) in pixels that they are brought into

TASKS_PER_PASS = 8  # a pass has at least so many, as long as each has enough images to share its products
IMAGES_PER_TASK = (100, 1024)  # the least and the most that a task gets
IMAGES_PER_BLOCK = 64  # images whose features are made at once
IMAGES_PER_SEARCH = 512  # images of one adaptive search: they share the products of each reference
BLOCKS_PER_BANK = 8  # blocks that each group of references sees in turn, where the bank does not fit
IMAGES_PER_SUM = 512  # images whose posteriors are held before their statistics are taken
CELLS_PER_SUM = 4_000_000  # cells held before statistics are taken, at 20 bytes each
# While posteriors are broad none is set to zero, since that would drop up to half of each: at an SNR of 0.02
# fits would end at a mutual information of 0.45 instead of 0.61. Whole tables are quicker there, too.
BROAD = 0.03  # of all cells carry weight, or more
BANK_BYTES, BANK_SHARE = 400e6, 0.1  # shifted references that a worker holds, and of the memory limit at most
TABLE_BYTES, TABLE_SHARE = 100e6, 0.025  # log posteriors of one block of images, likewise
WORKER_BYTES = 60e6  # products and tables of a worker
KEPT_SHARE = 0.25  # part of a memory limit that shifted references take which workers keep


@dataclass(frozen=True)
class PreparedSearch:
    """A model made ready for the search of any number of images.

    What follows from the model is made once, in each process, when it is first needed. The sizes of bank and
    tables decide how the work is cut, and so the last digits of results: no number of workers changes them.

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
        Shifted references that an adaptive search keeps; results do not depend on it.
    """

    model: AlignmentModel
    space: SearchSpace
    n_even: int
    bank_bytes: float
    table_bytes: float
    kept_bytes: float

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

    @cached_property
    def values(self) -> Complex64:
        """References on the polar grid; (n_references, n_rings, n_angles / 2)."""
        return self.model.polar(self.space.grid)

    @cached_property
    def precision(self) -> Float32:
        """1 / noise variance of the rings that count; (n_rings,)."""
        return self.model.precision(self.space)

    @cached_property
    def bank(self) -> ReferenceBank:
        """All references at every shift."""
        return reference_bank(self.values, self.space, self.n_even)

    @cached_property
    def adaptive(self) -> AdaptiveSearch | None:
        """Coarse and fine search, Eq. (4.6), if the space has a coarse one."""
        space, coarse = self.space, self.space.coarse
        if coarse is None:
            return None
        priors = self.model.log_prior(space), self.model.log_prior(coarse)
        return AdaptiveSearch(self.values, space, coarse, *priors, self.n_even, self.kept_bytes)

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
                bank = self.bank
                if len(groups) > 1:
                    bank = reference_bank(self.values[group], self.space, self.n_even)
                for cells, part in zip(found, images, strict=True):
                    cells.append(
                        find_cells(part, self.precision, bank, self.space, prior, first_reference=group.start)
                    )
            for part, cells in zip(images, found, strict=True):
                yield part, posterior_of(cells)


@dataclass(frozen=True)
class PassResult:
    """Statistics of a pass, and what it says of every image; results of consecutive rows add up.

    Attributes
    ----------
    statistics : Statistics
        Sums over the rows.
    label : ndarray of shape (n_rows,), int
        Most probable reference; mirror images of references come after these.
    angle_rad : ndarray of shape (n_rows,)
        Angle of the best cell, counted from the known one.
    shift_px : ndarray of shape (n_rows, 2)
        Shift of the image in all, by its best cell.
    log_evidence : ndarray of shape (n_rows,)
        log p(image) / p(image | noise alone).
    n_cells : int
        Cells (reference, shift, angle) that carry weight, of all images.
    """

    statistics: Statistics
    label: Rows
    angle_rad: Float64
    shift_px: Float64
    log_evidence: Float64
    n_cells: int

    def __add__(self, other: PassResult) -> PassResult:
        return PassResult(
            self.statistics + other.statistics,
            np.concatenate([self.label, other.label]),
            np.concatenate([self.angle_rad, other.angle_rad]),
            np.concatenate([self.shift_px, other.shift_px]),
            np.concatenate([self.log_evidence, other.log_evidence]),
            self.n_cells + other.n_cells,
        )

    def share_of_cells(self, space: SearchSpace) -> float:
        """Part of all cells that carry weight."""
        n_references = (1 + space.mirror) * len(self.statistics.mass)
        return self.n_cells / (len(self.label) * n_references * space.n_shifts * space.n_angles)


def run_pass(
    features: SharedFeatures,
    rows: Rows,
    shift_px: Float64,
    model: AlignmentModel,
    space: SearchSpace,
    *,
    broad: bool = False,
) -> PassResult:
    """E-step and sums of the M-step over `rows`, by the workers of `features`.

    A task is a part of the rows, searched and summed by one worker; how rows are cut depends on no worker.

    Parameters
    ----------
    features : SharedFeatures
        The images.
    rows : ndarray of shape (n_rows,), int
        Which of them.
    shift_px : ndarray of shape (n_images, 2)
        Shifts that all images are brought into, Eq. (4.16).
    model, space : AlignmentModel, SearchSpace
        What is searched for, and where.
    broad : bool
        Whether whole tables of posteriors take the place of lists of cells, where there is room for them.
    """
    claim_room()
    search = PreparedSearch.of(features, model, space)
    function = _dense_pass if broad and search.fits_dense else _listed_pass
    result = reduce(add, features.map(function, placed_rows(rows, shift_px), search))
    result = _with_shifts_from_known(result, features.images.known, rows, shift_px)
    return replace(result, statistics=result.statistics.folded()) if space.mirror else result


def memory_bound(features: SharedFeatures, n_references: int, space: SearchSpace) -> float:
    """Bytes that passes at a resolution, and the updates between them, take at most beside the images given.

    What all share (features kept, sums and references of the caller), and what each worker has: its process,
    tables, shifted references, the images of one search, and sums.
    """
    n_orders, n_rings = space.n_orders, space.n_rings
    n_references *= 1 + space.mirror
    sums = 16.0 * n_references * n_rings * (n_orders + features.images.n_even)
    shifted = min(n_references * space.shifted_bytes, BANK_BYTES)
    searched = 2.0 * IMAGES_PER_SEARCH * 24.0 * n_rings * n_orders
    shared = features.n_bytes + 8.0 * sums + 24.0 * n_references * features.images.box**2
    process = PROCESS_BYTES if features.n_workers > 1 else 0.0
    return shared + features.n_workers * (process + WORKER_BYTES + shifted + searched + 3.0 * sums)


def placed_rows(rows: Rows, shift_px: Float64) -> list[PlacedRows]:
    """The tasks of a pass over `rows`, with the shifts that their images are brought into."""
    least, most = IMAGES_PER_TASK
    n_tasks = max(TASKS_PER_PASS * -(-len(rows) // (TASKS_PER_PASS * most)), 1)
    while n_tasks > 1 and len(rows) < n_tasks * least:
        n_tasks //= 2  # powers of two: the same load for two or four workers
    return [(some, shift_px[some]) for some in np.array_split(rows, n_tasks)]


def _with_shifts_from_known(
    result: PassResult, known: KnownPoses, rows: Rows, shift_px: Float64
) -> PassResult:
    """Count the sums of shifts from the known poses instead of where the images were taken to lie."""
    way = shift_px[rows] - known.shift_px[rows]  # (n_rows, 2)
    if not way.any():
        return result
    way = turned(known.take(rows).in_their_frame(way), result.angle_rad)
    stats = result.statistics
    added = np.column_stack([np.bincount(result.label, axis, len(stats.mass)) for axis in way.T])
    return replace(result, statistics=replace(stats, shift_sum=stats.shift_sum + added))


def _listed_pass(task: PlacedRows, cache: FeatureCache, search: PreparedSearch) -> PassResult:
    """One task of `run_pass`: as many images at a time as posteriors can be held."""
    return reduce(add, _listed_parts(*task, cache, search))


def _listed_parts(
    rows: Rows, shift_px: Float64, cache: FeatureCache, search: PreparedSearch
) -> Iterator[PassResult]:
    waiting: list[tuple[ImageFeatures, Posterior]] = []
    done = 0
    for part in search.posteriors(cache, rows, shift_px):
        waiting.append(part)
        n_waiting = sum(len(features) for features, _ in waiting)
        n_cells = sum(len(posterior.weight) for _, posterior in waiting)
        if n_waiting >= IMAGES_PER_SUM or n_cells >= CELLS_PER_SUM or done + n_waiting == len(rows):
            features = ImageFeatures.concatenate([f for f, _ in waiting])
            posterior = Posterior.concatenate([p for _, p in waiting])
            stats = accumulate(features, posterior, search.space, search.n_references, search.n_even)
            known = cache.images.known.take(rows[done : done + n_waiting], shift_px[done : done + n_waiting])
            best = posterior.best_row, posterior.best_angle, posterior.log_evidence
            yield _pass_result(stats, *best, n_cells, known, search.space)
            waiting, done = [], done + n_waiting


def _dense_pass(task: PlacedRows, cache: FeatureCache, search: PreparedSearch) -> PassResult:
    """What `_listed_pass` returns, from whole tables of posteriors, block by block."""
    rows, shift_px = task
    space, prior = search.space, search.model.log_prior(search.space)
    blocks = even_blocks(len(rows), IMAGES_PER_BLOCK, 1)
    images = (search.read(cache, rows, shift_px, block) for block in blocks)
    sums = reduce(iadd, (dense_sums(part, search.precision, search.bank, space, prior) for part in images))
    stats = dense_statistics(sums, space, search.n_even)
    known = cache.images.known.take(rows, shift_px)
    row, angle = np.concatenate(sums.row), np.concatenate(sums.angle)
    log_evidence = np.concatenate(sums.log_evidence)
    return _pass_result(stats, row, angle, log_evidence, sums.n_cells, known, space)


def _pass_result(
    stats: Statistics,
    row: Rows,
    angle: Rows,
    log_evidence: Float64,
    n_cells: int,
    known: KnownPoses,
    space: SearchSpace,
) -> PassResult:
    """Result of a pass from its sums and the best cell of every image."""
    label, shift = np.divmod(row, space.n_shifts)
    psi = space.angles_rad[angle]
    found = known.followed_by(psi, to_image_frame(psi, space.shifts_px[shift]))
    return PassResult(stats, label, psi, found.shift_px, log_evidence, n_cells)
