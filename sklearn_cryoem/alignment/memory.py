"""What an alignment holds in memory at a resolution, in bytes, and saying so before that is searched.

K references, M orders, R rings, T shifts, A angles, n images that a worker searches at once, E even orders of
the CTF. Every worker holds the references on the polar grid (4 K R A), those that it keeps at every shift
(8 M R T each, as many as there is room for), those of the coarse search, features and products of its images
(8 n R (M + E) and 16 n R M, twice while they are joined), and sums of the M-step (16 K R (M + E), three times
while they are added). The caller holds sums and references. On a cluster references exist packed and not, and
thrice on their way, and sums that wait in a worker and in the caller. Where posteriors are broad, as they are
at first, and whole tables of them fit (64 images, 4 K T A bytes each), these and the sums at every shift
(8 K M R T, twice) take more.
"""

from __future__ import annotations

import logging

import numpy as np

from sklearn_cryoem._core.memory import PROCESS_BYTES, SENT_PROCESS_BYTES, log_estimate
from sklearn_cryoem._core.parallel import WINDOW, DaskPool, ProcessPool
from sklearn_cryoem.alignment.dense import CLASSES_AT_ONCE
from sklearn_cryoem.alignment.expectation import COLUMNS_PER_PRODUCT
from sklearn_cryoem.alignment.features import FeatureSource
from sklearn_cryoem.alignment.model import AlignmentSettings
from sklearn_cryoem.alignment.passes import task_rows
from sklearn_cryoem.alignment.plan import IMAGES_PER_SEARCH, IMAGES_PER_SHARD, SHARDS_PER_BANK, Room
from sklearn_cryoem.alignment.search import SearchSpace

LIBRARY_BYTES = 15e6  # modules loaded when they are first used, and small arrays
COLUMN_BYTES = 60.0  # of an angle of each of the columns of a product: its orders, waves and sums
SUMS_AT_ONCE = 3  # of the M-step: two that are added, and what they give
SUMS_OF_CALLER = 6  # those of the last update, as they were and scaled, and those of the new one
COPIES_OF_REFERENCES = 6  # the model before and after, and those between
BROAD_UNTIL = 1.4  # times the first resolution: posteriors are taken to be broad
NOTABLE = 1.1  # an estimate so many times the last one is worth saying


def memory_needed(
    source: FeatureSource, settings: AlignmentSettings, k_max: float, *, broad: bool = False
) -> float:
    """Bytes that a pass and its update need at a resolution, beyond the images given.

    Parameters
    ----------
    source : FeatureSource
        The images, and who works on them.
    settings : AlignmentSettings
        References, shifts and angles.
    k_max : float
        Resolution in Fourier pixels.
    broad : bool
        Whether posteriors are known to be broad at that resolution.
    """
    space = settings.space
    last = min(BROAD_UNTIL * settings.k_start, k_max)
    rings = [*np.arange(np.floor(settings.k_start), last), last]  # tables may fit only where these are few
    early = [_bytes_at(source, settings, space(source.box, float(ring)), True) for ring in rings]
    return max([_bytes_at(source, settings, space(source.box, k_max), broad), *early])


def _bytes_at(source: FeatureSource, settings: AlignmentSettings, space: SearchSpace, broad: bool) -> float:
    pool, own = source.pool, 0.0
    statistics = _statistics_bytes(source, settings, space)
    references = 4.0 * settings.n_references * source.box**2
    if isinstance(pool, ProcessPool):
        own = PROCESS_BYTES * pool.n_workers
    elif isinstance(pool, DaskPool):
        own = SENT_PROCESS_BYTES * pool.n_workers + (3 + 2 * pool.n_workers) * references
        own += 2 * WINDOW * pool.n_workers * statistics
    caller = SUMS_OF_CALLER * statistics + COPIES_OF_REFERENCES * references
    shares = 0.5 * (1 + pool.n_workers) if isinstance(pool, DaskPool) else 1.0  # more with every pass
    kept = shares * source.kept_bytes
    workers = pool.n_workers * _worker_bytes(source, settings, space, broad)
    return LIBRARY_BYTES + own + kept + caller + workers


def announce(
    source: FeatureSource,
    settings: AlignmentSettings,
    k_max: float,
    logger: logging.Logger,
    *,
    said: float = 0.0,
    broad: bool = False,
) -> float:
    """Log what a resolution needs, if that is notably more than was said; return what now is."""
    needed = memory_needed(source, settings, k_max, broad=broad)
    if needed < NOTABLE * said:
        return said
    log_estimate(logger, f"MAPAligner, up to {k_max:.0f} of {settings.k_limit:.0f} Fourier pixels,", needed)
    return needed


def _statistics_bytes(source: FeatureSource, settings: AlignmentSettings, space: SearchSpace) -> float:
    return 16.0 * settings.n_references * space.n_rings * (space.n_orders + source.n_even)


def _worker_bytes(
    source: FeatureSource, settings: AlignmentSettings, space: SearchSpace, broad: bool
) -> float:
    """What one worker holds in a search, and of the sums that follow."""
    n_references, room = settings.n_references, Room.of(source.pool.n_workers)
    n_rows = max(len(rows) for rows in task_rows(np.arange(source.n_images)))
    values = 4.0 * n_references * space.n_rings * space.grid.n_angles
    columns = COLUMN_BYTES * COLUMNS_PER_PRODUCT * space.n_angles / 4
    features = 8.0 * space.n_rings * (space.n_orders + source.n_even)
    if space.coarse is None:
        bank = 1.0 * space.shifted_bytes * min(n_references, room.classes_at_once(space))
        images = min(n_rows, IMAGES_PER_SHARD * SHARDS_PER_BANK) * 2 * features
    else:
        bank = min(n_references * space.shifted_bytes, room.kept)
        bank += n_references * space.coarse.shifted_bytes
        products = 16.0 * space.n_rings * space.n_orders
        images = min(n_rows, IMAGES_PER_SEARCH) * 2 * (features + products)
    read = IMAGES_PER_SHARD * 4.0 * (4 * source.box**2 + 8 * space.n_rings * space.grid.n_angles)
    dense = 0.0
    if broad and room.fits_dense(space, n_references):
        whole = n_references * space.shifted_bytes
        tables = 4.0 * IMAGES_PER_SHARD * n_references * space.n_shifts * space.n_angles
        undone = 12.0 * CLASSES_AT_ONCE * space.n_shifts * space.n_rings * space.grid.n_angles
        dense = 2 * whole + max(whole + tables, undone)
    sums = SUMS_AT_ONCE * _statistics_bytes(source, settings, space)
    return values + columns + read + max(bank + images, dense) + sums
