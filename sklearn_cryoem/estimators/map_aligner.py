"""MAPAligner: reference-free alignment of particle images and their first classes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from sklearn_cryoem._core.memory import cache_bytes, memory_watched
from sklearn_cryoem._core.parallel import TaskPool, single_blas_threads, task_pool
from sklearn_cryoem._core.validation import check_choice, check_number
from sklearn_cryoem.alignment.classes import AlignedClasses, centred_classes, unite_references
from sklearn_cryoem.alignment.em import HISTORY, OnlineState, PassState, fit_alignment, mini_batches
from sklearn_cryoem.alignment.features import AlignmentImages, SharedFeatures
from sklearn_cryoem.alignment.frames import Frames, KnownPoses
from sklearn_cryoem.alignment.model import AlignmentModel, masked_references
from sklearn_cryoem.alignment.poses import ImagePoses, find_poses, without_own
from sklearn_cryoem.alignment.search import CLASS_PRIORS, AlignmentSettings
from sklearn_cryoem.alignment.start import FREE, IMAGES_FOR_NOISE, given_model
from sklearn_cryoem.alignment.stream import (
    N_PASSES,
    Stream,
    match_of,
    nats_of_own_part,
    unexplained,
    usual_match,
    with_new_references,
)
from sklearn_cryoem.estimators._common import (
    Data,
    FitTask,
    GivesStacks,
    Path,
    TakesCallbacks,
    TakesImages,
    as_screened,
    as_stack,
    mean_without_outliers,
    warn_and_keep,
    warn_if_mask_too_tight,
    with_callbacks,
    without_outliers,
)
from sklearn_cryoem.estimators.model_files import checkpoint_of
from sklearn_cryoem.metrics import effective_count
from sklearn_cryoem.particles import CTFTable, ParticleStack, Poses, screening
from sklearn_cryoem.particles.feature_space import at_box, to_working_box
from sklearn_cryoem.particles.frames import check_same_pixel_size
from sklearn_cryoem.particles.preprocess import normalised_radius
from sklearn_cryoem.physics.fourier import coarser_shells, fourier_resize
from sklearn_cryoem.physics.masks import mask_disc
from sklearn_cryoem.physics.rotation import aligned_images

REACH_FRACTION = 0.2  # of the box: longest shift
RANGE_FRACTION = 0.08  # of the box: longest shift of one search, which follows the image
# Below 40 Angstrom only outlines are compared: finer detail of random first references tells noise apart.
START_ANGSTROM = 40.0
MIN_START_RINGS = 6.0
IMAGES_PER_REFERENCE_AND_BATCH, MIN_BATCH = 4, 200  # many small batches do better than few large ones
REFERENCES_PER_CLASS = 2.5
IMAGES_PER_REFERENCE = 40  # at least, where there are more references than classes
MIRRORED_SHARE = 0.8  # of the references, where each stands for two views; four fifths find as much as all
# Few passes are the usual end of online EM: what is still in motion tells whether more are needed.
TIMED_BATCHES = 6
LABELS_IN_MOTION = 0.5  # of the images, in the last pass: with more, an alignment has not come to rest


class MAPAligner(
    TakesImages,
    GivesStacks,
    TakesCallbacks,
    ClusterMixin,
    TransformerMixin,
    BaseEstimator,
    auto_wrap_output_keys=None,  # a stack is no table
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
        Number of references that EM works with, at least `n_clusters`. In the end they are merged into
        `n_clusters` classes, each time the two that cost the least likelihood, Eq. (4.9)-(4.10):
        far more accurate than as many references as classes, at a cost that grows with their number. By
        default 2.5 to a class, or 2 with `mirror`, as long as each gets 40 or 50 images.
    mirror : bool, default=False
        Whether mirror images of the references are searched as well, Eq. (4.18), and references merged with
        them: the same view from opposite sides gives mirror images, which then share classes, so that half as
        many views are to be found. `poses_.mirrored` tells the images that are mirrored. With `angle_range`
        below pi none is.
    mask_diameter : float or None, default=None
        Diameter of the soft mask of the references in Angstrom (pixels where the pixel size is unknown). It
        should hold the particle with little to spare; its edge lies outside. By default 0.9 of the box.
    max_shift : float or None, default=None
        Longest shift, in Angstrom (pixels where the pixel size is unknown). By default 0.2 of the box. A
        search covers 0.08 of the box at most and follows the image from visit to visit, Eq. (4.16), so that a
        long one costs no more.
    angle_range : float or None, default=None
        How far from the poses of the stack in-plane angles are searched, in radians: for a second run, or for
        poses of another program. `max_shift` then counts from the shifts of the stack, masks follow them, the
        first references are averages at the known poses, and all keep to the frame of these: none is moved
        or mirrored when they are merged. `transform` and the like search all angles for particles without
        poses. By default all angles are searched, and poses that the stack may have are not used.
    angle_sigma : float or None, default=None
        For filaments: standard deviation of in-plane angles about those of the stack and about these plus pi,
        in radians, Eq. (4.23). Where a file has no angles, the priors of its tubes are read as such. One
        search covers all shifts from those of the stack, `max_shift` or 0.08 of the box. Filaments lie along
        x in averages.
    helical_rise : float or None, default=None
        With `angle_sigma`: shifts along the filament stay within half of this, in Angstrom (pixels where the
        pixel size is unknown). By default they are as free as those across it.
    max_resolution : float or None, default=None
        Finest detail ever used, in Angstrom (pixels where the pixel size is unknown), as far as the
        references resolve it. By default where signal ends: images of more than 64 pixels are cropped in
        Fourier space to the box that it needs, see `to_working_box`, and averages have this box of D pixels.
    min_resolution : float or None, default=None
        Coarsest detail that is compared, in Angstrom (pixels where the pixel size is unknown), Eq. (4.21):
        40 to 60 where a micelle, a nanodisc or ice that varies would otherwise drive angles and classes.
        Averages still show all of it. By default all is compared.
    tau_fudge : float, default=2.0
        Factor on the prior variance of the references, Eq. (4.2). Larger keeps more detail and more noise.
    init : array-like of shape (n_references, D, D) or None, default=None
        References to begin with, instead of random ones: averages of another fit, or projections of a map
        (`datasets.project`), with the box and pixel size of the particles and in any scale, Eq. (4.22).
        `n_references` is their number. `n_batches` of 60 are enough. Detail beyond twice the first resolution
        comes from the particles alone.
    class_prior : {"uniform", "estimated", "balanced"}, default="uniform"
        Prior weight of the classes, Eq. (4.14). Estimated weights let large classes swallow small ones, down
        to few classes where the images are noisy; balanced weights favour small classes, which splits common
        views rather than lose rare ones. `n_effective_clusters_` tells the outcome.
    n_batches : int, default=200
        Mini-batches before the full passes, each of four images a reference, at least 200; 0 gives plain EM.
        Some are left out where images are sure of their places, Eq. (4.8).
    max_iter : int, default=5
        Passes over all images, at most.
    tol : float, default=0.01
        The passes stop at an unchanged resolution, when the log likelihood changes by no more than this
        fraction of the log evidence, or no more than 1 % of the images change their reference, or their pose
        by more than a step. `converged_` is also true where, at `max_iter`, up to half of them still changed.
    checkpoint : path-like or None, default=None
        Folder where the state of a running fit is kept every half minute: the same fit, known by its
        parameters, data and seed, goes on from there after it was killed, and ends with the same bits. The
        file goes when the fit has ended. Needs `random_state` to be an int.
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
    class_sizes_ : ndarray of shape (n_clusters,)
        Training images of each class, without outliers.
    class_posterior_ : ndarray of shape (n_images,)
        Posterior of that class, whatever the pose; what the image's own part in its references adds is taken
        off, Eq. (4.20).
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
        Resolution up to which the signal of each class exceeds its noise, as the fit saw them; infinite where
        it never does. Pictures and files have what `class_quality` measures.
    resolution_ : float
        Resolution limit of the last pass, in Angstrom (pixels where the pixel size is unknown): no finer
        detail was used.
    outlier_ : ndarray of shape (n_images,), bool
        Training images that are outliers (see `ParticleStack.screen`): they have labels and poses, and took
        no part in the fit.
    noise_variance_ : ndarray of shape (n_rings,)
        Noise variance per pixel at 1, 2, .. Fourier pixels, of all images.
    shift_sigma_ : float
        Estimated standard deviation of each coordinate of the shifts, in the unit of the poses.
    history_ : dict of ndarrays of shape (n_steps,)
        How the fit went, step by step: mini-batches, then `n_iter_` full passes over all images. For each the
        mean `log_evidence` of its images against noise alone (nats), the `resolution` of the best reference,
        `n_references` with at least one image, and the part of the images that `changed` their reference
        since they were seen last (NaN where none was).
    log_posterior_ : ndarray of shape (n_iter,)
        The log evidence of the full passes. It compares only between passes of the same resolution.
    n_iter_ : int
        Full passes made.
    converged_ : bool
        Whether the passes came to rest: `tol` was reached or, at `max_iter`, at least half of the images kept
        their reference and pose in the last pass. Where it is false, `fit` has given a warning.
    n_images_seen_ : int
        Images learned from, those of all chunks given to `partial_fit` together.
    n_effective_clusters_ : float
        exp(entropy of `class_sizes_`), Eq. (3.8).
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

    _references = FREE
    _start_passes = 1
    _keeps_references = "Set n_references={}"  # the remedy where a warm start has another number of them

    def __init__(
        self,
        n_clusters: int = 50,
        *,
        n_references: int | None = None,
        mirror: bool = False,
        mask_diameter: float | None = None,
        max_shift: float | None = None,
        angle_range: float | None = None,
        angle_sigma: float | None = None,
        helical_rise: float | None = None,
        max_resolution: float | None = None,
        min_resolution: float | None = None,
        tau_fudge: float = 2.0,
        init: ArrayLike | None = None,
        class_prior: str = "uniform",
        n_batches: int = 200,
        max_iter: int = 5,
        tol: float = 0.01,
        checkpoint: Path | None = None,
        warm_start: bool = False,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_references = n_references
        self.mirror = mirror
        self.mask_diameter = mask_diameter
        self.max_shift = max_shift
        self.angle_range = angle_range
        self.angle_sigma = angle_sigma
        self.helical_rise = helical_rise
        self.max_resolution = max_resolution
        self.min_resolution = min_resolution
        self.tau_fudge = tau_fudge
        self.init = init
        self.class_prior = class_prior
        self.n_batches = n_batches
        self.max_iter = max_iter
        self.tol = tol
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
        self._check_parameters()
        self._fit_warnings = []
        given = as_stack(X, self)
        warn_if_mask_too_tight(self, given)
        screened, self._usual_limits = as_screened(given, self)
        self._given_box, background_px = given.box, normalised_radius(screened.images)
        screened = self._at_work(screened)
        stack = without_outliers(screened, self)
        settings = self._settings_for(stack)
        images = alignment_images(stack, settings)
        start = self._starting_point(stack, settings) if self.warm_start else None
        kept, made = checkpoint_of(self, given), self._references
        if getattr(self, "init", None) is not None:
            references = fourier_resize(np.asarray(self.init, dtype=np.float32), stack.box)
            made = replace(made, start=partial(given_model, references=references))
        n_batches = settings.n_batches if start is None else 0
        n_steps = getattr(self, "n_init", 1) * (n_batches + self._start_passes) + settings.max_iter
        task = FitTask(self, n_steps, "mini-batch or pass", stack)
        with memory_watched("MAPAligner.fit", self.checkpoint), task_pool(self.n_jobs) as pool:
            files: list[Any] = []
            if start is None:
                start, files = self._best_start(stack, settings, pool, kept, task)
            features = SharedFeatures(images, pool, cache_bytes())
            state, interrupted = fit_alignment(
                features,
                settings,
                check_random_state(self.random_state),
                start=start,
                checkpoint=kept,
                verbose=self.verbose,
                on_step=task.step,
                references=made,
            )
            frames, classes, own = self._united(features, state, settings)
            found = find_poses(features, state.model, settings, frames=frames)
            found = replace(found, class_posterior=without_own(found.class_posterior, own[found.label]))
            if hasattr(self, "partial_fit"):
                rows = np.unique(np.linspace(0, len(stack) - 1, IMAGES_FOR_NOISE).astype(int))
                some = found.take(rows)
                some = replace(some, log_evidence=some.log_evidence - own[some.label])  # Eq. (4.20)
                usual = usual_match(match_of(features, rows, some, state.model, settings))
                self._stream = Stream(state.stats, len(stack), usual)
        self._settings, self._model, self._frames = settings, state.model, frames
        self._pixel_size, self._background_px = stack.pixel_size, background_px
        self.n_features_in_, self._box, self.n_images_seen_ = given.box**2, stack.box, len(stack)
        self._store(screened, state, classes, self._with_outliers(screened, found))
        self._interrupted = interrupted
        if not interrupted:
            for file in (kept, *files):
                file.remove()
        task.end()
        if not interrupted and not self.converged_:
            warn_and_keep(
                self,
                f"{type(self).__name__} stopped at max_iter={self.max_iter} while {state.changed:.0%} of the "
                "images still changed their class or pose in a pass. Raise max_iter, or n_batches.",
            )
        return self

    @available_if(lambda self: self._references is FREE)
    def partial_fit(self, X: Data, y: Any = None) -> Self:
        """Learn from a chunk of particles, for data that arrive while the microscope runs, Eq. (4.25)-(4.26).

        The first call fits its chunk as `fit` does. Each further one makes two passes over its own chunk; the
        sums join those of the particles before it, which slowly lose weight. References keep their classes
        and the frames of their poses, so that poses found before stay true. Particles that no reference
        explains are aligned by themselves; where that explains them better than chance would, a new class
        for each hundred of them is added.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            The chunk, with the box and pixel size of the first. Some hundreds of particles serve best.
        y : None
            Ignored.

        Returns
        -------
        self : MAPAligner
            `poses_`, `labels_`, `class_sizes_` and what else tells of particles are those of the chunk;
            averages, weights and noise those of all particles so far. `n_images_seen_` counts them.

        Notes
        -----
        The work is that of about four passes over the chunk, whatever was seen before. The same chunks in the
        same order give the same bits, also from a model that was saved between them. The working box and the
        searches are those of the first chunk.
        """
        if not hasattr(self, "_model"):
            return self.fit(X)
        self._check_parameters()
        given = as_stack(X, self)
        self._check_box(given)  # before grey values of rings are compared
        given = screening.normalised_like(given, self._background_px)
        if given.outlier is None:
            how = {"limits": self._usual_limits, "n_jobs": self.n_jobs, "verbose": self.verbose}
            given, _ = screening.screened(given, self.mask_diameter, **how)
        screened, settings = self._as_fitted(given)
        stack = without_outliers(screened, self)
        images, rng = alignment_images(stack, settings), check_random_state(self.random_state)
        model, frames, stream = self._model, self._frames, self._stream
        with memory_watched("MAPAligner.partial_fit"), task_pool(self.n_jobs) as pool:
            features = SharedFeatures(images, pool, cache_bytes())
            before = find_poses(features, model, settings, refine=False)
            match = match_of(features, np.arange(len(stack)), before, model, settings)
            low = unexplained(match, stream.usual_match)
            if len(low):
                few = SharedFeatures(alignment_images(stack[low], settings), TaskPool(), cache_bytes())
                model, frames, stream = with_new_references(
                    few, model, frames, stream, before.take(low), settings, rng
                )
            new = np.arange(len(self._frames.label), len(frames.label))
            settings = replace(settings, n_references=len(frames.label), max_iter=N_PASSES)
            made = replace(FREE, update=stream.update)
            state, self._interrupted = fit_alignment(
                features, settings, rng, start=model, verbose=self.verbose, references=made
            )
            frames, classes, own = self._averaged(features, state, settings, frames, new)
            found = find_poses(features, state.model, settings, frames=frames)
            found = replace(found, class_posterior=without_own(found.class_posterior, own[found.label]))
        self.n_images_seen_ += len(stack)
        self._stream = replace(stream, stats=state.stats, n_seen=self.n_images_seen_)
        self._settings = replace(self._settings, n_references=len(frames.label))
        self._model, self._frames, n_iter, history = state.model, frames, self.n_iter_, self.history_
        self._store(screened, state, classes, self._with_outliers(screened, found))
        self.history_ = {name: np.append(history[name], step) for name, step in self.history_.items()}
        self.n_iter_ += n_iter
        self.log_posterior_ = self.history_["log_evidence"][-self.n_iter_ :]
        return self

    def _with_outliers(self, screened: ParticleStack, found: ImagePoses) -> ImagePoses:
        """Poses of all particles from those of the sound ones: others take no part in the references."""
        if not screened.outlier.any():
            return found
        others = self._find(screened[screened.outlier], refine=True)[1]
        order = np.argsort(np.argsort(screened.outlier, kind="stable"))  # sound ones first, and back
        return ImagePoses.concatenate([found, others]).take(order)

    def _check_parameters(self) -> None:
        """Raise on any parameter that is out of range."""
        at_least = {
            "n_clusters": (self.n_clusters, 1),
            "n_batches": (self.n_batches, 0),
            "max_iter": (self.max_iter, 1),
        }
        for name, (value, minimum) in at_least.items():
            check_number(name, value, owner=self, minimum=minimum, integer=True)
        check_number(
            "n_references",
            self.n_references,
            owner=self,
            minimum=self.n_clusters,
            integer=True,
            allow_none=True,
        )
        for name in ("mask_diameter", "max_resolution", "min_resolution", "angle_sigma", "helical_rise"):
            value = getattr(self, name, None)
            check_number(name, value, owner=self, minimum=0, inclusive=False, allow_none=True)
        check_number("max_shift", self.max_shift, owner=self, minimum=0, allow_none=True)
        check_number(
            "angle_range", self.angle_range, owner=self, minimum=0, maximum=np.pi, allow_none=True
        )  # fmt: skip
        sigma = getattr(self, "angle_sigma", None)
        if sigma is None and getattr(self, "helical_rise", None) is not None:
            raise ValueError("MAPAligner(helical_rise=...) is for filaments. Give angle_sigma, too.")
        if sigma is not None and self.angle_range is not None:
            raise ValueError(
                "MAPAligner got both angle_range and angle_sigma. Give the latter to filaments only."
            )
        check_number("tau_fudge", self.tau_fudge, owner=self, minimum=0, inclusive=False)
        check_number("tol", self.tol, owner=self, minimum=0)
        check_choice("class_prior", self.class_prior, CLASS_PRIORS, owner=self)
        check_choice("mirror", self.mirror, (True, False), owner=self)
        check_choice("warm_start", self.warm_start, (True, False), owner=self)

    def _at_work(self, stack: ParticleStack) -> ParticleStack:
        """The particles in the box that their signal needs, or in that of the last fit, which goes on."""
        if self.warm_start and hasattr(self, "_model"):
            return at_box(stack, self._box) if stack.box**2 == self.n_features_in_ else stack
        return to_working_box(stack, self.max_resolution, n_jobs=self.n_jobs)

    def _settings_for(self, stack: ParticleStack) -> AlignmentSettings:
        """What the kernels take: lengths in pixels and Fourier pixels of the stack."""
        n_references = self.n_references
        if n_references is None and self.warm_start and hasattr(self, "_model"):  # however many images come
            n_references = max(int(self.n_clusters), len(self._model.weight))
        n_references = number_of_references(int(self.n_clusters), n_references, len(stack), self.mirror)
        if self.init is not None:
            n_references, *shape = np.shape(self.init) or (0,)
            boxes = getattr(self, "_given_box", stack.box), stack.box
            if shape not in [[box, box] for box in boxes] or n_references < self.n_clusters:
                raise ValueError(
                    f"MAPAligner(init=...) has the shape {np.shape(self.init)}, expected at least "
                    f"n_clusters={self.n_clusters} references of {boxes[0]} x {boxes[0]} pixels. Bring "
                    "averages to the pixels of the particles with rescale, or ask for fewer n_clusters."
                )
        if len(stack) < n_references:
            raise ValueError(
                f"MAPAligner got {len(stack)} images for {n_references} references of "
                f"n_clusters={self.n_clusters} classes. "
                "Ask for fewer classes, or give more particles."
            )
        if stack.poses is None and (self.angle_range, self.angle_sigma) != (None, None):
            name = "angle_range" if self.angle_sigma is None else "angle_sigma"
            raise ValueError(
                f"MAPAligner with {name} searches round known poses, and this stack has none. Give them "
                f"with stack.with_poses(poses), for example poses_ of a first run, or leave {name} out."
            )
        filament = {}
        if self.angle_sigma is not None:
            unit, reach = stack.pixel_length, self.max_shift
            reach = RANGE_FRACTION * stack.box if reach is None else reach / unit
            filament = {
                "kappa": 0.25 / self.angle_sigma**2,  # Eq. (4.23)
                "rise_px": None if self.helical_rise is None else self.helical_rise / unit,
                "angle_range_rad": np.pi,
                "max_shift_px": reach,
                "reach_px": reach,
            }
        return replace(
            search_settings(
                stack,
                mask_diameter=self.mask_diameter,
                max_shift=self.max_shift,
                angle_range=self.angle_range,
                max_resolution=self.max_resolution,
                min_resolution=self.min_resolution,
            ),
            **filament,
            n_references=n_references,
            tau_fudge=float(self.tau_fudge),
            class_prior=self.class_prior,
            n_batches=int(self.n_batches),
            batch_size=min(batch_size_for(n_references), len(stack)),
            mirror=self.mirror and (self.angle_range is None or self.angle_range >= np.pi),
            max_iter=int(self.max_iter),
            tol=float(self.tol),
        )

    def _starting_point(self, stack: ParticleStack, settings: AlignmentSettings) -> AlignmentModel | None:
        """Model of the last fit for a warm start, or None where there was no fit."""
        if not hasattr(self, "_model"):
            return None
        model, n_references = self._model, len(self._model.weight)
        if self._box != stack.box or self._pixel_size != stack.pixel_size:
            raise ValueError(
                f"{type(self).__name__}(warm_start=True) was fitted to images of {self._box} pixels of "
                f"{self._pixel_size} A; these have {stack.box} of {stack.pixel_size} A. Bring them to the "
                "same box and pixel size, or set warm_start=False."
            )
        if n_references != settings.n_references:
            remedy = self._keeps_references.format(n_references)
            raise ValueError(
                f"{type(self).__name__}(warm_start=True) was fitted with {n_references} references; now "
                f"there are {settings.n_references}. {remedy}, or set warm_start=False."
            )
        if settings.angle_range_rad is not None:  # known poses are in the frame of the classes
            frames = self._frames
            moved = aligned_images(model.references, -frames.angle_rad, frames.shift_px, frames.mirrored)
            model = replace(model, references=masked_references(moved, settings))
        return replace(model, k_max=float(np.clip(model.k_max, settings.k_start, settings.k_limit)))

    def _best_start(
        self, stack: ParticleStack, settings: AlignmentSettings, pool: TaskPool, kept: Any, task: FitTask
    ) -> tuple[AlignmentModel | None, list[Any]]:
        """Model to go on from, of several starts, and files of these; None where the fit is the only one."""
        return None, []

    def _united(
        self, features: SharedFeatures, state: PassState, settings: AlignmentSettings
    ) -> tuple[Frames, AlignedClasses, NDArray[np.float64]]:
        """Frames of the references of a fit, and the classes that they form, Eq. (4.9)-(4.10), (4.17).

        Last comes the log likelihood that an image of each class owes to its own part in it, Eq. (4.20).
        """
        stats = state.stats
        frames = unite_references(
            state.model,
            stats.denominator[:, 0].real,
            stats.mass,
            settings,
            int(self.n_clusters),
            mirror=self.mirror,
            n_jobs=self.n_jobs,
        )
        return self._averaged(features, state, settings, frames)

    def _averaged(
        self,
        features: SharedFeatures,
        state: PassState,
        settings: AlignmentSettings,
        frames: Frames,
        moving: NDArray[np.int64] | None = None,
    ) -> tuple[Frames, AlignedClasses, NDArray[np.float64]]:
        """What `_united` returns of references in given frames, of which `moving` ones may be centred."""
        model, stats, fraction = state.model, state.stats, features.images.noise_fraction
        grid = settings.space(model.references.shape[-1], state.k_max).grid
        nats = nats_of_own_part(stats, model, grid, settings, fraction)
        own, mass = (np.bincount(frames.label, weight) for weight in (stats.mass * nats, stats.mass))
        frames, classes = centred_classes(stats, frames, model, grid, settings, fraction, moving)
        return frames, classes, own / np.maximum(mass, 1e-9)

    def _store(
        self, stack: ParticleStack, state: PassState, classes: AlignedClasses, found: ImagePoses
    ) -> None:
        """Set the public attributes."""
        unit = stack.pixel_length
        model = state.model
        with np.errstate(divide="ignore"):
            self.class_resolution_ = stack.box * unit / classes.resolution
            self.history_ = dict(zip(HISTORY, state.history.T.copy(), strict=True))
            self.history_["resolution"] = stack.box * unit / self.history_.pop("resolved")
        self.resolution_ = float(stack.box * unit / state.k_max)
        self.class_averages_, self.references_ = classes.averages, model.references
        self._store_found(stack, found)
        self.reference_class_ = self._frames.label
        self.cluster_weights_ = classes.mass / classes.mass.sum()
        self.noise_variance_, self.shift_sigma_ = model.noise, model.shift_sigma_px * unit
        self.n_iter_ = len(state.log_likelihood)
        self.log_posterior_ = self.history_["log_evidence"][-self.n_iter_ :]
        self.converged_ = bool(state.converged or state.changed <= LABELS_IN_MOTION)

    def _store_found(self, stack: ParticleStack, found: ImagePoses) -> None:
        """Set the public attributes that tell of particles, of the fit or others."""
        sound = slice(None) if stack.outlier is None else ~stack.outlier
        self.poses_ = self._poses(found)
        self.labels_, self.outlier_ = found.label, stack.outlier
        self.class_sizes_ = np.bincount(found.label[sound], minlength=len(self.class_averages_))
        self.class_posterior_, self.log_evidence_ = found.class_posterior, found.log_evidence
        self.n_effective_clusters_ = effective_count(self.class_sizes_)

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
            The same particles with poses, normalised if they were not, and with marks of outliers.
        """
        stack, _ = as_screened(X, self)
        self.fit(stack)
        return stack.with_poses(self.poses_)

    # ---------------------------------------------------------------- using
    def transform(self, X: Data) -> ParticleStack:
        """Align particles to the fitted references.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Particles of the same box.

        Returns
        -------
        stack : ParticleStack
            The same particles with poses, normalised if those of the fit were.
        """
        stack, found = self._find(X, refine=True)
        return stack.with_poses(self._poses(found))

    def _poses(self, found: ImagePoses) -> Poses:
        """Poses with shifts in their unit, from those in pixels of the box that the fit worked in."""
        return Poses(found.angle_rad, found.shift_px * (self._pixel_size or 1.0), found.mirrored)

    def predict(self, X: Data) -> NDArray[Any]:
        """Most probable class of every particle.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Particles of the same box.

        Returns
        -------
        labels : ndarray of shape (n_images,)
        """
        return self._find(X, refine=False)[1].label

    def score_samples(self, X: Data) -> NDArray[Any]:
        """Log likelihood of every particle, Eq. (1.3), up to `max_resolution`.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Particles of the same box.

        Returns
        -------
        log_likelihood : ndarray of shape (n_images,)
        """
        found = self._find(X, refine=False)[1]
        return found.log_evidence + found.log_noise

    def score(self, X: Data, y: Any = None) -> float:
        """Mean log likelihood of the particles.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Particles of the same box.
        y : None
            Ignored.

        Returns
        -------
        score : float
            Comparable between aligners with the same masks and the same `max_resolution`. Outliers do
            not count: for cross-validation, screen the stack before.
        """
        return mean_without_outliers(self.score_samples(X), X)

    def _find(self, X: Data, *, refine: bool) -> tuple[ParticleStack, ImagePoses]:
        """The particles as the fit took its own, and their classes and poses."""
        check_is_fitted(self)
        given = screening.normalised_like(as_stack(X, self), self._background_px)
        stack, settings = self._as_fitted(given)
        images = alignment_images(stack, settings)
        with memory_watched("Aligning particles to classes"), task_pool(self.n_jobs) as pool:
            features = SharedFeatures(images, pool)
            return given, find_poses(features, self._model, settings, frames=self._frames, refine=refine)

    def _check_box(self, given: ParticleStack) -> None:
        if given.box not in (box := math.isqrt(self.n_features_in_), self._box):
            raise ValueError(
                f"{type(self).__name__} was fitted to images of {box} pixels; "
                f"these have {given.box}. Bring them to the same box, for example with stack.downsample."
            )

    def _as_fitted(self, given: ParticleStack) -> tuple[ParticleStack, AlignmentSettings]:
        """Particles in the box of the fit, and where to search."""
        self._check_box(given)
        stack = at_box(given, self._box)
        check_same_pixel_size(stack.pixel_size, self._pixel_size)
        settings = self._settings
        if stack.poses is None:  # nothing to search round
            settings = replace(settings, angle_range_rad=None, kappa=0.0)
        return stack, settings


# ---------------------------------------------------------------- from particles to what the kernels take
def number_of_references(n_clusters: int, n_references: int | None, n_images: int, mirror: bool) -> int:
    """References that EM works with: as asked, or 2.5 to a class as long as there are images for them."""
    if n_references is not None:
        return int(n_references)
    share = MIRRORED_SHARE if mirror else 1.0
    most = round(share * REFERENCES_PER_CLASS * n_clusters)
    return int(np.clip(share * n_images // IMAGES_PER_REFERENCE, n_clusters, most))


def batch_size_for(n_references: int) -> int:
    """Images of a mini-batch, where there are so many."""
    return max(MIN_BATCH, IMAGES_PER_REFERENCE_AND_BATCH * n_references)


def timed_visits(aligner: MAPAligner, stack: ParticleStack) -> tuple[float, float]:
    """CPU time of an image in a mini-batch, and of all mini-batches, by the first few of them."""
    settings, rng = aligner._settings_for(stack), check_random_state(0)
    with single_blas_threads():
        features = SharedFeatures(alignment_images(stack, settings), TaskPool(), cache_bytes())
        first = OnlineState.first(FREE.start(features, settings, rng), features.images.known.shift_px, rng)
        batches = mini_batches(features, settings, first, rng, FREE)
        start = next(batches)  # posteriors are broad, and features are made
        began = time.process_time()
        end = [next(batches) for _ in range(TIMED_BATCHES)][-1]
    seconds = time.process_time() - began
    visit = seconds / (TIMED_BATCHES * settings.batch_size)
    return visit, seconds * settings.n_batches / (end.n_done - start.n_done)


def search_settings(
    stack: ParticleStack,
    *,
    mask_diameter: float | None,
    max_shift: float | None,
    angle_range: float | None,
    max_resolution: float | None,
    min_resolution: float | None = None,
) -> AlignmentSettings:
    """Settings of a search with one reference, in pixels; parameters as of `MAPAligner`."""
    unit = stack.pixel_length
    box = stack.box
    radius, edge = mask_disc(mask_diameter, box, stack.pixel_size)
    limit = float((box - 1) // 2)
    if max_resolution is not None:
        limit = float(np.clip(box * unit / max_resolution, 2.0, limit))
    n_ignored = coarser_shells(box * unit, min_resolution, limit)
    start = n_ignored + max(box * unit / START_ANGSTROM, MIN_START_RINGS)
    reach = REACH_FRACTION * box if max_shift is None else max_shift / unit
    return AlignmentSettings(
        n_references=1,
        mask_radius_px=radius,
        mask_edge_px=edge,
        max_shift_px=float(min(reach, RANGE_FRACTION * box)),
        reach_px=float(reach),
        k_start=float(min(start, limit)),
        k_limit=limit,
        n_ignored=n_ignored,
        angle_range_rad=None if angle_range is None else float(angle_range),
    )


def alignment_images(stack: ParticleStack, settings: AlignmentSettings) -> AlignmentImages:
    """The particles as the alignment reads them, in their known poses where `settings` search round these."""
    box, edge = stack.box, settings.mask_edge_px
    if stack.ctf is not None and stack.pixel_size is None:
        raise ValueError(
            "The stack has CTF parameters but no pixel size, so its CTF cannot be evaluated. "
            "Give ParticleStack(pixel_size=...), or drop the CTF with stack.with_ctf(None)."
        )
    known, poses = KnownPoses.identity(len(stack)), stack.poses
    if settings.angle_range_rad is not None:
        known = KnownPoses(poses.angle_rad, poses.shift_px(stack.pixel_size), poses.mirrored)
    return AlignmentImages(
        n_images=len(stack),
        box=box,
        read=stack.read,
        ctf=None if stack.ctf is None else CTFOnRings(stack.ctf, box * stack.pixel_size),
        known=known,
        mask_radius_px=min(settings.mask_radius_px + settings.max_shift_px, 0.5 * box - edge),
        mask_edge_px=edge,
        reference_radius_px=settings.mask_radius_px + edge,
        k_limit=settings.k_limit,
        pixel_size=stack.pixel_size,
    )


@dataclass(frozen=True)
class CTFOnRings:
    """CTF of particles at frequencies in Fourier pixels; goes with them to worker processes.

    Attributes
    ----------
    table : CTFTable
        Of all particles.
    box_angstrom : float
        Edge of their box.
    """

    table: CTFTable
    box_angstrom: float

    def __call__(
        self, rows: NDArray[np.int64], radius: NDArray[Any], azimuth: NDArray[Any]
    ) -> NDArray[np.float32]:
        """CTF of `rows` (n, J) at frequencies (J,)."""
        return self.table[rows].evaluate(radius / self.box_angstrom, azimuth)
