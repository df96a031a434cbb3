"""Reference-free alignment: mini-batch online EM, then full passes, section 4 of the mathematics."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.progress import Progress, progress
from sklearn_cryoem._core.workers import single_blas_threads
from sklearn_cryoem.alignment.features import FeatureSource
from sklearn_cryoem.alignment.maximisation import Statistics, blend
from sklearn_cryoem.alignment.model import AlignmentModel, AlignmentSettings
from sklearn_cryoem.alignment.passes import PassResult, run_pass
from sklearn_cryoem.alignment.reseed import mean_evidence, reseed
from sklearn_cryoem.alignment.residuals import log_noise_likelihood
from sklearn_cryoem.alignment.schedule import next_k_max, online_step, random_batches, rebalanced
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.alignment.start import starting_model
from sklearn_cryoem.alignment.update import update_model
from sklearn_cryoem.physics.fourier import Float64
from sklearn_cryoem.physics.polar import PolarGrid

logger = logging.getLogger(__name__)

LAST_RESEEDING = 0.8  # of the mini-batches: dead references start again only before
IMAGES_TO_COMPARE = 1000  # seen by every start before the best is chosen
FEW_CHANGES = 0.01  # of the images: labels and poses stand still
TOLERATED_STEPS = 1.5  # of the search, in angle and shift: neighbouring cells of one peak


@dataclass(frozen=True)
class FittedAlignment:
    """Outcome of `fit_alignment`.

    Attributes
    ----------
    model : AlignmentModel
        The last model.
    statistics : Statistics
        Sums of the last pass, in the frames of the model's references.
    grid : PolarGrid
        Polar grid of these sums.
    evidence : ndarray of shape (n_iter,)
        Mean log evidence of an image in each full pass, against noise alone.
    likelihood : ndarray of shape (n_iter,)
        The same and the mean log likelihood of noise alone, up to the rings in use.
    resolved : ndarray of shape (n_iter,), int
        Last ring that the best reference resolves after each full pass.
    n_iter : int
        Full passes made.
    converged : bool
        Whether the passes stopped of themselves.
    changed : float
        Fraction of the images whose reference or pose changed in the last pass.
    """

    model: AlignmentModel
    statistics: Statistics
    grid: PolarGrid
    evidence: Float64
    likelihood: Float64
    resolved: NDArray[np.int64]
    n_iter: int
    converged: bool
    changed: float


def fit_alignment(
    source: FeatureSource,
    settings: AlignmentSettings,
    rng: np.random.RandomState,
    *,
    start: AlignmentModel | None = None,
    verbose: int | bool = 0,
) -> FittedAlignment:
    """Align a set of images without references, Eq. (4.2)-(4.5), (4.7)-(4.8).

    Parameters
    ----------
    source : FeatureSource
        The images, and who works on them.
    settings : AlignmentSettings
        What to do.
    rng : RandomState
        First references and order of the batches.
    start : AlignmentModel or None
        A model to go on from: the full passes alone follow.
    verbose : int
        1 shows progress.
    """
    n_online = settings.n_batches * settings.n_init if start is None else 0
    with progress(n_online + settings.max_iter, "aligning", verbose=verbose) as bar, single_blas_threads():
        model = start or best_start(source, settings, rng, bar=bar)
        return full_passes(source, settings, model, bar=bar)


def best_start(
    source: FeatureSource,
    settings: AlignmentSettings,
    rng: np.random.RandomState,
    *,
    bar: Progress,
) -> AlignmentModel:
    """The model of the online phase that explains a random subset best, of `settings.n_init`.

    All are compared at the lowest resolution and with the mean noise that they reach.
    """
    models = []
    for _ in range(settings.n_init):
        first = starting_model(source, settings, rng)
        models.append(online_phase(source, settings, first, rng, bar=bar))
    if len(models) == 1:
        return models[0]
    rows = np.sort(rng.permutation(source.n_images)[:IMAGES_TO_COMPARE])
    k_max = min(model.k_max for model in models)
    noise = np.mean([model.noise for model in models], axis=0)
    space = settings.space(source.box, k_max)
    evidence = []
    for number, model in enumerate(models, start=1):
        same = replace(model, noise=noise, k_max=k_max)
        evidence.append(run_pass(source, rows, same, space).log_evidence.mean())
        logger.info("start %d of %d: log evidence %.3f", number, len(models), evidence[-1])
    return models[int(np.argmax(evidence))]


def online_phase(
    source: FeatureSource,
    settings: AlignmentSettings,
    model: AlignmentModel,
    rng: np.random.RandomState,
    *,
    bar: Progress,
) -> AlignmentModel:
    """Many cheap updates from mini-batches, Eq. (4.8)."""
    stats: Statistics | None = None
    batches = random_batches(source.n_images, settings.batch_size, settings.n_batches, rng)
    broad = True  # nothing is known at first
    for number, rows in enumerate(batches):
        space = settings.space(source.box, model.k_max)
        result = run_pass(source, rows, model, space, broad=broad)
        broad = result.is_broad
        batch = result.statistics
        stats = blend(stats, batch.scaled(source.n_images / len(rows)), online_step(number, len(batches)))
        model, stats = update_model(
            stats, model, space.grid, settings, source.noise_fraction, source.pool.n_workers
        )
        model = rebalanced(model, batch.mass)
        if number < LAST_RESEEDING * len(batches):
            explained = mean_evidence(result.label, result.log_evidence, settings.n_references)
            model, stats = reseed(model, stats, space.grid, settings, source.noise_fraction, rng, explained)
        model = replace(model, k_max=next_k_max(model, settings, (number + 1) / len(batches)))
        _report(bar, f"batch {number + 1}", model, source.box)
    return replace(model, balance=np.zeros_like(model.balance))


def full_passes(
    source: FeatureSource,
    settings: AlignmentSettings,
    model: AlignmentModel,
    *,
    bar: Progress,
) -> FittedAlignment:
    """Passes over all images until their likelihood, or labels and poses, stand still, Eq. (3.5)."""
    rows = np.arange(source.n_images)
    evidence: list[float] = []
    likelihood: list[float] = []
    resolved: list[int] = []
    converged, last, last_space = False, None, None
    for _ in range(settings.max_iter):
        space = settings.space(source.box, model.k_max)
        broad = last is not None and last.is_broad
        result = run_pass(source, rows, model, space, broad=broad)
        source.learn_scale(rows, result.scale)
        evidence.append(float(result.log_evidence.mean()))
        likelihood.append(evidence[-1] + _log_noise(result.statistics, model, source.noise_fraction))
        changed = 1.0 if last is None or last_space is None else _changed(last, last_space, result, space)
        model, stats = update_model(
            result.statistics, model, space.grid, settings, source.noise_fraction, source.pool.n_workers
        )
        same_rings = last_space is not None and space.n_rings == last_space.n_rings
        last, last_space = result, space
        resolved.append(int(model.resolution.max()))
        model = replace(model, k_max=next_k_max(model, settings, None))
        _report(bar, f"pass {len(evidence)}", model, source.box)
        if same_rings and (
            abs(likelihood[-1] - likelihood[-2]) <= settings.tol * abs(evidence[-1]) or changed <= FEW_CHANGES
        ):
            converged = True
            break
    n_iter = len(evidence)
    return FittedAlignment(
        model,
        stats,
        space.grid,
        np.array(evidence),
        np.array(likelihood),
        np.array(resolved),
        n_iter,
        converged,
        changed,
    )


def _log_noise(stats: Statistics, model: AlignmentModel, noise_fraction: float) -> float:
    """Mean of log p(image | noise alone): evidence is against noise, whose level changes between passes."""
    power = stats.power / np.maximum(stats.n_images, 1e-9)  # (n_rings,)
    return float(
        log_noise_likelihood(power[None].astype(np.float32), model.noise[: len(power)], noise_fraction)[0]
    )


def _changed(old: PassResult, old_space: SearchSpace, new: PassResult, space: SearchSpace) -> float:
    """Fraction of the images with another reference, or a pose more than a step of the search away."""
    turn = old_space.angles_rad[old.best_angle] - space.angles_rad[new.best_angle]
    moved = old_space.shifts_px[old.best_shift] - space.shifts_px[new.best_shift]
    same = (
        (old.label == new.label)
        & (np.abs(np.angle(np.exp(1j * turn))) <= TOLERATED_STEPS * space.angle_step_rad)
        & (np.hypot(*moved.T) <= TOLERATED_STEPS * space.shift_step_px)
    )
    return float(np.mean(~same))


def _report(bar: Progress, what: str, model: AlignmentModel, box: int) -> None:
    bar.update()
    bar.note(f"{what}: {model.k_max:.1f} of {box // 2} rings, resolved {model.resolution.max()}")
    logger.debug("%s: k_max %.1f, resolved ring %d", what, model.k_max, model.resolution.max())
