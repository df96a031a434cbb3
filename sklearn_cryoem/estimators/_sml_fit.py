"""The steps of SMLClusterer.fit: measure the data, choose a start, run EM, summarise the classes."""

import logging
from functools import partial
from typing import NamedTuple

import numpy as np

from sklearn_cryoem._core.memory import format_bytes, log_estimate
from sklearn_cryoem._core.parallel import row_blocks
from sklearn_cryoem._core.progress import progress
from sklearn_cryoem.estimators._checkpoint import FitTask
from sklearn_cryoem.estimators._sml_memory import memory_needed
from sklearn_cryoem.estimators._sml_noise import pooling
from sklearn_cryoem.estimators._sml_parameters import folds_of
from sklearn_cryoem.estimators._sml_space import ImageSpace
from sklearn_cryoem.manifold.classes import class_statistics, information_share
from sklearn_cryoem.manifold.coupling import turn_of
from sklearn_cryoem.manifold.crossfit import cross_fit
from sklearn_cryoem.manifold.fit import StoppedEarly, fit_manifold
from sklearn_cryoem.manifold.prior import measure_moments, power_of, prior_precision, telling_shells
from sklearn_cryoem.manifold.schedule import Schedule, cross_fitted_iterations
from sklearn_cryoem.manifold.start import pca_start, random_start
from sklearn_cryoem.manifold.state import FitState
from sklearn_cryoem.metrics import effective_count, fourier_ring_correlation, resolution_from_frc

logger = logging.getLogger(__name__)

FRC_THRESHOLD = 0.143
FRC_PIXELS = 2**17  # transformed at once: transforms are ten times larger than the averages


def learn(estimator, blocks, basis, space, rng, keeper):
    """Fit the manifold with the parameters of `estimator`; return a `ManifoldFit` and the `Moments`."""
    n_jobs = estimator.n_jobs
    moments = measure_moments(blocks, n_jobs=n_jobs)  # they say how fine cross-fitted EM will be
    power = power_of(moments, blocks.layout)
    plan = _plan(estimator, blocks, basis, space, power)
    needed = memory_needed(
        blocks, basis, n_jobs, plan.n_folds, plan.crossed.n_shells, np.dtype(space.dtype).itemsize
    )
    log_estimate(logger, "SMLClusterer.fit", needed)
    share = getattr(blocks, "share_kept", 1.0)
    if share < 1.0:
        logger.info(
            "SMLClusterer.fit keeps the features of %.0f %% of the images in memory and prepares the others "
            "in every pass again, which may take longer than all the rest. cache_folder=... keeps all of "
            "them in files: %s.",
            100.0 * share,
            format_bytes(blocks.feature_bytes),
        )
    task = FitTask(estimator, estimator.max_iter + 1, "iteration", blocks)
    total, verbose = estimator.max_iter, estimator.verbose
    with progress(total, "SMLClusterer", verbose=verbose, on_step=task.step) as bar:
        try:
            fit = _fit(estimator, blocks, basis, space, power, plan, rng, keeper, bar)
        except StoppedEarly as early:
            fit = early.fit
    task.end()
    return fit, moments


class _Plan(NamedTuple):
    """Iterations of a fit."""

    crossed: Schedule
    """Of cross-fitted EM."""
    n_cross: int
    """Iterations of it."""
    n_folds: int
    """1 where there are none."""
    ordinary: Schedule
    """Of the EM that follows."""


def _plan(estimator, blocks, basis, space, power):
    n_first, n_shells = space.first_shells(estimator.initial_resolution), blocks.layout.n_shells
    is_images, max_iter = isinstance(space, ImageSpace), estimator.max_iter
    temperature = estimator.initial_temperature if is_images else 1.0
    n_folds = folds_of(estimator, blocks.n_samples, len(basis.nodes)) if is_images else 1
    n_cross = cross_fitted_iterations(max_iter) if n_folds > 1 else 0
    if not n_cross:
        whole = Schedule.of(n_first, n_shells, temperature, max_iter)
        return _Plan(whole, 0, 1, whole)
    n_telling = telling_shells(power, blocks.layout, blocks.n_samples / len(basis.nodes))
    crossed = Schedule.cross_fitted(n_first, max(n_first, n_telling), temperature, max_iter)
    rest = Schedule(crossed.n_shells, n_shells, 1.0, int(crossed.n_shells < n_shells))
    return _Plan(crossed, n_cross, n_folds, rest)


def _fit(estimator, blocks, basis, space, power, plan, rng, keeper, bar):
    """Start, cross-fitted EM, EM: whatever `keeper` does not have already."""
    common = {
        "noise": pooling(estimator.noise),
        "dtype": space.dtype,
        "n_jobs": estimator.n_jobs,
        "keeper": keeper,
        "after_iteration": partial(_tell, bar, space),
    }
    alpha = prior_precision(estimator.alpha, basis, power)
    found, start, trace = keeper.load(), None, None
    if found is not None:
        bar.update(len(found.trace.objective))
    else:
        start = _start(estimator, blocks, basis, power, plan.crossed.first_shells, rng)
    if plan.n_cross and not isinstance(found, FitState):
        start, trace = cross_fit(
            blocks,
            basis,
            start,
            power.mean,
            alpha,
            plan.crossed,
            plan.n_cross,
            n_folds=plan.n_folds,
            turn=turn_of(power, blocks.layout),
            found=found,
            **common,
        )
        found = None
    return fit_manifold(
        blocks,
        basis,
        start,
        alpha,
        plan.ordinary,
        max_iter=estimator.max_iter - plan.n_cross,
        tol=estimator.tol,
        trace=trace,
        found=found,
        **common,
    )


def _start(estimator, blocks, basis, power, n_first, rng):
    if estimator.init == "pca":
        return pca_start(blocks, basis, power, n_first, rng=rng, n_jobs=estimator.n_jobs)
    return random_start(basis, power, blocks.layout.truncate(n_first), rng=rng)


def _tell(bar, space, trace):
    unit = "px" if getattr(space, "pixel_size", None) is None else "A"
    detail = space.resolution(trace.n_shells[-1])
    limit = f", details to {detail:.3g} {unit}" if np.isfinite(detail) else ""  # vectors have none
    bar.note(f"{trace.objective[-1]:.4f} nats per image{limit}")
    bar.update()


def manifold_attributes(manifold, space):
    """Fitted attributes that follow from the parameters alone."""
    return {
        "weights_": manifold.weights,
        "noise_variance_": manifold.noise_variance,
        "alpha_": manifold.alpha,
        "cluster_centers_": space.to_data(manifold.templates),
    }


def summarise(estimator, blocks, manifold, space):
    """Fitted attributes that need one more pass over the data: labels, averages, sizes, resolutions."""
    statistics = class_statistics(
        blocks,
        manifold.matcher(blocks.layout, dtype=space.dtype),
        hard=estimator.class_average == "hard",
        n_jobs=estimator.n_jobs,
    )
    share = 1.0  # vectors are taken at their word
    if isinstance(space, ImageSpace):
        share = information_share(blocks, manifold, statistics, dtype=space.dtype, n_jobs=estimator.n_jobs)
    return {
        **class_attributes(statistics, blocks.layout, manifold, space),
        "information_share_": share,
    }


def class_attributes(statistics, layout, manifold, space):
    """Fitted attributes that follow from sums over the classes."""
    noise = manifold.noise_variance / layout.information  # (S,)
    ridge = manifold.alpha * noise
    halves = [layout.confine(statistics.averages(ridge, layout, half)) for half in (0, 1)]
    halves = np.stack([space.to_data(half) for half in halves])
    shown = statistics.signal_ridge(noise, layout) if isinstance(space, ImageSpace) else ridge
    sizes = np.bincount(statistics.labels, minlength=len(manifold.basis.nodes))
    return {
        "labels_": statistics.labels,
        "class_averages_": space.to_data(layout.confine(statistics.averages(shown, layout))),
        "half_averages_": halves,
        "class_resolution_": class_resolution(halves, space),
        "class_sizes_": sizes,
        "soft_class_sizes_": statistics.node_mass,
        "n_effective_clusters_": effective_count(sizes),
    }


def class_resolution(halves, space):
    """Resolution of each class from its half averages (2, n_nodes, D, D), Eq. (3.6)."""
    if not isinstance(space, ImageSpace):
        return np.full(halves.shape[1], np.nan)
    box, pixel_size = space.plane.box, space.pixel_size or 1.0
    n_rings = int(space.plane.shell[-1]) + 1
    rows = row_blocks(halves.shape[1], max(1, FRC_PIXELS // box**2))
    correlation = np.concatenate(
        [fourier_ring_correlation(*halves[:, some])[:, :n_rings] for some in rows]
    )  # (n_nodes, n_rings)
    return np.asarray(resolution_from_frc(correlation, pixel_size, box, FRC_THRESHOLD))
