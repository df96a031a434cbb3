"""One pass of E- and M-step over rows of the set, task by task, Eq. (4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.memory import claim_room
from sklearn_cryoem._core.parallel import even_blocks
from sklearn_cryoem.alignment import plan as planned
from sklearn_cryoem.alignment.dense import dense_statistics, dense_sums
from sklearn_cryoem.alignment.expectation import Posterior
from sklearn_cryoem.alignment.features import FeatureSource, ImageFeatures
from sklearn_cryoem.alignment.known import to_image_frame, turned
from sklearn_cryoem.alignment.maximisation import Statistics, accumulate
from sklearn_cryoem.alignment.model import AlignmentModel
from sklearn_cryoem.alignment.plan import Plan
from sklearn_cryoem.alignment.residuals import group_sums, image_scale, image_terms
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Float64

Rows = NDArray[np.int64]
PlacedRows = tuple[Rows, Float64]  # images, and the shifts (n, 2) in pixels that they are brought into

TASKS_PER_PASS = 8  # at least, as long as each has enough images to share its products,
IMAGES_PER_TASK = (100, 1024)  # and the least and the most that a task gets
IMAGES_PER_SUM = 512  # images whose posteriors are held before their statistics are taken
CELLS_PER_SUM = 4_000_000  # and cells: 20 bytes each
BROAD = 0.03  # of all cells: where more carry weight, whole tables are quicker than lists of cells


@dataclass(frozen=True)
class PassResult:
    """Statistics of a pass, and what it says of every image; results of consecutive rows add up.

    Attributes
    ----------
    statistics : Statistics
        Sums over the rows.
    label : ndarray of shape (n_rows,), int
        Most probable reference.
    best_shift, best_angle : ndarrays of shape (n_rows,), int
        Shift and angle of the search of its best cell.
    log_evidence : ndarray of shape (n_rows,)
        log p(image) / p(image | noise alone).
    scale : ndarray of shape (n_rows,) or None
        New intensity of every image, Eq. (4.13), where the source has scales.
    occupancy : float
        Part of all cells (class, shift, angle) that carry weight, on average over the images.
    """

    statistics: Statistics
    label: Rows
    best_shift: Rows
    best_angle: Rows
    log_evidence: Float64
    scale: Float64 | None = None
    occupancy: float = 0.0

    def __add__(self, other: PassResult) -> PassResult:
        n, m = len(self.label), len(other.label)
        scale = None
        if self.scale is not None and other.scale is not None:
            scale = np.concatenate([self.scale, other.scale])
        return PassResult(
            self.statistics + other.statistics,
            np.concatenate([self.label, other.label]),
            np.concatenate([self.best_shift, other.best_shift]),
            np.concatenate([self.best_angle, other.best_angle]),
            np.concatenate([self.log_evidence, other.log_evidence]),
            scale,
            (n * self.occupancy + m * other.occupancy) / (n + m),
        )

    def lies_px(self, source: FeatureSource, rows: Rows, space: SearchSpace) -> Float64:
        """Shift of the best cell of each image, added to that which it was brought into; (n_rows, 2)."""
        angle = space.angles_rad[self.best_angle]
        moved = to_image_frame(angle, space.shifts_px[self.best_shift])
        return source.poses(rows).followed_by(angle, moved).shift_px

    @property
    def is_broad(self) -> bool:
        """Whether posteriors are so broad that the next pass had better make whole tables of them."""
        return self.occupancy > BROAD


def run_pass(
    source: FeatureSource, rows: Rows, model: AlignmentModel, space: SearchSpace, *, broad: bool = False
) -> PassResult:
    """E-step and sums of the M-step over `rows`, by the workers of `source`.

    A task is a block of rows, searched and summed by one worker, which sends back nothing but sums and a few
    numbers an image. How rows are cut does not depend on the workers.

    With `broad`, which the last pass tells, whole tables of posteriors take the place of lists of cells where
    no term of a single image is needed: the same sums, but for the posteriors below the floor.

    Raises
    ------
    ValueError
        If there are no rows.
    """
    if not len(rows):
        raise ValueError("A pass needs at least one image; no rows were given.")
    claim_room()
    plan = source.pool.share(Plan.of(source, model, space, broad))
    result = reduce(add, source.pool.map(pass_over, placed_rows(source, rows), source.shared, plan))
    source.pool.discard(plan)
    return _from_first_shifts(result, source, rows, space)


def _from_first_shifts(
    result: PassResult, source: FeatureSource, rows: Rows, space: SearchSpace
) -> PassResult:
    """Count the sums of shifts from the known poses instead of where the images were taken to lie."""
    way = source.shift_px[rows] - source.known.shift_px[rows]  # (n_rows, 2)
    if not way.any():
        return result
    known = source.known.take(rows)
    way = turned(known.in_their_frame(way), space.angles_rad[result.best_angle])
    stats = result.statistics
    added = np.column_stack([np.bincount(result.label, axis, len(stats.mass)) for axis in way.T])
    return replace(result, statistics=replace(stats, shift_sum=stats.shift_sum + added))


def task_rows(rows: Rows) -> list[Rows]:
    """`rows` cut into the tasks of a pass."""
    least, most = IMAGES_PER_TASK
    n_tasks = max(TASKS_PER_PASS * -(-len(rows) // (TASKS_PER_PASS * most)), 1)
    while n_tasks > 1 and len(rows) < n_tasks * least:
        n_tasks //= 2  # powers of two: the same load for two or four workers
    return np.array_split(rows, n_tasks)


def placed_rows(source: FeatureSource, rows: Rows) -> list[PlacedRows]:
    """The tasks of a pass over `rows`, with the shifts that their images are brought into."""
    return [(some, source.shift_px[some]) for some in task_rows(rows)]


def pass_over(task: PlacedRows, source: FeatureSource, plan: Plan) -> PassResult:
    """One task of `run_pass`: search some rows and sum over them."""
    rows = task[0]
    source.place(*task)
    source.scale = plan.scale
    each_image = source.n_groups > 0 or source.scale is not None  # are its own terms needed?
    if plan.broad and not each_image and plan.fits_dense:
        return _dense_pass(source, rows, plan)
    return reduce(add, _parts(source, rows, plan, each_image))


def _parts(source: FeatureSource, rows: Rows, plan: Plan, each_image: bool) -> Iterator[PassResult]:
    """Results of the rows, as many at a time as posteriors can be held."""
    waiting: list[tuple[ImageFeatures, Posterior]] = []
    done = 0
    for features, posterior in plan.posteriors(source, rows):
        waiting.append((features, posterior))
        seen = sum(len(f) for f, _ in waiting)
        full = seen >= IMAGES_PER_SUM or sum(len(p.weight) for _, p in waiting) >= CELLS_PER_SUM
        if full or done + seen == len(rows):
            yield _sums(waiting, rows[done : done + seen], source, plan, each_image)
            waiting, done = [], done + seen


def _sums(
    waiting: list[tuple[ImageFeatures, Posterior]],
    rows: Rows,
    source: FeatureSource,
    plan: Plan,
    each_image: bool,
) -> PassResult:
    """Statistics and new scales of the images that wait; terms of each by itself if `each_image`."""
    features = ImageFeatures.concatenate([f for f, _ in waiting])
    posterior = Posterior.concatenate([p for _, p in waiting])
    model, space, scale = plan.model, plan.space, None
    if each_image:
        group = source.group[rows]
        terms = image_terms(features, posterior, space, plan.values)
        if source.scale is not None:
            scale = image_scale(
                terms, model.precision(group, space.n_rings), source.scale[rows]
            )  # Eq. (4.13)
        if source.n_groups:
            features = features.weighted(model.relative_precision(group, space.n_rings))  # Eq. (4.12)
    stats = accumulate(features, posterior, space, plan.n_references, source.n_even)
    if source.n_groups:
        residual, images = group_sums(terms, group, source.n_groups)
        stats = replace(stats, group_residual=residual, group_images=images)
    label, shift = np.divmod(posterior.best_row, space.n_shifts)
    occupancy = _occupancy(len(posterior.weight), len(rows), plan)
    return PassResult(stats, label, shift, posterior.best_angle, posterior.log_evidence, scale, occupancy)


def _dense_pass(source: FeatureSource, rows: Rows, plan: Plan) -> PassResult:
    """What `pass_over` returns, from whole tables of posteriors, shard by shard."""
    prior = plan.model.log_prior(plan.space)
    shards = even_blocks(len(rows), planned.IMAGES_PER_SHARD, 1)
    sums = dense_sums(*plan.read(source, rows[shards[0]]), plan.bank, plan.space, prior)
    for block in shards[1:]:
        sums += dense_sums(*plan.read(source, rows[block]), plan.bank, plan.space, prior)
    statistics = dense_statistics(sums, plan.space, source.n_even)
    label, shift = np.divmod(sums.row, plan.space.n_shifts)
    occupancy = _occupancy(sums.n_cells, len(rows), plan)
    return PassResult(statistics, label, shift, sums.angle, sums.log_evidence, occupancy=occupancy)


def _occupancy(n_cells: int, n_images: int, plan: Plan) -> float:
    space = plan.space
    return n_cells / (float(n_images) * plan.n_references * space.n_shifts * space.n_angles)
