"""One pass of E- and M-step over rows of the set, task by task, Eq. (4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from operator import iadd

import numpy as np

from sklearn_cryoem._core.memory import PROCESS_BYTES, claim_room
from sklearn_cryoem._core.parallel import even_blocks
from sklearn_cryoem.alignment.dense import dense_statistics, dense_sums
from sklearn_cryoem.alignment.expectation import Posterior
from sklearn_cryoem.alignment.features import FeatureCache, ImageFeatures, SharedFeatures
from sklearn_cryoem.alignment.frames import KnownPoses, to_image_frame, turned
from sklearn_cryoem.alignment.maximisation import Statistics, accumulate
from sklearn_cryoem.alignment.model import AlignmentModel
from sklearn_cryoem.alignment.prepared import (
    BANK_BYTES,
    IMAGES_PER_BLOCK,
    IMAGES_PER_SEARCH,
    PlacedRows,
    PreparedSearch,
    Rows,
    searched,
)
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Float64

TASKS_PER_PASS = 8  # a pass has at least so many, as long as each has enough images to share its products
IMAGES_PER_TASK = (100, 1024)  # the least and the most that a task gets
IMAGES_PER_SUM = 512  # images whose posteriors are held before their statistics are taken
CELLS_PER_SUM = 4_000_000  # cells held before statistics are taken, at 20 bytes each
# While posteriors are broad none is set to zero, since that would drop up to half of each: at an SNR of 0.02
# fits would end at a mutual information of 0.45 instead of 0.61. Whole tables are quicker there, too.
BROAD = 0.03  # of all cells carry weight, or more
WORKER_BYTES = 60e6  # products and tables of a worker


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

    def __iadd__(self, other: PassResult) -> PassResult:
        statistics = self.statistics
        statistics += other.statistics  # arrays change in place
        return PassResult(
            statistics,
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
    result = reduce(iadd, searched(features, function, placed_rows(rows, shift_px), search))
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
    if features.workspace(0) is not None:
        shared, shifted = shared + shifted, 0.0
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
    return reduce(iadd, _listed_parts(*task, cache, search))


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
