"""The table of classes: one row each, with measures, rank and a suggestion in words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import f as f_distribution
from sklearn.base import BaseEstimator

from sklearn_cryoem._core.parallel import ordered_map
from sklearn_cryoem._core.progress import progress
from sklearn_cryoem._core.validation import check_number
from sklearn_cryoem.manifold.topology import TOPOLOGIES
from sklearn_cryoem.particles import CTFTable, ParticleStack
from sklearn_cryoem.particles.classes import check_labels, check_order, steps_of
from sklearn_cryoem.particles.feature_space import at_box
from sklearn_cryoem.physics.fourier import Float64, Int, half_plane
from sklearn_cryoem.physics.masks import mask_disc
from sklearn_cryoem.quality.checks import foreign_backgrounds
from sklearn_cryoem.quality.measures import PICTORIAL, SPECTRAL, coherence, measure_class
from sklearn_cryoem.quality.suggestion import suggest_classes

Rows = list[NDArray[np.intp]]  # particles of each class


def class_quality(
    classification: BaseEstimator | ArrayLike,
    stack: ParticleStack,
    *,
    other_labels: Sequence[Any] = (),
    assignment: tuple[NDArray[Any], ...] | None = None,
    match: ArrayLike | None = None,
    mask_diameter: float | None = None,
    max_resolution: float | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> pd.DataFrame:
    """Measure every class from its particles, rank the classes, and suggest which to keep.

    The particles are read once. Averages of two halves of each class, corrected for the CTF, give its
    resolution, its signal-to-noise ratio and the information it holds, Eq. (6.1)-(6.3), whether that is
    more than noise would show that was aligned to itself, Eq. (6.4)-(6.5), and how alike its particles are,
    Eq. (6.6). The average itself shows edges, empty fields and things off centre.

    Parameters
    ----------
    classification : estimator or array_like of shape (n_images,), int
        A fitted `SMLClusterer`, `MAPAligner`, `DeepClusterer` or `RealigningClusterer`, or a Pipeline that
        ends in one; or the class of each particle from 0 (-1 for none), from any program. An estimator gives
        its labels, sizes, posteriors, latent positions and poses as well.
    stack : ParticleStack
        The particles that were classified. With labels, in the poses that the classes were made with; without
        poses they are taken as aligned.
    other_labels : sequence of array_like of shape (n_images,)
        Labels of the same particles from other starts, for `stability`; numbers need not correspond, and -1
        is a particle that a start did not label. Best are labels by a fit that did not see the particles:
        noise that was aligned once comes together again in any fit of the same images.
    assignment : tuple of ndarray, optional
        What ``classification.assign(stack)`` of an SMLClusterer returns, where it is known already: it is not
        computed again.
    match : array_like of shape (n_images,), optional
        What `particle_match` returns, for the column ``match``.
    mask_diameter : float, optional
        Diameter of the particle's mask in Angstrom (pixels where the pixel size is unknown). Images are
        masked more widely, to see what lies at its edge. By default that of the estimator, or 0.9 of the box.
    max_resolution : float, optional
        Finest detail looked at, in the same unit; by default that of the estimator, or all but Nyquist.
    n_jobs : int, optional
        Number of workers; results are the same bits for any.
    verbose : int, default=0
        1 shows progress.

    Returns
    -------
    DataFrame of n_classes rows, in the order of the classes
        ``class`` (from 1, as in files), ``size``, ``soft_size``, ``resolution`` (where the correlation of the
        half averages falls below 0.143; infinite where it starts there), ``snr`` (signal over noise in one
        image), ``information`` (bits in an average of 100 such particles), ``significance`` (energy of the
        signal in one image, over that of aligned noise), ``coherence`` (share of the power above the usual
        noise that the average explains), ``strength`` (power at low resolution over the median of particles),
        ``match`` (median of its particles), ``background`` (share of its images with more than noise in their
        background, Eq. (6.11)),
        ``contrast`` (of the particle over the rim, in standard deviations), ``edge`` (signal at the rim over
        that of the strongest ring within), ``offset`` (of the centre of the particle, over the mask's
        radius), ``extent`` (area of the particle over the median of particles), ``spikes`` (power in a single
        point, over that of a usual particle), ``lines`` (share of it in one direction), ``latent_spread``
        (over that of all particles), ``posterior``, ``stability`` (fraction of pairs that stay together,
        chance taken off, Eq. (6.7)), ``defocus`` (mean defocus less that of all, in standard errors), then
        ``score`` (0 to 1), ``rank`` (from 1, the best), ``keep`` and ``reasons``, see `suggest_classes`. What
        cannot be measured is NaN.

    Raises
    ------
    TypeError
        If the arguments are swapped, or the estimator has no labels.
    ValueError
        If an argument does not fit the stack.

    Notes
    -----
    The two halves share poses, and references when they were aligned: noise that was aligned to one
    reference agrees with itself, so resolutions are optimistic, for classes without signal most of all.
    They compare classes of one run; they are no gold-standard figure. Classes are halved in the order of the
    file. An image costs about 0.6 ms at 64 pixels on one core.

    Examples
    --------
    >>> from sklearn_cryoem.datasets import aligned_to_truth, make_particles
    >>> stack = aligned_to_truth(make_particles("ribosome", 120, box=24, snr=1.0, n_views=2, random_state=0))
    >>> table = class_quality(stack.truth["view"], stack)
    >>> table[["class", "keep"]].values.tolist()
    [[1, True], [2, True]]
    """
    check_order("class_quality", classification, stack)
    last = steps_of(classification)[-1]
    last = getattr(last, "clusterer_", last)  # of a RealigningClusterer: it knows more
    stack = as_classified(stack, classification)
    label, n_classes = labels_of(last, len(stack))
    posterior, positions = getattr(last, "class_posterior_", None), None
    if assignment is None and hasattr(last, "assign"):
        assignment = last.assign(stack)
    if assignment is not None:
        _, posterior, positions = assignment
    if mask_diameter is None:
        mask_diameter = getattr(last, "mask_diameter", None)
    if max_resolution is None:
        max_resolution = getattr(last, "max_resolution", None)
    if stack.outlier is not None:
        label = np.where(stack.outlier, -1, label)  # an outlier says nothing of its class
    side = stack.box * stack.pixel_length
    check_number("max_resolution", max_resolution, owner="class_quality", minimum=0, inclusive=False,
                 maximum=side / 2, allow_none=True)  # fmt: skip
    plane = half_plane(stack.box, None if max_resolution is None else side / max_resolution)
    radius_px, _ = mask_disc(mask_diameter, stack.box, stack.pixel_size)
    rows = [np.flatnonzero(label == number) for number in range(n_classes)]
    measured, powers = [], []
    with progress(len(rows), "class_quality", verbose=verbose) as bar:
        task = partial(measure_class, stack, plane, radius_px)
        for row, power in ordered_map(task, rows, n_jobs=n_jobs):
            measured.append(row)
            powers.append(power)
            bar.update()
    names = [*SPECTRAL, *PICTORIAL]
    table = pd.DataFrame({"class": np.arange(1, len(rows) + 1), "size": [len(some) for some in rows]})
    table["soft_size"] = np.asarray(getattr(last, "soft_class_sizes_", np.nan), dtype=np.float64)
    table[names] = [[row[name] for name in names] for row in measured]
    table.insert(table.columns.get_loc("strength"), "coherence", coherence(powers))
    for name in ("strength", "extent"):
        table[name] /= _median_of_particles(table[name].to_numpy(), table["size"].to_numpy())
    foreign = foreign_backgrounds(stack, mask_diameter, n_jobs=n_jobs)
    table["background"] = _of_classes("mean", foreign, label, n_classes)
    table["match"] = _of_classes("median", match, label, n_classes)
    table["latent_spread"] = _latent_spread(positions, getattr(last, "topology", "grid"), label, n_classes)
    table["posterior"] = _of_classes("mean", posterior, label, n_classes)
    table["stability"] = stability([check_labels(other, len(label)) for other in other_labels], rows)
    table["defocus"] = np.nan if stack.ctf is None else defocus_share(stack.ctf, label, len(rows)).deviation
    return suggest_classes(table)


def labels_of(classification: Any, n_images: int) -> tuple[Int, int]:
    """Class of each particle, and the number of classes; see `class_quality`."""
    if not isinstance(classification, BaseEstimator):
        label = check_labels(classification, n_images)
        if label.max(initial=-1) < 0:
            raise ValueError("labels names no class: there is nothing to measure. Give labels from 0.")
        return label, int(label.max()) + 1
    if not hasattr(classification, "labels_") or not hasattr(classification, "class_averages_"):
        raise TypeError(
            f"There are no classes in a {type(classification).__name__} without labels_ and class_averages_. "
            "Give a fitted MAPAligner, SMLClusterer, DeepClusterer or RealigningClusterer, or the label of "
            "each particle."
        )
    return check_labels(classification.labels_, n_images), len(classification.class_averages_)


def as_classified(stack: ParticleStack, classification: Any) -> ParticleStack:
    """The particles in the poses that a classification found, and with its marks of outliers.

    Parameters
    ----------
    stack : ParticleStack
        The particles of the fit.
    classification : estimator, Pipeline or array
        An array, and an estimator that does not align, leave the poses as they are.

    Raises
    ------
    ValueError
        If the estimator has labels of another number of particles.
    """
    steps = steps_of(classification)
    n_labels = len(getattr(steps[-1], "labels_", range(len(stack))))
    if n_labels != len(stack):
        raise ValueError(
            f"the stack has {len(stack)} particles, expected {n_labels}, those that labels_ of the "
            f"{type(steps[-1]).__name__} belong to. Pass the stack that it was fitted on; after partial_fit, "
            "the last chunk. For other particles, give class_quality the labels that predict finds for them."
        )
    poses = [step.poses_ for step in steps if getattr(step, "poses_", None) is not None]
    if poses:
        stack = stack.with_poses(poses[-1])  # a later step starts from those of an earlier one
    last = getattr(steps[-1], "clusterer_", steps[-1])
    if hasattr(last, "soft_class_sizes_") and last.mirror and stack.poses is not None:  # as it saw them
        stack = stack.with_poses(stack.poses.unmirrored())
    averages = getattr(last, "class_averages_", stack)
    if averages.ndim == 3 and averages.shape[-1] < stack.box:  # the box that the fit worked in
        stack = at_box(stack, averages.shape[-1])
    outlier = getattr(steps[-1], "outlier_", None)
    return stack if stack.outlier is not None or outlier is None else stack.with_outliers(outlier)


def _median_of_particles(values: Float64, sizes: Int) -> float:
    """Median over particles of a measure of their classes; 1 if there is none."""
    known = np.isfinite(values) & (sizes > 0)
    return float(np.median(np.repeat(values[known], sizes[known]))) if known.any() else 1.0


def _of_classes(what: str, values: ArrayLike | None, label: Int, n_classes: int) -> pd.Series:
    """Mean or median of a value of particles in each class; NaN without particles or values."""
    whole = pd.Series(np.nan if values is None else np.asarray(values), range(len(label)), dtype=np.float64)
    return whole.groupby(label).agg(what).reindex(range(n_classes))


def _latent_spread(
    positions: NDArray[Any] | None, topology: str, label: Int, n_classes: int
) -> pd.Series | float:
    """Root mean square distance of each class from its middle, over that of all particles; (n_classes,)."""
    if positions is None:
        return np.nan
    embedded = pd.DataFrame(TOPOLOGIES[topology].embed(positions))  # where distances cross a seam
    spread = np.sqrt(embedded.groupby(label).var(ddof=0).sum(axis=1)).reindex(range(n_classes))
    return spread / (np.sqrt(embedded.var(ddof=0).sum()) or 1.0)


# ---------------------------------------------------------------- what the labels of a whole run tell
class DefocusShare(NamedTuple):
    """How far classes follow the defocus."""

    share: float  # part of the variance of the defocus that lies between classes; NaN without such variance
    by_chance: float  # what that is on average where classes do not know of the defocus
    p_value: float  # probability that chance gives as much
    deviation: Float64  # (n_classes,) mean defocus less that of all, in standard errors of a random class


def stability(others: list[Int], rows: Rows) -> Float64:
    """Of the pairs of each class, the fraction that other labels hold together too, above chance, Eq. (6.7).

    Parameters
    ----------
    others : list of ndarray of shape (n_images,), int
        Other labels of the same particles; those of -1 do not count.
    rows : list of ndarray
        Particles of each class.

    Returns
    -------
    ndarray of shape (n_classes,)
        1 where all stay together, about 0 where classes are drawn by lot; NaN of a class without a pair.
    """
    if not others:
        return np.full(len(rows), np.nan)
    kept = np.full((len(others), len(rows)), np.nan)
    for start, other in enumerate(others):
        chance = _pairs_together(other)
        if chance < 1:
            kept[start] = [(_pairs_together(other[some]) - chance) / (1.0 - chance) for some in rows]
    return kept.mean(axis=0)


def _pairs_together(labels: Int) -> float:
    """Of all pairs of those that have a label, the fraction with the same one; NaN without a pair."""
    sizes = np.bincount(labels[labels >= 0]).astype(np.float64)
    n_pairs = sizes.sum() * (sizes.sum() - 1.0)
    return float((sizes * (sizes - 1.0)).sum() / n_pairs) if n_pairs > 0 else np.nan


def defocus_share(ctf: CTFTable, labels: Int, n_classes: int) -> DefocusShare:
    """Share of the variance of the defocus that lies between classes, and what chance gives, Eq. (6.8).

    Parameters
    ----------
    ctf : CTFTable
        Of the particles.
    labels : ndarray of shape (n_images,), int
        Class of each; -1 for none.
    n_classes : int
        Number of classes.

    Returns
    -------
    DefocusShare
    """
    known = labels >= 0
    label = labels[known]
    defocus = ctf.mean_defocus_angstrom[known]
    sizes = np.bincount(label, minlength=n_classes)
    n_images, n_filled = len(label), np.count_nonzero(sizes)
    nothing = DefocusShare(np.nan, np.nan, np.nan, np.full(n_classes, np.nan))
    if not 1 < n_filled < n_images:
        return nothing
    deviation = defocus - defocus.mean()
    means = np.bincount(label, weights=deviation, minlength=n_classes) / np.maximum(sizes, 1)
    total, between = (deviation**2).sum(), (sizes * means**2).sum()
    if total <= np.finfo(np.float64).eps * (defocus**2).sum():
        return nothing
    share = between / total  # Eq. (6.8)
    free = n_filled - 1, n_images - n_filled
    ratio = (share / free[0]) / max((1.0 - share) / free[1], np.finfo(np.float64).tiny)
    with np.errstate(divide="ignore", invalid="ignore"):  # a class of none, and one of all
        error = np.sqrt(total / (n_images - 1) * (1.0 / sizes - 1.0 / n_images))
        deviations = np.where((sizes > 0) & (error > 0), means / error, np.nan)
    by_chance = float(free[0] / (n_images - 1))
    return DefocusShare(float(share), by_chance, float(f_distribution.sf(ratio, *free)), deviations)
