"""How well each particle matches its class, and which particles a selection should leave out by that."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator

from sklearn_cryoem._core.parallel import ordered_map
from sklearn_cryoem.manifold.classes import wiener_ridge
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.classes import check_labels, check_order, steps_of
from sklearn_cryoem.particles.features import BLOCK_BYTES, FeatureBlocks
from sklearn_cryoem.physics.fourier import Float32, Float64, HalfPlane, half_plane, images_from_features
from sklearn_cryoem.quality.checks import foreign_backgrounds
from sklearn_cryoem.quality.measures import class_sums
from sklearn_cryoem.quality.suggestion import suggest_classes
from sklearn_cryoem.quality.table import as_classified, labels_of

# What images of nothing but noise reach by alignment to a class: 3.0 to 4.4 on simulated sessions, where 1 %
# of the particles in good classes lie below. Where the noise is stronger more do, hence the second limit:
# of a cleaned session of 4,000 the worst 0.5 % were 6 junk and 11 good, the next 1.5 % 2 junk and 49 good.
ALIGNED_MATCH, MAX_UNLIKE = 4.0, 0.01
# Of a simulated session with 15 % junk, classes of junk matched by 3 to 4 in the median, others by 5 to 12.
WEAK = "particles match their class by"
FOREIGN, UNLIKE = "ice, carbon or others in its background", "matches its class no better than aligned noise"
WEAK_SHARE, SECOND_SHARE = 0.5, 0.35  # of the usual match: of a class, of a particle with another class


def particle_match(
    classification: BaseEstimator | ArrayLike,
    stack: ParticleStack,
    *,
    members: ArrayLike | None = None,
    n_jobs: int | None = None,
) -> NDArray[np.float64]:
    """Match of each particle with the average of the other particles of its class, Eq. (6.9).

    Parameters
    ----------
    classification : estimator or array_like of shape (n_images,), int
        As `class_quality` takes it.
    stack : ParticleStack
        The particles that were classified.
    members : array_like of shape (n_images,), bool, optional
        Particles that averages are made of; by default all of a class. Others are compared with them.
    n_jobs : int, optional
        Number of workers; results are the same bits for any.

    Returns
    -------
    match : ndarray of shape (n_images,)
        In standard deviations of noise: an image of noise has 0 on average in a given pose, and up to about
        `ALIGNED_MATCH` where it was turned and shifted to match best. 0 for outliers, for particles without
        a class, for the only one of a class, and for images whose background holds ice, carbon or others,
        Eq. (6.11), which match other such images well.

    Notes
    -----
    The particles are read once. An image costs about 0.9 ms at 64 pixels on one core. The match also falls
    with the contrast and the defocus of an image, so no single limit holds for all data.

    Examples
    --------
    >>> from sklearn_cryoem.datasets import aligned_to_truth, make_particles
    >>> stack = aligned_to_truth(make_particles("ribosome", 120, box=24, snr=1.0, n_views=2, random_state=0))
    >>> bool(particle_match(stack.truth["view"], stack).min() > 4)
    True
    """
    check_order("particle_match", classification, stack)
    last = steps_of(classification)[-1]
    stack = as_classified(stack, classification)
    label, n_classes = labels_of(getattr(last, "clusterer_", last), len(stack))
    if stack.outlier is not None:
        label = np.where(stack.outlier, -1, label)
    limit = getattr(last, "max_resolution", None)
    plane = half_plane(stack.box, None if limit is None else stack.box * stack.pixel_length / limit)
    rows = [np.flatnonzero(label == number) for number in range(n_classes)]
    match, sound = np.zeros(len(stack)), np.ones(len(stack), dtype=bool)
    if members is not None:
        sound = np.asarray(members, dtype=bool)
    found = ordered_map(partial(_of_class, stack, plane, sound), rows, n_jobs=n_jobs)
    for some, values in zip(rows, found, strict=True):
        match[some] = values
    foreign = foreign_backgrounds(stack, getattr(last, "mask_diameter", None), n_jobs=n_jobs)
    return np.where(foreign, 0.0, match)


def average_classes(labels: ArrayLike, stack: ParticleStack, *, n_jobs: int | None = None) -> Float32:
    """Averages of classes from the particles as they are, in their whole box: fits may work in a smaller one.

    Parameters
    ----------
    labels : array_like of shape (n_images,), int
        Class of each particle from 0; those of -1, and outliers, do not count.
    stack : ParticleStack
        The particles in the poses of the classes; without poses they are taken as aligned.
    n_jobs : int, optional
        Number of workers; results are the same bits for any.

    Returns
    -------
    averages : ndarray of shape (n_classes, D, D)
        Corrected for the CTF and Wiener filtered, Eq. (3.6), by the signal that two halves of each class
        share, Eq. (6.1)-(6.2); 0 for classes of fewer than two particles.

    Notes
    -----
    The particles are read once. An image costs about 0.6 ms at 64 pixels on one core.

    Examples
    --------
    >>> from sklearn_cryoem.datasets import aligned_to_truth, make_particles
    >>> stack = aligned_to_truth(make_particles("ribosome", 60, box=24, snr=1.0, n_views=2, random_state=0))
    >>> average_classes(stack.truth["view"], stack).shape
    (2, 24, 24)
    """
    label = check_labels(labels, len(stack))
    if stack.outlier is not None:
        label = np.where(stack.outlier, -1, label)
    rows = [np.flatnonzero(label == number) for number in range(int(label.max(initial=-1)) + 1)]
    average = partial(_average, stack, half_plane(stack.box))
    return np.stack(list(ordered_map(average, rows, n_jobs=n_jobs)))


def _average(stack: ParticleStack, plane: HalfPlane, rows: NDArray[np.intp]) -> Float32:
    if len(rows) < 2:
        return np.zeros(stack.shape[1:], dtype=np.float32)
    sums = class_sums(FeatureBlocks(stack[rows], plane, None, cache_bytes=0))
    return images_from_features(sums.average(None).astype(np.float32).view(np.complex64), plane)


def _of_class(
    stack: ParticleStack, plane: HalfPlane, members: NDArray[np.bool_], rows: NDArray[Any]
) -> Float64:
    """Match of the particles of one class with its members; (n_rows,)."""
    is_member = members[rows]
    if np.count_nonzero(is_member) < 2:
        return np.zeros(len(rows))
    blocks = FeatureBlocks(stack[rows], plane, None, cache_bytes=BLOCK_BYTES)
    layout = blocks.layout
    sums = class_sums(
        blocks if is_member.all() else FeatureBlocks(stack[rows[is_member]], plane, None, cache_bytes=0)
    )
    ridge = wiener_ridge(sums.signal, sums.noise)[layout.shell]  # (P,)
    precision = layout.information / sums.noise[layout.shell]  # (P,)
    cross, gram = sums.cross.sum(axis=0), sums.gram.sum(axis=0)  # (P,)
    match = []
    for index in range(len(blocks)):
        block = blocks.load(index, layout.n_shells)
        own = block.norm[:, layout.norm_index].astype(np.float64)
        part = is_member[blocks.rows_of(index), None]  # what the average owes to the particle itself
        average = (cross - part * block.data) / (gram - part * own + ridge)  # (n, P), of the others
        along = np.einsum("ip,ip->i", block.data, precision * average)
        energy = ((precision * own) * average**2).sum(axis=1)
        match.append(along / np.sqrt(np.maximum(energy, np.finfo(np.float64).tiny)))  # Eq. (6.9)
    return np.concatenate(match)


def unlike_their_class(match: ArrayLike) -> NDArray[np.bool_]:
    """Tell the particles that a selection of classes should leave out: they match no better than noise.

    Parameters
    ----------
    match : array_like of shape (n_images,)
        From `particle_match`, of the particles of the classes to keep.

    Returns
    -------
    unlike : ndarray of shape (n_images,), bool
        Those with no match at all, and of the others those below `ALIGNED_MATCH`, but at most the worst
        `MAX_UNLIKE`: in strong noise many good particles match no better.
    """
    values = np.asarray(match, dtype=np.float64)
    some = values[values > 0]
    limit = min(ALIGNED_MATCH, float(np.quantile(some, MAX_UNLIKE))) if len(some) else 0.0
    return np.asarray((values <= 0) | (values < limit))


def reasons_to_leave(
    classification: BaseEstimator,
    stack: ParticleStack,
    table: pd.DataFrame,
    match: ArrayLike,
    *,
    lenient: bool = False,
    last: bool = False,
) -> NDArray[np.object_]:
    """Say of each particle why it should leave the set, as `clean` does round by round.

    Two kinds of classes are given up: those that `suggest_classes` rejects by what they show, and those whose
    particles match them half as well as usual, junk that was aligned to junk. A class that is rejected for
    its size or significance alone stays if its particles match it: a rare view. Each particle of a class that
    is given up is compared with the most probable one of the others, and stays if it matches that. An image
    that has more than noise in its background leaves in any case.

    Parameters
    ----------
    classification : SMLClusterer
        Fitted.
    stack : ParticleStack
        The particles that were classified.
    table : DataFrame
        From `class_quality`.
    match : array_like of shape (n_images,)
        From `particle_match`.
    lenient : bool, default=False
        Whether classes a little beyond the limit of the centre stay, as in a first round, whose classes hold
        junk of all kinds: they are judged again.
    last : bool, default=False
        Whether those leave as well that `unlike_their_class` tells. In every round anew, many would.

    Returns
    -------
    reasons : ndarray of shape (n_images,), object
        Text; empty for particles that stay.
    """
    label, value = np.asarray(classification.labels_), np.array(match, dtype=np.float64)
    keep = table["keep"].to_numpy(dtype=bool)[label]
    usual = float(np.median(value[keep])) if keep.any() else 0.0
    whole = pd.Series(value).groupby(label).median().reindex(range(len(table)), fill_value=0.0).to_numpy()
    strong = whole >= max(WEAK_SHARE * usual, min(ALIGNED_MATCH, 0.8 * usual))  # (n_classes,)
    shown = suggest_classes(table, min_size=2, min_significance=0.0, max_offset=0.2 if lenient else 0.15)
    stays = np.flatnonzero(shown["keep"].to_numpy() & strong)
    text = np.where(
        strong,
        shown["reasons"].to_numpy(dtype=object),
        [f"{WEAK} {x:.2g}, usual is {usual:.2g}" for x in whole],
    )
    given_up = ~np.isin(label, stays)
    if given_up.any() and len(stays):
        probable = classification.predict_proba(stack[given_up])[:, stays].argmax(axis=1)
        other = label.copy()
        other[given_up] = stays[probable]
        moved = copy.copy(classification)  # an estimator, for its resolution and its poses
        moved.labels_ = other
        value = particle_match(moved, stack, members=~given_up, n_jobs=moved.n_jobs)
        given_up &= value < SECOND_SHARE * usual
    reasons = np.where(given_up, text[label], "").astype(object)
    reasons[~given_up & (value == 0)] = FOREIGN
    if last:
        stays = np.flatnonzero(reasons == "")
        reasons[stays[unlike_their_class(value[stays])]] = UNLIKE
    if stack.outlier is not None:
        reasons[stack.outlier] = "outlier"
    return reasons
