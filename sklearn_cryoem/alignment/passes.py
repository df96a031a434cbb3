"""One pass of E- and M-step over rows of the set, shard by shard, Eq. (4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.workers import ordered_map, row_blocks
from sklearn_cryoem.alignment.expectation import POSTERIOR_FLOOR, Posterior, expect
from sklearn_cryoem.alignment.features import FeatureSource, ImageFeatures
from sklearn_cryoem.alignment.maximisation import Statistics, accumulate
from sklearn_cryoem.alignment.model import AlignmentModel
from sklearn_cryoem.alignment.references import reference_bank
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Float64
from sklearn_cryoem.physics.polar import polar_transform

Rows = NDArray[np.int64]

IMAGES_PER_SHARD = 64
IMAGES_PER_SUM = 256  # images whose posteriors are held before their statistics are taken
CELLS_PER_SUM = 4_000_000  # and cells: 20 bytes each


@dataclass(frozen=True)
class PassResult:
    """Statistics of a pass, and what it says of every image.

    Attributes
    ----------
    statistics : Statistics
        Sums over the rows.
    label : ndarray of shape (n_rows,), int
        Most probable class.
    log_evidence : ndarray of shape (n_rows,)
        log p(image) / p(image | noise alone).
    """

    statistics: Statistics
    label: Rows
    log_evidence: Float64


def posteriors(
    source: FeatureSource,
    rows: Rows,
    model: AlignmentModel,
    space: SearchSpace,
    *,
    n_jobs: int | None,
    floor: float = POSTERIOR_FLOOR,
) -> Iterator[tuple[ImageFeatures, Posterior]]:
    """Yield features and posterior of shard after shard of `rows`, in order, Eq. (4.2)."""
    values = polar_transform(model.references, space.grid)
    bank = reference_bank(values, space, source.n_even, n_jobs)
    prior = model.log_prior(space)
    precision = (1.0 / model.noise[: space.n_rings]).astype(np.float32)

    def shard(block: slice) -> tuple[ImageFeatures, Posterior]:
        features = source(rows[block], space.n_rings, space.n_orders)
        each = np.broadcast_to(precision, features.power.shape)
        return features, expect(features, each, bank, space, prior, floor)

    yield from ordered_map(shard, row_blocks(len(rows), IMAGES_PER_SHARD), n_jobs=n_jobs)


def run_pass(
    source: FeatureSource, rows: Rows, model: AlignmentModel, space: SearchSpace, *, n_jobs: int | None
) -> PassResult:
    """E-step and sums of the M-step over `rows`.

    Shards are searched in parallel; statistics are taken class by class, in parallel, whenever enough
    posteriors have come together. Neither depends on `n_jobs`.
    """
    total: Statistics | None = None
    labels, evidence = [], []
    waiting: list[tuple[ImageFeatures, Posterior]] = []
    n_clusters = len(model.references)
    for features, posterior in posteriors(source, rows, model, space, n_jobs=n_jobs):
        labels.append(posterior.best_row // space.n_shifts)
        evidence.append(posterior.log_evidence)
        waiting.append((features, posterior))
        enough = sum(len(f) for f, _ in waiting) >= IMAGES_PER_SUM
        if enough or sum(len(p.weight) for _, p in waiting) >= CELLS_PER_SUM:
            total = _added(total, waiting, space, n_clusters, source.n_even, n_jobs)
            waiting = []
    if waiting:
        total = _added(total, waiting, space, n_clusters, source.n_even, n_jobs)
    if total is None:
        raise ValueError("A pass needs at least one image; no rows were given.")
    return PassResult(total, np.concatenate(labels), np.concatenate(evidence))


def _added(
    total: Statistics | None,
    waiting: list[tuple[ImageFeatures, Posterior]],
    space: SearchSpace,
    n_clusters: int,
    n_even: int,
    n_jobs: int | None,
) -> Statistics:
    features = ImageFeatures.concatenate([f for f, _ in waiting])
    posterior = Posterior.concatenate([p for _, p in waiting])
    part = accumulate(features, posterior, space, n_clusters, n_even, n_jobs)
    return part if total is None else total + part
