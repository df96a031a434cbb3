"""What particles that a model has not seen are asked for: their classes, and how many classes there are."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.model_selection import KFold
from sklearn.pipeline import Pipeline, make_pipeline

from sklearn_cryoem._core.validation import check_number
from sklearn_cryoem.estimators.deep_clusterer import DeepClusterer
from sklearn_cryoem.estimators.map_aligner import MAPAligner
from sklearn_cryoem.estimators.sml_clusterer import SMLClusterer
from sklearn_cryoem.manifold.classes import label_sums, told_apart
from sklearn_cryoem.metrics import effective_count
from sklearn_cryoem.particles import ParticleStack, rescale
from sklearn_cryoem.particles.classes import steps_of
from sklearn_cryoem.particles.feature_space import to_working_box
from sklearn_cryoem.particles.frames import EQUAL_PIXEL_SIZE
from sklearn_cryoem.particles.preprocess import BACKGROUND_SHARE, Step, normalised_radius
from sklearn_cryoem.physics.masks import pixel_radius

_MEASURED_IMAGES = 500  # whose background tells the noise


def as_fitted_by(model: Any, stack: ParticleStack) -> ParticleStack:
    """Bring particles to the pixel size and box that a model was fitted in, and to the noise that it knows.

    Parameters
    ----------
    model : MAPAligner, SMLClusterer, DeepClusterer or Pipeline of them
        Fitted to images.
    stack : ParticleStack
        Particles of the same specimen, of any box and of pixels that are not larger than those of the model.

    Returns
    -------
    ParticleStack
        Resampled when read, if box or pixel size differ; then one factor for all images gives their
        background the variance of the noise of the fit. What lies beyond a smaller field is 0.

    Raises
    ------
    ValueError
        If its pixels are larger than those of the model.
    TypeError
        If the model is of another kind.
    """
    first = _first_step(model)
    box = first.class_averages_.shape[-1]
    pixel_size = first._pixel_size if isinstance(first, MAPAligner) else first._space.pixel_size
    if pixel_size is None or stack.pixel_size is None:
        return stack  # of another box it is refused where it is used
    ratio = pixel_size / stack.pixel_size
    if (
        stack.box in (box, math.isqrt(first.n_features_in_))
        and abs(ratio * box / stack.box - 1.0) < EQUAL_PIXEL_SIZE
    ):
        return stack
    if ratio < 1.0 - EQUAL_PIXEL_SIZE:
        raise ValueError(
            f"The particles have pixels of {stack.pixel_size:.4g} A, the model has {pixel_size:.4g} A: finer "
            "detail cannot be made. Fit the model to images that are downsampled to pixels of their size."
        )
    if normalised_radius(stack.images) is None:
        stack = stack.normalise()
    resampled = rescale(stack, max(pixel_size, stack.pixel_size), box)
    side = min(box, int(stack.box / max(ratio, 1.0)))  # of what is seen, in new pixels
    radius = pixel_radius(box)
    background = (radius > BACKGROUND_SHARE * side) & (radius < 0.5 * side)
    rows = np.unique(np.linspace(0, len(stack) - 1, _MEASURED_IMAGES).astype(int))
    found = resampled.read(rows)[:, background].var(axis=1).mean()
    factor = np.float32(np.sqrt(_noise_of_pixels(first, box) / found))
    return resampled._seen_through(Step(np.multiply, f"times {factor:.4g}", (factor,)))


def _first_step(model: Any) -> Any:
    """The step of a model that particles come to first."""
    first = steps_of(model)[0]
    if not isinstance(first, MAPAligner | SMLClusterer | DeepClusterer):
        raise TypeError(
            f"assign_particles got a {type(first).__name__}. Give a fitted MAPAligner, SMLClusterer, "
            "DeepClusterer, or a Pipeline of them."
        )
    return _first_step(first.first_) if isinstance(first, DeepClusterer) else first


def _noise_of_pixels(first: Any, box: int) -> float:
    """Variance of the noise in one pixel, as a model knows it from the rings of the Fourier plane."""
    share = 1.0 if isinstance(first, MAPAligner) else first._layout.information  # of images that are masked
    ring = np.rint(pixel_radius(box)).astype(int)
    noise = np.append(0.0, first.noise_variance_ / share)  # (n_rings + 1,), the mean of images being 0
    return float(noise[np.minimum(ring, len(noise) - 1)].mean())


def assign_particles(model: Any, stack: ParticleStack) -> tuple[Any, ParticleStack]:
    """Find the classes and poses of further particles, as attributes of a copy of the model.

    Parameters
    ----------
    model : MAPAligner, SMLClusterer, DeepClusterer or Pipeline of them
        Fitted to images; it stays as it is.
    stack : ParticleStack
        Further particles. Of another box or smaller pixels, they are brought to those of the model,
        `as_fitted_by`.

    Returns
    -------
    assigned : estimator
        The same classes, averages and templates; ``labels_``, ``class_sizes_``, ``poses_`` and what else
        tells of particles are those of `stack`. `class_quality`, `report` and plots take both as after a fit.
    stack : ParticleStack
        The particles as the model took them, with poses.

    Raises
    ------
    TypeError
        If the model is of another kind.
    ValueError
        If the particles do not fit, see `as_fitted_by`.

    Notes
    -----
    Costs what `transform` and `predict` of the steps cost.

    Examples
    --------
    >>> from sklearn_cryoem import MAPAligner
    >>> from sklearn_cryoem.datasets import make_particles
    >>> from sklearn_cryoem.estimators import assign_particles
    >>> stack = make_particles("ribosome", 120, box=24, snr=1.0, n_views=2, random_state=0)
    >>> aligner = MAPAligner(2, n_batches=5, random_state=0).fit(stack[:100])
    >>> assigned, new = assign_particles(aligner, stack[100:])
    >>> assigned.labels_.shape, len(aligner.labels_), new.poses
    ((20,), 100, Poses(20 particles, ...))
    """
    stack = as_fitted_by(model, stack)
    if isinstance(model, Pipeline):
        steps = []
        for step in steps_of(model):
            assigned, stack = assign_particles(step, stack)
            steps.append(assigned)
        return make_pipeline(*steps), stack
    assigned = copy.copy(model)
    if isinstance(model, MAPAligner):
        stack, found = model._find(stack, refine=True)
        assigned._store_found(stack, found)
        return assigned, stack.with_poses(assigned.poses_)
    if isinstance(model, DeepClusterer):
        stack, first_labels = model._in_first_classes(stack)
        found = model._in_own_classes(stack, first_labels, "predict")
        assigned.first_labels_, assigned.poses_ = first_labels, stack.poses
        assigned.labels_ = model._flat_labels(len(stack), found)
    else:
        assigned.labels_ = model.predict(stack)
    assigned.outlier_ = stack.outlier
    sound = slice(None) if stack.outlier is None else ~stack.outlier
    assigned.class_sizes_ = np.bincount(assigned.labels_[sound], minlength=len(model.class_averages_))
    assigned.n_effective_clusters_ = effective_count(assigned.class_sizes_)
    if isinstance(model, SMLClusterer) and assigned.class_sizes_.any():
        assigned._label_sums = model._posteriors(stack[sound], label_sums, warns=False).sum(axis=0)
        assigned.n_effective_clusters_ = told_apart(assigned._label_sums)
    if hasattr(assigned, "soft_class_sizes_"):
        assigned.soft_class_sizes_ = assigned.class_sizes_.astype(np.float64)
    return assigned, stack


def choose_classes(
    clusterer: SMLClusterer,
    stack: ParticleStack,
    classes: Sequence[int],
    dimensions: Sequence[int] = (1, 2),
    *,
    n_folds: int = 3,
) -> pd.DataFrame:
    """Compare numbers of classes and latent dimensions by the likelihood of held-out particles, Eq. (3.9).

    Parameters
    ----------
    clusterer : SMLClusterer
        With all other parameters; it is copied for each fit.
    stack : ParticleStack
        Aligned particles. Outliers do not count.
    classes : sequence of int
        Numbers of classes to try.
    dimensions : sequence of int, default=(1, 2)
        Dimensions of the manifold to try.
    n_folds : int, default=3
        Each candidate is fitted to all but one part of the particles and asked about that part, in turn.

    Returns
    -------
    DataFrame
        One row for each candidate: ``classes`` (as the grid rounds them), ``dimensions``, ``score`` (nats per
        particle), ``below_best`` (mean difference from the best candidate, particle by particle),
        ``error`` (standard error of that difference), ``effective_classes`` (mean over folds), and
        ``recommended``: the fewest classes whose difference is no more than its standard error.

    Raises
    ------
    ValueError
        If there is no candidate, or a parameter is out of range.

    Notes
    -----
    As many fits as candidates times folds. Alignment has seen all particles, which favours no candidate.
    """
    check_number("n_folds", n_folds, owner="choose_classes", minimum=2, integer=True)
    sound = stack if stack.outlier is None else stack[~stack.outlier]
    sound = to_working_box(sound, clusterer.max_resolution, n_jobs=clusterer.n_jobs)  # scores compare in one
    rows, scores = [], []
    folds = list(KFold(n_folds).split(np.arange(len(sound))))
    for n_components in dimensions:
        for n_clusters in classes:
            score, effective = np.empty(len(sound)), []
            model: Any = clone(clusterer).set_params(n_clusters=n_clusters, n_components=n_components)
            for seen, held_out in folds:
                fitted = clone(model).fit(sound[seen])
                score[held_out] = fitted.score_samples(sound[held_out])
                effective.append(fitted.n_effective_clusters_)
            found = len(fitted.class_averages_)
            rows.append((found, n_components, score.mean(), np.mean(effective)))
            scores.append(score)
    if not rows:
        raise ValueError("choose_classes got no candidate. Give numbers of classes and dimensions.")
    table = pd.DataFrame(rows, columns=["classes", "dimensions", "score", "effective_classes"])
    less = scores[int(table["score"].argmax())] - np.array(scores)  # (n_candidates, n_images), paired
    table.insert(3, "below_best", less.mean(axis=1))
    table.insert(4, "error", less.std(axis=1, ddof=1) / np.sqrt(len(sound)))
    as_good = table[table["below_best"] <= table["error"]].sort_values(["classes", "dimensions"])
    table["recommended"] = table.index == as_good.index[0]
    return table
