"""RealigningClusterer: clustering and local realignment in turn, each from what the other found."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted

from sklearn_cryoem._core.memory import memory_watched
from sklearn_cryoem._core.parallel import ordered_map
from sklearn_cryoem._core.progress import progress
from sklearn_cryoem._core.validation import check_number
from sklearn_cryoem.alignment.frames import KnownPoses, to_image_frame
from sklearn_cryoem.alignment.moves import WIDTHS, Moves, moves_of
from sklearn_cryoem.alignment.search import AlignmentSettings
from sklearn_cryoem.estimators._common import (
    Data,
    GivesStacks,
    TakesImages,
    as_screened,
    as_stack,
    warn_if_not_aligned,
)
from sklearn_cryoem.estimators.map_aligner import alignment_images, search_settings
from sklearn_cryoem.estimators.sml_clusterer import SMLClusterer
from sklearn_cryoem.particles import ParticleStack, Poses
from sklearn_cryoem.particles.feature_space import ImageSpace, at_box, to_working_box
from sklearn_cryoem.particles.preprocess import normalised_radius
from sklearn_cryoem.particles.screening import normalised_like

SHIFT_FRACTION = 0.06  # of the box: longest shift along an axis
MIN_RINGS = 6  # of references, even if averages hold no signal


class Realigned(NamedTuple):
    """Poses found round given ones."""

    poses: Poses
    log_evidence: NDArray[np.float64]  # (n_images,): log p(image), NaN where a class has no reference
    angle_sigma: float  # widths of the prior, in the units of the poses
    shift_sigma: float


# An estimator of its own, and no option of SMLClusterer: the labels belong to the new poses, which `predict`
# and a grid search of an SMLClusterer would never see.
class RealigningClusterer(
    TakesImages,
    GivesStacks,
    ClusterMixin,
    TransformerMixin,
    BaseEstimator,
    auto_wrap_output_keys=None,  # a stack is no table
):
    """Improve the poses of particles by the class averages of a clusterer, and the classes by the poses.

    Classes of a manifold are purer than those that the particles were aligned with, and so are better
    references. A copy of the clusterer is fitted, every particle is compared with the average of its class in
    poses near the given one, and gets the mean pose under its posterior, Eq. (4.19). The prior says how far
    off the given poses are, and the data say how wide it is: poses that are true stand still. A round that
    does not make the particles more likely, under averages that they are no part of, is not taken. Particles
    of even row numbers meet averages of those of odd ones and the other way round: against an average that
    holds its own noise, a particle stays where it is.

    Parameters
    ----------
    clusterer : SMLClusterer or None, default=None
        Copied and fitted in each round. By default ``SMLClusterer()``.
    n_rounds : int, default=3
        Realignments, at most; the clusterer is fitted once more than that.
    angle_range : float, default=0.35
        How far from the given poses in-plane angles are searched, in radians.
    max_shift : float or None, default=None
        How far shifts are searched along each axis, in Angstrom (pixels where the pixel size is unknown). By
        default 0.06 of the box. Time goes as its square.
    n_jobs : int or None, default=None
        Classes realigned at a time. Results are the same bits for any number.
    verbose : int, default=0
        1 shows progress.

    Attributes
    ----------
    clusterer_ : SMLClusterer
        Fitted to the particles in `poses_`.
    poses_ : Poses
        Poses of the training images.
    labels_ : ndarray of shape (n_images,)
        Class of each training image.
    class_averages_ : ndarray of shape (n_classes, D, D)
        Averages in the new poses.
    class_resolution_ : ndarray of shape (n_classes,)
        Resolution of each, that of `clusterer_`. Pictures and files have what `class_quality` measures.
    class_sizes_ : ndarray of shape (n_classes,)
        Training images of each.
    angle_change_, shift_change_ : ndarray of shape (n_taken,)
        Median change of the poses in each round that was taken: radians, and Angstrom (pixels where the pixel
        size is unknown).
    angle_sigma_, shift_sigma_ : float
        How far off the given poses are, as estimated: standard deviations of the angle and of each coordinate
        of the shift, in the same units.
    n_features_in_ : int
        Number of pixels of an image.

    Notes
    -----
    A turn that all particles of a class share is no error. New particles are classified, realigned against
    the averages of all images, and classified again; so are training particles given to `predict`. Their
    `labels_` belong to `poses_`, found against half averages:
    ``clusterer_.predict(stack.with_poses(poses_))``. Poses never become mirrored.

    Examples
    --------
    >>> from sklearn_cryoem import RealigningClusterer, SMLClusterer
    >>> from sklearn_cryoem.datasets import aligned_to_truth, make_particles
    >>> stack = aligned_to_truth(make_particles("ribosome", 200, box=24, snr=1.0, random_state=0))
    >>> model = RealigningClusterer(SMLClusterer((2, 2)), n_rounds=1).fit(stack)
    >>> model.transform(stack[:5]).poses
    Poses(5 particles, ...)
    """

    def __init__(
        self,
        clusterer: BaseEstimator | None = None,
        *,
        n_rounds: int = 3,
        angle_range: float = 0.35,
        max_shift: float | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.clusterer = clusterer
        self.n_rounds = n_rounds
        self.angle_range = angle_range
        self.max_shift = max_shift
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X: Data, y: Any = None) -> Self:
        """Cluster and realign in turn.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Particles with poses, as a MAPAligner returns them; without any they are taken as aligned, and a
            stack is questioned.
        y : None
            Ignored.

        Returns
        -------
        self : RealigningClusterer
        """
        self._check_parameters()
        warn_if_not_aligned(self, X)
        given = self._screened(X)
        box, self._background_px = given.box, normalised_radius(given.images)
        given = to_working_box(given, self._template().max_resolution, n_jobs=self.n_jobs)
        changes, sound = [], ~given.outlier
        with progress(self.n_rounds, "RealigningClusterer: rounds", verbose=self.verbose) as bar:
            poses, (clusterer, found) = given.poses, self._round(given, given)
            while len(changes) < self.n_rounds and found.angle_sigma + found.shift_sigma > 0.0:
                again = self._round(given.with_poses(found.poses), given)
                if not is_likelier(again[1].log_evidence[sound], found.log_evidence[sound]):
                    break
                changes.append(median_change(poses, found.poses))
                poses, (clusterer, found) = found.poses, again
                bar.note(f"{np.degrees(changes[-1][0]):.2f} degrees, {changes[-1][1]:.3g} off the last poses")
                bar.update()
        self.clusterer_, self.poses_ = clusterer, poses
        self.angle_sigma_, self.shift_sigma_ = found.angle_sigma, found.shift_sigma
        self.angle_change_, self.shift_change_ = np.reshape(changes, (-1, 2)).T
        clusterer._space, clusterer.n_features_in_ = replace(clusterer._space, given_box=box), box**2
        for name in ("labels_", "class_averages_", "class_resolution_", "class_sizes_", "n_features_in_"):
            setattr(self, name, getattr(self.clusterer_, name))
        return self

    def _check_parameters(self):
        if self.clusterer is not None and not isinstance(self.clusterer, SMLClusterer):
            raise TypeError(
                f"The parameter 'clusterer' of {type(self).__name__} is a {type(self.clusterer).__name__}, "
                "expected an SMLClusterer or None. Align with a MAPAligner before, in a Pipeline."
            )
        check_number("n_rounds", self.n_rounds, owner=self, minimum=1, integer=True)
        limits = {"owner": self, "minimum": 0, "inclusive": False}
        check_number("angle_range", self.angle_range, maximum=0.5 * np.pi, **limits)
        check_number("max_shift", self.max_shift, allow_none=True, **limits)

    def fit_transform(self, X: Data, y: Any = None) -> ParticleStack:
        """Cluster, realign, and return the particles with their new poses.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Particles.
        y : None
            Ignored.

        Returns
        -------
        stack : ParticleStack
            With `poses_`: found against half averages, so not quite those of ``fit(X).transform(X)``;
            normalised if they were not, and with marks of outliers.
        """
        self._check_parameters()
        warn_if_not_aligned(self, X)
        stack = self._screened(X)
        return stack.with_poses(self.fit(stack).poses_)

    def _screened(self, X):
        """X with poses, looked at as the clusterer would."""
        stack = posed_for(self._template(), as_stack(X, self))
        return as_screened(stack, self._template())[0]

    def _round(self, stack, given):
        """Fit a copy of the clusterer to particles in their last poses; find moves from the given ones."""
        clusterer = clone(self._template()).fit(stack)
        return clusterer, self._realigned(clusterer, given, *references_of_other_half(clusterer))

    def _realigned(
        self,
        clusterer: SMLClusterer,
        stack: ParticleStack,
        references: NDArray[np.float32],
        labels: NDArray[np.int64],
        sigma: tuple[float, float] | None = None,
    ) -> Realigned:
        """Poses of particles found round theirs, each against the reference of its class.

        Parameters
        ----------
        clusterer : SMLClusterer
            Fitted to particles in the frame of these.
        stack : ParticleStack
            With poses.
        references : ndarray of shape (n_references, D, D)
            CTF-corrected images in the frame of the poses.
        labels : ndarray of shape (n_images,)
            Reference of each particle.
        sigma : (float, float) or None
            Widths of the prior, as `angle_sigma_` and `shift_sigma_`; None estimates them.
        """
        unit, side = stack.pixel_length, stack.box * stack.pixel_length
        reach = SHIFT_FRACTION * side if self.max_shift is None else self.max_shift
        settings = search_settings(
            stack,
            mask_diameter=clusterer.mask_diameter,
            max_shift=reach,
            angle_range=self.angle_range,
            max_resolution=clusterer.max_resolution,
            min_resolution=clusterer.min_resolution,
        )
        seen = ImageSpace.of(stack, clusterer.max_resolution, clusterer.mask_diameter, in_window=True)
        information = seen.blocks(stack).layout.information  # what the mask leaves of the noise
        noise = np.asarray(clusterer.noise_variance_, dtype=np.float64) / information  # (n_shells,)
        noise = noise[: int(settings.k_limit)]
        finest = clusterer.class_resolution_[
            np.isfinite(clusterer.class_resolution_)
        ]  # beyond, averages are 0
        k_max = max(side / finest.min() if len(finest) else 0.0, MIN_RINGS)
        widths = (WIDTHS * self.angle_range, WIDTHS * reach / unit)
        if sigma is not None:
            widths = (np.array([sigma[0]]), np.array([sigma[1] / unit]))
        # a class without images in the other half has no reference: its particles stay where they are
        used = [number for number in np.unique(labels) if references[number].any()]
        tasks = [(np.flatnonzero(labels == number), references[number]) for number in used]
        search = partial(moves_near, stack, settings, noise, min(k_max, float(len(noise))), widths)
        moves = Moves.unknown(len(stack), widths)
        with memory_watched("Realigning particles"):
            for (rows, _), part in zip(tasks, ordered_map(search, tasks, n_jobs=self.n_jobs), strict=True):
                moves.put(rows, part)
        best = (0, 0) if sigma is not None else moves.likeliest(~clusterer.outlier_)
        turn, shift = moves.angle_rad[:, *best], moves.shift_px[:, *best]
        known = KnownPoses(
            stack.poses.angle_rad, stack.poses.shift_px(stack.pixel_size), stack.poses.mirrored
        )
        final = known.followed_by(turn, to_image_frame(turn, shift))
        return Realigned(
            Poses(final.angle_rad, final.shift_px * unit, final.mirrored),
            moves.log_evidence[:, *best],
            float(widths[0][best[0]]),
            float(widths[1][best[1]] * unit),
        )

    def _template(self):
        return SMLClusterer(n_jobs=self.n_jobs) if self.clusterer is None else self.clusterer

    def transform(self, X: Data) -> ParticleStack:
        """Realign particles near the poses they have, each against the average of its class.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Particles in the frame of the training particles.

        Returns
        -------
        stack : ParticleStack
            The same particles with new poses.
        """
        check_is_fitted(self)
        warn_if_not_aligned(self, X)
        stack = posed_for(self.clusterer_, normalised_like(as_stack(X, self), self._background_px))
        labels = self.clusterer_.predict(stack)
        sigma = self.angle_sigma_, self.shift_sigma_
        small = at_box(stack, self.class_averages_.shape[-1])
        found = self._realigned(self.clusterer_, small, self.class_averages_, labels, sigma)
        return stack.with_poses(found.poses)

    def predict(self, X: Data) -> NDArray[Any]:
        """Class of each particle once it is realigned.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            As in `transform`.

        Returns
        -------
        labels : ndarray of shape (n_images,)
        """
        aligned = self.transform(X)
        return self.clusterer_.predict(aligned)

    def predict_proba(self, X: Data) -> NDArray[Any]:
        """Posterior probability of every class of each particle once it is realigned.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            As in `transform`.

        Returns
        -------
        responsibilities : ndarray of shape (n_images, n_classes)
        """
        aligned = self.transform(X)
        return self.clusterer_.predict_proba(aligned)


def references_of_other_half(clusterer: SMLClusterer) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
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
    parity = (np.cumsum(sound) - 1) % 2  # only rows that are in the averages are counted
    return np.concatenate([odd, even]), clusterer.labels_ + len(odd) * parity


def moves_near(
    stack: ParticleStack,
    settings: AlignmentSettings,
    noise: NDArray[np.float64],
    k_max: float,
    widths: tuple[NDArray[np.float64], NDArray[np.float64]],
    task: tuple[NDArray[np.int64], NDArray[np.float32]],
) -> Moves:
    """Moves of some rows, given with their reference, Eq. (4.19)."""
    rows, reference = task
    return moves_of(alignment_images(stack[rows], settings), settings, reference, noise, k_max, widths)


def is_likelier(now: NDArray[np.float64], before: NDArray[np.float64]) -> bool:
    """Whether particles are likelier than before, in even rows and in odd ones; NaN is unknown."""
    gain = now - before
    return all(np.nanmean(gain[half::2]) > 0.0 for half in (0, 1))


def posed_for(clusterer, stack):
    """The stack in the frames of a clusterer, which leave images as they are if it has no poses."""
    poses = Poses.identity(len(stack)) if stack.poses is None else stack.poses
    return stack.with_poses(poses.unmirrored() if clusterer.mirror else poses)


def median_change(old, new):
    """Median turn, in radians, and median displacement between two sets of poses."""
    turn = np.abs(np.angle(np.exp(1j * (new.angle_rad - old.angle_rad))))
    return float(np.median(turn)), float(np.median(np.hypot(*(new.shift - old.shift).T)))
