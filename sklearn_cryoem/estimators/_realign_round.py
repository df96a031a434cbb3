"""One round of realignment: each particle against the class of its own, in the poses near the one it has."""

from dataclasses import replace
from functools import partial

import numpy as np

from sklearn_cryoem._core.parallel import ordered_map
from sklearn_cryoem.alignment.fixed import poses_against
from sklearn_cryoem.estimators._map_settings import alignment_settings, feature_source
from sklearn_cryoem.estimators.map_aligner import MAPAligner
from sklearn_cryoem.particles import Poses

SHIFT_SIGMA = 0.5  # of max_shift: standard deviation of the shifts that are left
SHIFT_FRACTION = 0.04  # of the box


def own_references(clusterer):
    """References of the particles a clusterer was fitted to: the averages of their classes, from the others.

    Returns
    -------
    references : ndarray of shape (2 n_classes, D, D)
        Averages of odd rows, then of even rows, of those that the fit learned from.
    labels : ndarray of shape (n_images,)
        Reference of each particle: the average of its class over the rows of the other parity.
    """
    even, odd = clusterer.half_averages_
    sound = ~clusterer.outlier_
    parity = (
        np.cumsum(sound) - 1
    ) % 2  # rows are counted that are in the averages; no other is in either half
    return np.concatenate([odd, even]), clusterer.labels_ + len(odd) * parity


def realigned(realigner, clusterer, stack, labels, references):
    """The same particles in poses found round theirs, each against the reference of its class.

    Parameters
    ----------
    realigner : RealigningClusterer
        Range of the search.
    clusterer : SMLClusterer
        Fitted to particles in the frame of these.
    stack : ParticleStack
        With poses.
    labels : ndarray of shape (n_images,)
        Reference of each particle.
    references : ndarray of shape (n_references, D, D)
        CTF-corrected images in the frame of the poses.
    """
    settings, noise = _search(realigner, clusterer, stack)
    used = [number for number in np.unique(labels) if references[number].any()]
    tasks = [(np.flatnonzero(labels == number), references[number]) for number in used]
    task = partial(_realign_class, stack, settings, noise)
    unit = stack.pixel_length
    # a class without images in the other half has no reference: its particles stay where they are
    angle, shift = stack.poses.angle_rad.copy(), stack.poses.shift.copy()
    for (rows, _), found in zip(tasks, ordered_map(task, tasks, n_jobs=realigner.n_jobs), strict=True):
        angle[rows], shift[rows] = found.angle_rad, found.shift_px * unit
    return stack.with_poses(Poses(angle, shift, stack.poses.mirrored))


def _realign_class(stack, settings, noise, task):
    """Poses of the images of a class against its reference."""
    rows, reference = task
    return poses_against(
        feature_source(stack[rows], settings, keep=False),
        reference[None].astype(np.float32),
        noise,
        settings,
        class_weight=np.ones(1),
        shift_sigma_px=max(SHIFT_SIGMA * settings.max_shift_px, 0.5),
    )


def _search(realigner, clusterer, stack):
    """Settings of the local search, and the noise at its rings, from what the clusterer learned."""
    unit = stack.pixel_length
    max_shift = SHIFT_FRACTION * stack.box * unit if realigner.max_shift is None else realigner.max_shift
    aligner = MAPAligner(
        1, mask_diameter=clusterer.mask_diameter, max_shift=max_shift,
        angle_range=realigner.angle_range, max_resolution=clusterer.max_resolution,
    )  # fmt: skip
    settings = alignment_settings(aligner, stack)
    information = clusterer._space.blocks(stack).layout.information  # what the mask leaves of the noise
    noise = np.asarray(clusterer.noise_variance_, dtype=np.float64) / information  # (n_shells,)
    n_rings = min(len(noise), int(settings.k_limit))
    return replace(settings, k_limit=float(n_rings)), noise[:n_rings]
