"""One pass of E- and M-step over rows of the set, shard by shard, Eq. (4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.workers import even_blocks, ordered_map, row_blocks, sum_in_order
from sklearn_cryoem.alignment.adaptive import AdaptiveSearch
from sklearn_cryoem.alignment.dense import DenseSums, dense_statistics, dense_sums, fits_dense
from sklearn_cryoem.alignment.expectation import (
    POSTERIOR_FLOOR,
    Cells,
    Posterior,
    find_cells,
    posterior_of,
)
from sklearn_cryoem.alignment.features import FeatureSource, ImageFeatures
from sklearn_cryoem.alignment.maximisation import Statistics, accumulate
from sklearn_cryoem.alignment.model import AlignmentModel
from sklearn_cryoem.alignment.references import ReferenceBank, polar_references, reference_bank
from sklearn_cryoem.alignment.residuals import group_sums, image_scale, image_terms
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64

Rows = NDArray[np.int64]
_Shard = tuple[ImageFeatures, Float32]  # and the precision of each image

IMAGES_PER_SHARD = 64
IMAGES_PER_SUM = 512  # images whose posteriors are held before their statistics are taken
BANK_BYTES = 400e6  # shifted references held at once
SHARDS_PER_BANK = 8  # where they do not all fit: images that each group of classes sees in turn
CELLS_PER_SUM = 4_000_000  # and cells: 20 bytes each
BROAD = 0.03  # of all cells: where more carry weight, whole tables are quicker than lists of cells


@dataclass(frozen=True)
class PassResult:
    """Statistics of a pass, and what it says of every image.

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

    @property
    def is_broad(self) -> bool:
        """Whether posteriors are so broad that the next pass had better make whole tables of them."""
        return self.occupancy > BROAD


def posteriors(
    source: FeatureSource,
    rows: Rows,
    model: AlignmentModel,
    space: SearchSpace,
    *,
    n_jobs: int | None,
    floor: float = POSTERIOR_FLOOR,
) -> Iterator[tuple[ImageFeatures, Posterior]]:
    """Yield features and posterior of shard after shard of `rows`, in order, Eq. (4.2).

    The search is adaptive, Eq. (4.6), if `space` has a coarse one. Otherwise, shifted references that do not
    fit in `BANK_BYTES` are made for a group of classes at a time, which then sees a bundle of shards.
    """
    for features, posterior in _blocks(source, rows, model, space, n_jobs, floor):
        if len(features) <= IMAGES_PER_SHARD:
            yield features, posterior
            continue
        shards = even_blocks(len(features), IMAGES_PER_SHARD)
        for block, part in zip(shards, posterior.split(shards), strict=True):
            yield features.take(block, space.n_rings, space.n_orders), part


def _blocks(
    source: FeatureSource,
    rows: Rows,
    model: AlignmentModel,
    space: SearchSpace,
    n_jobs: int | None,
    floor: float,
) -> Iterator[tuple[ImageFeatures, Posterior]]:
    if space.coarse is None:
        yield from _exhaustive(source, rows, model, space, n_jobs, floor)
        return
    priors = model.log_prior(space), model.log_prior(space.coarse)
    search = AdaptiveSearch(model.references, space, *priors, source.n_even, n_jobs)

    def read(block: slice) -> _Shard:
        return _read(source, rows[block], model, space)

    shards = even_blocks(len(rows), IMAGES_PER_SHARD)
    for bundle in row_blocks(len(shards), max(1, IMAGES_PER_SUM // IMAGES_PER_SHARD)):
        found = search.posterior(read, shards[bundle], floor)
        if found is None:  # references so alike, or images so noisy, that the coarse search decides little
            yield from _exhaustive(source, rows[shards[bundle][0].start :], model, space, n_jobs, floor)
            return
        yield found


def _read(source: FeatureSource, rows: Rows, model: AlignmentModel, space: SearchSpace) -> _Shard:
    features = source(rows, space.n_rings, space.n_orders)
    return features, model.precision(source.group[rows], space.n_rings)


def _exhaustive(
    source: FeatureSource,
    rows: Rows,
    model: AlignmentModel,
    space: SearchSpace,
    n_jobs: int | None,
    floor: float,
) -> Iterator[tuple[ImageFeatures, Posterior]]:
    values = polar_references(model.references, space.grid, n_jobs)  # (n_clusters, n_rings, n_angles / 2)
    groups = row_blocks(len(values), classes_at_once(space))
    prior = model.log_prior(space)

    def read(block: slice) -> _Shard:
        return _read(source, rows[block], model, space)

    def bank_of(group: slice) -> ReferenceBank:
        return reference_bank(values[group], space, source.n_even, n_jobs)

    def search(images: _Shard, bank: ReferenceBank, first: int) -> Cells:
        return find_cells(*images, bank, space, prior, floor, first)

    shards = even_blocks(len(rows), IMAGES_PER_SHARD)
    if len(groups) == 1:
        whole = bank_of(groups[0])

        def shard(block: slice) -> tuple[ImageFeatures, Posterior]:
            images = read(block)
            return images[0], posterior_of([search(images, whole, 0)], floor)

        yield from ordered_map(shard, shards, n_jobs=n_jobs)
        return
    for bundle in row_blocks(len(shards), SHARDS_PER_BANK):
        images = list(ordered_map(read, shards[bundle], n_jobs=n_jobs))
        found: list[list[Cells]] = [[] for _ in images]
        for group in groups:
            find = partial(search, bank=bank_of(group), first=group.start)
            for cells, part in zip(found, ordered_map(find, images, n_jobs=n_jobs), strict=True):
                cells.append(part)
        yield from ((f, posterior_of(cells, floor)) for (f, _), cells in zip(images, found, strict=True))


def classes_at_once(space: SearchSpace) -> int:
    """How many classes, shifted to every shift of `space`, fit in `BANK_BYTES`; at least 1."""
    return max(1, int(BANK_BYTES // (8 * space.n_orders * space.n_rings * space.n_shifts)))


def run_pass(
    source: FeatureSource,
    rows: Rows,
    model: AlignmentModel,
    space: SearchSpace,
    *,
    n_jobs: int | None,
    broad: bool = False,
) -> PassResult:
    """E-step and sums of the M-step over `rows`.

    Shards are searched in parallel; statistics are taken class by class, in parallel, whenever enough
    posteriors have come together. Neither depends on `n_jobs`.

    With `broad`, which the last pass tells, whole tables of posteriors take the place of lists of cells where
    no term of a single image is needed: the same sums, but for the posteriors below the floor.
    """
    each_image = source.n_groups > 0 or source.scale is not None  # are its own terms needed?
    if broad and not each_image and len(rows) and _fits(space, len(model.references)):
        return _dense_pass(source, rows, model, space, n_jobs)
    total: Statistics | None = None
    cells, evidence, scales = [], [], []
    waiting: list[tuple[ImageFeatures, Posterior]] = []
    values = polar_references(model.references, space.grid, n_jobs) if each_image else None
    done = n_cells = 0
    for features, posterior in _blocks(source, rows, model, space, n_jobs, POSTERIOR_FLOOR):
        cells.append(np.stack([posterior.best_row, posterior.best_angle]))
        evidence.append(posterior.log_evidence)
        n_cells += len(posterior.weight)
        waiting.append((features, posterior))
        seen = sum(len(f) for f, _ in waiting)
        full = seen >= IMAGES_PER_SUM or sum(len(p.weight) for _, p in waiting) >= CELLS_PER_SUM
        if full or done + seen == len(rows):
            part, scale = _sums(waiting, rows[done : done + seen], source, model, space, values, n_jobs)
            total = part if total is None else total + part
            scales.append(scale)
            waiting, done = [], done + seen
    if total is None:
        raise ValueError("A pass needs at least one image; no rows were given.")
    found = None if source.scale is None else np.concatenate(scales)
    row, angle = np.concatenate(cells, axis=1)
    label, shift = np.divmod(row, space.n_shifts)
    occupancy = _occupancy(n_cells, len(rows), space, len(model.references))
    return PassResult(total, label, shift, angle, np.concatenate(evidence), found, occupancy)


def _fits(space: SearchSpace, n_clusters: int) -> bool:
    return n_clusters <= classes_at_once(space) and fits_dense(space, n_clusters, IMAGES_PER_SHARD)


def _occupancy(n_cells: int, n_images: int, space: SearchSpace, n_clusters: int) -> float:
    return n_cells / (float(n_images) * n_clusters * space.n_shifts * space.n_angles)


def _dense_pass(
    source: FeatureSource, rows: Rows, model: AlignmentModel, space: SearchSpace, n_jobs: int | None
) -> PassResult:
    """What `run_pass` returns, from whole tables of posteriors, shard by shard."""
    values = polar_references(model.references, space.grid, n_jobs)
    bank = reference_bank(values, space, source.n_even, n_jobs)
    prior = model.log_prior(space)

    def sums_of(block: slice) -> DenseSums:
        return dense_sums(*_read(source, rows[block], model, space), bank, space, prior)

    sums = sum_in_order(sums_of, even_blocks(len(rows), IMAGES_PER_SHARD), n_jobs=n_jobs)
    statistics = dense_statistics(sums, space, source.n_even, n_jobs)
    label, shift = np.divmod(sums.row, space.n_shifts)
    occupancy = _occupancy(sums.n_cells, len(rows), space, len(values))
    return PassResult(statistics, label, shift, sums.angle, sums.log_evidence, occupancy=occupancy)


def _sums(
    waiting: list[tuple[ImageFeatures, Posterior]],
    rows: Rows,
    source: FeatureSource,
    model: AlignmentModel,
    space: SearchSpace,
    values: Complex64 | None,
    n_jobs: int | None,
) -> tuple[Statistics, Float64]:
    """Statistics and new scales of the images that wait; of each by itself if `values` are given."""
    features = ImageFeatures.concatenate([f for f, _ in waiting])
    posterior = Posterior.concatenate([p for _, p in waiting])
    n_clusters = len(model.references)
    if values is None:
        stats = accumulate(features, posterior, space, n_clusters, source.n_even, n_jobs)
        return stats, np.ones(len(rows))
    group = source.group[rows]
    terms = image_terms(features, posterior, space, values, n_jobs)
    used = np.ones(len(rows)) if source.scale is None else source.scale[rows]
    scale = image_scale(terms, model.precision(group, space.n_rings), used)  # Eq. (4.13)
    if source.n_groups:
        features = features.weighted(model.relative_precision(group, space.n_rings))  # Eq. (4.12)
    stats = accumulate(features, posterior, space, n_clusters, source.n_even, n_jobs)
    if source.n_groups:
        residual, images = group_sums(terms, group, source.n_groups)
        stats = replace(stats, group_residual=residual, group_images=images)
    return stats, scale
