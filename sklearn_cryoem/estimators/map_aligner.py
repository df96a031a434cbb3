"""MAPAligner: reference-free alignment of particle images and their first classes."""

from __future__ import annotations

import logging
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state

from sklearn_cryoem._core.memory import memory_watched
from sklearn_cryoem._core.parallel import task_pool
from sklearn_cryoem.alignment.em import fit_alignment
from sklearn_cryoem.alignment.poses import ImagePoses, find_poses, find_scales
from sklearn_cryoem.estimators._checkpoint import (
    FRAMES,
    FitTask,
    TakesCallbacks,
    checkpoint_of,
    warn_and_keep,
    with_callbacks,
)
from sklearn_cryoem.estimators._inputs import (
    WRAPPED,
    Data,
    GivesStacks,
    Path,
    TakesImages,
    as_screened,
    as_stack,
    warn_if_mask_too_tight,
    without_outliers,
)
from sklearn_cryoem.estimators._map_results import store_results, unite_classes
from sklearn_cryoem.estimators._map_settings import (
    alignment_settings,
    check_parameters,
    feature_source,
    group_codes,
    starting_point,
)
from sklearn_cryoem.estimators._map_use import AlignsParticles
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.preprocess import normalised_radius

logger = logging.getLogger(__name__)


class MAPAligner(
    TakesImages, GivesStacks, AlignsParticles, TakesCallbacks, ClusterMixin, TransformerMixin, BaseEstimator
):
    """Align particle images without a reference, and sort them into classes, by maximum a posteriori.

    Every image is a reference of one of `n_clusters` classes, turned, shifted and multiplied by its own CTF,
    plus noise, Eq. (4.1). Its class, shift and in-plane angle are never fixed but weighed by their posterior.
    Many cheap updates on random mini-batches come first (online EM), then a few passes over all images, while
    the resolution grows as far as the references themselves allow, Eq. (4.2)-(4.5), (4.7)-(4.8).

    Parameters
    ----------
    n_clusters : int, default=50
        Number of classes.
    n_references : int or None, default=None
        Number of references that EM works with, at least `n_clusters`. In the end they are united to
        `n_clusters` classes, each time the two that the likelihood can spare most easily, Eq. (4.9)-(4.10):
        far more accurate than as many references as classes, at a cost that grows with their number. By
        default 2.5 to a class, as long as each gets 40 images.
    align_mirrored : bool, default=False
        Whether references may be mirrored when they are united and brought into one frame: the same view from
        opposite sides gives mirror images, which then share classes. `poses_.mirrored` tells the images that
        are mirrored.
    mask_diameter : float or None, default=None
        Diameter of the soft mask of the references in Angstrom (pixels where the pixel size is unknown). It
        should hold the particle with little to spare. By default 0.9 of the box.
    max_shift : float or None, default=None
        Longest shift, in Angstrom (pixels where the pixel size is unknown). By default 0.2 of the box. A
        search covers 0.08 of the box at most and follows the image from visit to visit, Eq. (4.16), so that a
        long one costs no more.
    shift_step : float or None, default=None
        Distance of the shifts searched, in the same unit. By default a third of the finest period in use, but
        not below one pixel. Poses are refined below the step in the end.
    angle_step : float or None, default=None
        Largest distance of the in-plane angles searched, in radians. By default what the resolution in use
        asks for.
    angle_range : float or None, default=None
        How far from the poses of the stack in-plane angles are searched, in radians: for a second run, or for
        poses of another program. `max_shift` then counts from the shifts of the stack, masks follow them, the
        first references are averages at the known poses, and all keep to the frame of these: none is moved
        or mirrored when they are united. `transform` and the like search all angles for particles without
        poses. By default all angles are searched, and poses that the stack may have are not used.
    initial_resolution : float, default=40.0
        Resolution to begin with, in Angstrom (pixels where the pixel size is unknown); at least six Fourier
        pixels are used.
    max_resolution : float or None, default=None
        Finest detail ever used, in the same unit; by default all but Nyquist.
    tau_fudge : float, default=2.0
        Factor on the prior variance of the references, Eq. (4.2). Larger keeps more detail and more noise.
    class_prior : {"uniform", "estimated", "balanced"}, default="uniform"
        Prior weight of the classes, Eq. (4.14). Estimated weights let large classes swallow small ones, down
        to few classes where the images are noisy; balanced weights favour small classes, which splits common
        views rather than lose rare ones. `n_effective_clusters_` tells the outcome.
    noise : {"shell", "group"}, default="shell"
        One noise variance for each radial shell, or for each noise group of the stack (its micrographs or
        optics groups) and shell, Eq. (4.12). Groups of few images are drawn to the spectrum of all, and new
        particles of other groups get that.
    image_scale : bool, default=False
        Whether to estimate how strong the signal of every image is, Eq. (4.13): for ice whose thickness
        differs. Grey values that are not normalised scale the noise as well; they are normalised in any case.
    n_init : int, default=1
        Number of starts. Each goes through all mini-batches; the one whose references explain a random
        subset best goes on.
    n_batches : int, default=200
        Mini-batches before the full passes; 0 gives plain EM.
    batch_size : int or None, default=None
        Images in a mini-batch. By default 4 for each reference, at least 200.
    max_iter : int, default=5
        Passes over all images, at most.
    tol : float, default=0.01
        The passes stop when the log evidence gains less than this fraction at an unchanged resolution, or
        when fewer than 1 % of the images change their reference, or their pose by more than a step.
    adaptive_fraction : float, default=0.999
        A coarse search rules out the classes beyond those that hold this part of its posterior, Eq. (4.6);
        the others are searched in full. 1 searches all: slower, and hardly ever different.
    checkpoint : path-like or None, default=None
        Folder where the state of a running fit is kept, every half minute and after every pass: the same fit,
        known by its parameters, data and seed, goes on from there after it was killed, and ends with the same
        bits. The file goes when the fit has ended. Needs `random_state` to be an int.
    warm_start : bool, default=False
        Whether another `fit` goes on from the references of the last one, with full passes alone. With
        `angle_range` the poses of the stack have to be in the frame of its classes, as `poses_` are.
    n_jobs : int or None, default=None
        Number of workers. Results are the same bits for any number.
    random_state : int, RandomState instance or None, default=None
        Seed of the first references and of the order of the batches.
    verbose : int, default=0
        1 shows progress.

    Attributes
    ----------
    poses_ : Poses
        In-plane angle and shift of every training image, and whether it is mirrored.
    labels_ : ndarray of shape (n_images,)
        Class of every training image.
    class_posterior_ : ndarray of shape (n_images,)
        Posterior of that class.
    log_evidence_ : ndarray of shape (n_images,)
        log p(image) / p(image | noise alone): low for images that no class explains.
    class_averages_ : ndarray of shape (n_clusters, D, D)
        CTF-corrected, regularised and masked averages, in one frame: similar views are turned alike, and each
        has its centre of mass in the centre, Eq. (4.17). The largest class comes first.
    references_ : ndarray of shape (n_references, D, D)
        References of EM, each centred.
    reference_class_ : ndarray of shape (n_references,)
        Class of each reference.
    cluster_weights_ : ndarray of shape (n_clusters,)
        Part of the posterior mass that each class holds.
    class_resolution_ : ndarray of shape (n_clusters,)
        Resolution up to which the signal of each class exceeds its noise; infinite where it never does.
    resolution_ : float
        Best of the references, in Angstrom (pixels where the pixel size is unknown).
    outlier_ : ndarray of shape (n_images,), bool
        Training images that are far out (see `ParticleStack.screen`): they have labels and poses, and took
        no part in the fit.
    noise_variance_ : ndarray of shape (n_rings,)
        Noise variance per pixel at 1, 2, .. Fourier pixels, of all images.
    noise_groups_ : ndarray of shape (n_groups,) or None
        Numbers of the noise groups with ``noise="group"``.
    group_noise_variance_ : ndarray of shape (n_groups, n_rings) or None
        Noise variance of each.
    image_scale_ : ndarray of shape (n_images,) or None
        Intensity of every training image in units of the references with ``image_scale=True``.
    shift_sigma_ : float
        Estimated standard deviation of each coordinate of the shifts, in the unit of the poses.
    pass_resolution_ : ndarray of shape (n_iter,)
        Resolution of the best reference after each full pass.
    log_posterior_ : ndarray of shape (n_iter,)
        Mean log evidence of an image in each full pass. It is measured against noise alone, and compares only
        between passes of the same resolution.
    n_iter_ : int
        Full passes made.
    converged_ : bool
        Whether the passes came to rest: `tol` was reached or, at `max_iter`, most images kept their class and
        pose in the last pass. Where it is false, `fit` has given a warning.
    n_effective_clusters_ : float
        exp(entropy of the class sizes).
    n_features_in_ : int
        Number of pixels of an image.

    Notes
    -----
    The work for an image grows with n_clusters * shifts * angles; images are read block by block, and their
    polar transforms are kept only while they fit in 256 MB. A few full passes are the usual end of online EM
    and no cause for a warning; one is given if many labels still changed in the last.

    Examples
    --------
    >>> from sklearn_cryoem import MAPAligner
    >>> from sklearn_cryoem.datasets import make_particles
    >>> stack = make_particles("ribosome", 100, box=24, snr=1.0, n_views=3, max_shift=20.0, random_state=0)
    >>> aligner = MAPAligner(3, n_batches=5, max_iter=10, random_state=0)
    >>> aligned = aligner.fit_transform(stack)
    >>> aligned.poses
    Poses(100 particles, ...)
    """

    def __init__(
        self,
        n_clusters: int = 50,
        *,
        n_references: int | None = None,
        align_mirrored: bool = False,
        mask_diameter: float | None = None,
        max_shift: float | None = None,
        shift_step: float | None = None,
        angle_step: float | None = None,
        angle_range: float | None = None,
        initial_resolution: float = 40.0,
        max_resolution: float | None = None,
        tau_fudge: float = 2.0,
        class_prior: str = "uniform",
        noise: str = "shell",
        image_scale: bool = False,
        n_init: int = 1,
        n_batches: int = 200,
        batch_size: int | None = None,
        max_iter: int = 5,
        tol: float = 0.01,
        adaptive_fraction: float = 0.999,
        checkpoint: Path | None = None,
        warm_start: bool = False,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_references = n_references
        self.align_mirrored = align_mirrored
        self.mask_diameter = mask_diameter
        self.max_shift = max_shift
        self.shift_step = shift_step
        self.angle_step = angle_step
        self.angle_range = angle_range
        self.initial_resolution = initial_resolution
        self.max_resolution = max_resolution
        self.tau_fudge = tau_fudge
        self.class_prior = class_prior
        self.noise = noise
        self.image_scale = image_scale
        self.n_init = n_init
        self.n_batches = n_batches
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.adaptive_fraction = adaptive_fraction
        self.checkpoint = checkpoint
        self.warm_start = warm_start
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    # ---------------------------------------------------------------- learning
    @with_callbacks
    def fit(self, X: Data, y: Any = None) -> Self:
        """Align particles and find their classes.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Particles; poses they may have are used with `angle_range` alone.
        y : None
            Ignored.

        Returns
        -------
        self : MAPAligner
        """
        check_parameters(self)
        self._fit_warnings = []
        given = as_stack(X, self)
        warn_if_mask_too_tight(self, given, stacklevel=2 + FRAMES)
        screened, _ = as_screened(given, self, stacklevel=2 + FRAMES)
        stack = without_outliers(screened, self)
        settings = alignment_settings(self, stack)
        if len(stack) < settings.n_references:
            raise ValueError(
                f"MAPAligner got {len(stack)} images for {settings.n_references} references of "
                f"n_clusters={self.n_clusters} classes. "
                "Ask for fewer classes, or give more particles."
            )
        self.noise_groups_ = np.unique(stack.noise_group) if self.noise == "group" else None
        group = group_codes(stack, self.noise_groups_)
        source = feature_source(stack, settings, group=group, scaled=self.image_scale)
        rng = check_random_state(self.random_state)
        start = starting_point(self, stack, settings) if self.warm_start else None
        kept = checkpoint_of(self, given)
        n_online = 0 if start is not None else settings.n_init * settings.n_batches
        task = FitTask(self, n_online + settings.max_iter, "mini-batch or pass", stack)
        with task_pool(self.n_jobs) as pool, memory_watched("MAPAligner.fit", self.checkpoint):
            source.employ(pool)
            fit = fit_alignment(
                source, settings, rng, start=start, keeper=kept, verbose=self.verbose, on_step=task.step
            )
            if self.image_scale:
                self._scale_unit = find_scales(source, fit.model, settings)
            self._frames, classes = unite_classes(self, fit, source, settings)
            found = find_poses(source, fit.model, settings, frames=self._frames)
        self._settings, self._model, self._pixel_size = settings, fit.model, stack.pixel_size
        self._background_px = normalised_radius(stack.images)
        self.n_features_in_ = stack.box**2
        self.image_scale_ = source.scale
        self.outlier_ = screened.outlier
        if self.outlier_.any():
            found = self._with_outliers(found, screened)
        store_results(self, fit, classes, screened, found)
        if not fit.interrupted:
            kept.remove()
        task.end()
        if not fit.interrupted and not self.converged_:
            warn_and_keep(
                self,
                f"MAPAligner stopped at max_iter={self.max_iter} while {fit.changed:.0%} of the images still "
                "changed their class or pose in a pass. Raise max_iter, or n_batches.",
                stacklevel=2 + FRAMES,
            )
        return self

    def _with_outliers(self, found, screened):
        """Classes and poses of all images: those of the fit, and what is found for those that are far out."""
        _, others, scale = self._find(screened[self.outlier_], refine=True)
        order = np.argsort(np.argsort(self.outlier_, kind="stable"))  # sound ones first, and back
        if scale is not None:
            self.image_scale_ = np.concatenate([self.image_scale_, scale])[order]
        return ImagePoses.concatenate([found, others]).take(order)

    def fit_transform(self, X: Data, y: Any = None) -> ParticleStack:
        """Align particles and return them with their poses; the same as ``fit(X).transform(X)``.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Particles.
        y : None
            Ignored.

        Returns
        -------
        stack : ParticleStack
            The same particles with poses, normalised if they were not, and with marks of what is far out.
        """
        stack, _ = as_screened(X, self, stacklevel=2 + WRAPPED)
        self.fit(stack)
        return stack.with_poses(self.poses_)
