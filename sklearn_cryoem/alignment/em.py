"""Reference-free alignment: mini-batch online EM, then full passes, section 4 of the mathematics."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from sklearn_cryoem._core.progress import Progress, progress
from sklearn_cryoem.alignment.features import FeatureSource
from sklearn_cryoem.alignment.maximisation import Statistics, blend
from sklearn_cryoem.alignment.model import AlignmentModel, AlignmentSettings
from sklearn_cryoem.alignment.passes import run_pass
from sklearn_cryoem.alignment.schedule import next_k_max, online_step, random_batches, rebalanced
from sklearn_cryoem.alignment.start import starting_model
from sklearn_cryoem.alignment.update import update_model
from sklearn_cryoem.physics.fourier import Float64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FittedAlignment:
    """Outcome of `fit_alignment`.

    Attributes
    ----------
    model : AlignmentModel
        The last model.
    evidence : ndarray of shape (n_iter,)
        Mean log evidence of an image in each full pass, against noise alone.
    n_iter : int
        Full passes made.
    converged : bool
        Whether the last pass gained less than the tolerance.
    changed : float
        Fraction of the images whose class changed in the last pass.
    mass : ndarray of shape (n_clusters,)
        Posterior mass of each class in the last pass.
    """

    model: AlignmentModel
    evidence: Float64
    n_iter: int
    converged: bool
    changed: float
    mass: Float64


def fit_alignment(
    source: FeatureSource,
    settings: AlignmentSettings,
    rng: np.random.RandomState,
    *,
    n_jobs: int | None = None,
    verbose: int | bool = 0,
) -> FittedAlignment:
    """Align a set of images without references, Eq. (4.2)-(4.5), (4.7)-(4.8).

    Parameters
    ----------
    source : FeatureSource
        The images.
    settings : AlignmentSettings
        What to do.
    rng : RandomState
        First references and order of the batches.
    n_jobs : int or None
        Workers; the result does not depend on it.
    verbose : int
        1 shows progress.
    """
    model = starting_model(source, settings, rng)
    with progress(settings.n_batches + settings.max_iter, "aligning", verbose=verbose) as bar:
        model = online_phase(source, settings, model, rng, n_jobs=n_jobs, bar=bar)
        return full_passes(source, settings, model, n_jobs=n_jobs, bar=bar)


def online_phase(
    source: FeatureSource,
    settings: AlignmentSettings,
    model: AlignmentModel,
    rng: np.random.RandomState,
    *,
    n_jobs: int | None,
    bar: Progress,
) -> AlignmentModel:
    """Many cheap updates from mini-batches, Eq. (4.8)."""
    stats: Statistics | None = None
    batches = random_batches(source.n_images, settings.batch_size, settings.n_batches, rng)
    for number, rows in enumerate(batches):
        space = settings.space(source.box, model.k_max)
        result = run_pass(source, rows, model, space, n_jobs=n_jobs)
        batch = result.statistics
        source.learn_scale(rows, result.scale)
        stats = blend(stats, batch.scaled(source.n_images / len(rows)), online_step(number, len(batches)))
        model, stats = update_model(stats, model, space.grid, settings, source.noise_fraction)
        model = rebalanced(model, batch.mass)
        model = replace(model, k_max=next_k_max(model, settings, (number + 1) / len(batches)))
        _report(bar, f"batch {number + 1}", model, source.box)
    return replace(model, balance=np.zeros_like(model.balance))


def full_passes(
    source: FeatureSource,
    settings: AlignmentSettings,
    model: AlignmentModel,
    *,
    n_jobs: int | None,
    bar: Progress,
) -> FittedAlignment:
    """Passes over all images until the evidence of an unchanged resolution stops growing, Eq. (3.5)."""
    rows = np.arange(source.n_images)
    evidence: list[float] = []
    labels, changed, converged, mass = None, 1.0, False, np.zeros(settings.n_clusters)
    last_rings = 0
    for _ in range(settings.max_iter):
        space = settings.space(source.box, model.k_max)
        result = run_pass(source, rows, model, space, n_jobs=n_jobs)
        source.learn_scale(rows, result.scale)
        evidence.append(float(result.log_evidence.mean()))
        changed = 1.0 if labels is None else float(np.mean(labels != result.label))
        labels, mass = result.label, result.statistics.mass
        model, _ = update_model(result.statistics, model, space.grid, settings, source.noise_fraction)
        same_rings, last_rings = space.n_rings == last_rings, space.n_rings
        model = replace(model, k_max=next_k_max(model, settings, None))
        _report(bar, f"pass {len(evidence)}", model, source.box)
        if same_rings and abs(evidence[-1] - evidence[-2]) <= settings.tol * abs(evidence[-1]):
            converged = True
            break
    return FittedAlignment(model, np.array(evidence), len(evidence), converged, changed, mass)


def _report(bar: Progress, what: str, model: AlignmentModel, box: int) -> None:
    bar.update()
    bar.note(f"{what}: {model.k_max:.1f} of {box // 2} rings, resolved {model.resolution.max()}")
    logger.debug("%s: k_max %.1f, resolved ring %d", what, model.k_max, model.resolution.max())
