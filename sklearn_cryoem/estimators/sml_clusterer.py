"""SMLClusterer: classes and latent positions of aligned particles on a manifold."""

from __future__ import annotations

import dataclasses
import logging
import os
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted

from sklearn_cryoem._core.em import last_state
from sklearn_cryoem._core.memory import memory_watched
from sklearn_cryoem._core.parallel import single_blas_threads
from sklearn_cryoem._core.progress import progress
from sklearn_cryoem._core.validation import check_choice, check_number, warn
from sklearn_cryoem.estimators._common import (
    Data,
    FitTask,
    Path,
    TakesCallbacks,
    announce,
    as_fitted,
    as_screened,
    as_stack,
    as_vectors,
    is_images,
    mean_without_outliers,
    show_progress,
    warn_and_keep,
    warn_if_few_distinct_vectors,
    warn_if_mask_too_tight,
    warn_if_not_aligned,
    with_callbacks,
    without_outliers,
)
from sklearn_cryoem.estimators.model_files import checkpoint_of
from sklearn_cryoem.manifold.classes import (
    class_and_place,
    class_averages,
    hold_out,
    label_sums,
    map_posterior,
    mean_positions,
    most_probable,
    signal_ridge,
    told_apart,
)
from sklearn_cryoem.manifold.em import MStep, Schedule, cross_fitted_iterations
from sklearn_cryoem.manifold.expectation import sweep
from sklearn_cryoem.manifold.fit import FitPlan, fit_states
from sklearn_cryoem.manifold.grid import latent_basis
from sklearn_cryoem.manifold.noise import MEASURED_NOISE
from sklearn_cryoem.manifold.prior import (
    blur_of,
    has_signal,
    measure_moments,
    power_of,
    prior_precision,
    telling_shells,
)
from sklearn_cryoem.manifold.state import first_state, pca_start, random_start
from sklearn_cryoem.manifold.stream import advance, begin_stream, resume_stream
from sklearn_cryoem.metrics.classes import class_resolution
from sklearn_cryoem.particles.feature_space import ImageSpace, VectorSpace, to_working_box
from sklearn_cryoem.particles.screening import normalised_like, screened

logger = logging.getLogger(__name__)

ALGORITHMS = ("cross-fitted", "paper")
NOISE_MODELS = ("shell", "white", *MEASURED_NOISE)
# Folds of cross-fitted EM. With ten folds, nine tenths of the images make the template that the rest are
# compared with. Small classes need that; with 40 images or more in a class, four folds do as well and take
# less than half the time.
MANY_FOLDS, FEW_FOLDS = 10, 4
SMALL_CLASS = 40  # images of a class, on average
INITIAL_RESOLUTION = 40.0  # Angstrom: where views of a protein begin to differ; frequencies march from there
MIN_NODES_TO_COLLAPSE = 20
MIN_EFFECTIVE_CLASSES = 2.0  # few distinct views may leave most nodes empty, but not all but one


class Assignment(NamedTuple):
    """What `SMLClusterer.assign` returns: of each particle its class, the posterior of that, its position."""

    labels: NDArray[Any]  # (n_images,)
    posterior: NDArray[Any]  # (n_images,)
    positions: NDArray[Any]  # (n_images, n_components)


class SMLClusterer(
    TakesCallbacks, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin, BaseEstimator
):
    """Cluster aligned particle images by statistical manifold learning.

    The views and states of a particle lie on a smooth manifold, mu(s) = Phi(s) W, laid out over nodes in a
    latent space: a regular grid of one to three dimensions, a ring, a torus or a sphere; every node is a
    class. The manifold is fitted by expectation maximisation with the CTF inside the model, Eq. (2.1)-(3.5).
    On plain vectors it is the generative topographic map.

    Parameters
    ----------
    n_clusters : int or tuple of int, default=100
        Number of nodes, rounded to the nearest regular grid (`grid_shape_`), or the shape of the grid. Any
        number on a ring, and from four on a sphere.
    n_components : {1, 2, 3} or None, default=None
        Dimension of the latent space; by default 2, and 1 for a ring.
    topology : {"grid", "ring", "torus", "sphere"}, default="grid"
        Shape of the latent space, Eq. (2.7). A "grid" has one to three dimensions and an edge; a "ring" is
        periodic, for what turns or recurs; a "torus" is periodic along two or three dimensions; on a
        "sphere" lie, for example, views. Compare shapes by `score` on held-out particles.
    n_basis : "auto", int or tuple of int, default="auto"
        Number of Gaussian basis functions, or the shape of their grid. Fewer make a stiffer manifold. By
        default there is one for each node, as narrow as the signal in an image allows, Eq. (3.19); for
        vectors, and for the algorithm of the paper, 0.8 of the nodes along each axis (0.64 on a sphere).
    alpha : "auto" or float, default="auto"
        Prior precision of the weights. By default one for each shell, from the power of the signal that the
        data hold, Eq. (3.11), measured once before the fit.
    noise : {"shell", "white", "group", "image"}, default="shell"
        One noise variance for each radial shell, or one for all, Eq. (3.4). With "group" the shells of each
        `noise_group` of the stack (micrographs, or optics groups) have noise of their own, with "image" each
        image has a factor of its own, measured once before the fit, Eq. (3.14).
    algorithm : {"cross-fitted", "paper"}, default="cross-fitted"
        "paper" is the EM of the paper and nothing else: no cross-fitting, all frequencies from the start, one
        alpha, which the bias has too, one noise variance, masked images, and posteriors of Eq. (3.1).
    init : {"pca", "random"}, default="pca"
        Start on the plane of the first principal components, or with random weights: classes that come out
        of several random starts are more than chance.
    max_resolution : float or None, default=None
        Finest detail used, in Angstrom (pixels where the pixel size is unknown); by default where signal
        ends, see `MAPAligner`. Scores compare only between models of one `resolution_` and `min_resolution`.
    min_resolution : float or None, default=None
        Coarsest detail compared, in the same unit, Eq. (3.31): 40 to 60 Angstrom where a micelle, a nanodisc
        or ice that varies would drive the classes. Averages show all of it.
    mask_diameter : float or None, default=None
        Diameter of the soft disc that holds the particle, in Angstrom (pixels where the pixel size is
        unknown); its edge lies outside. By default 0.9 of the box. Averages end there. Images are compared
        with them within 0.9 of the box, where the CTF spreads the particle; without a CTF within the disc,
        Eq. (3.16).
    mirror : bool, default=False
        Whether each image also takes part as the view from the opposite side, its mirror image, Eq. (3.18):
        for poses of a 3-D refinement or of ``MAPAligner(mirror=True)``. It does nothing to vectors.
    max_iter : int, default=100
        Largest number of EM iterations.
    tol : float, default=0.01
        Converged when an iteration gains less than this in the objective, in nats per image.
    checkpoint : path-like or None, default=None
        Folder where the state of a running fit is kept, every half minute: the same fit goes on from there
        after it was killed, and ends with the same bits. Needs `random_state` to be an int.
    cache_folder : path-like or None, default=None
        Folder where the prepared (masked, aligned, transformed) features of images are kept, if they do not
        fit into memory: made once instead of in each iteration, and read again by the next fit and by
        `predict`. Each set of images, poses and resolution has a sub-folder, which you may delete.
    n_jobs : int or None, default=None
        Number of workers. Results are the same bits for any number.
    random_state : int, RandomState instance or None, default=None
        Seed of a random start.
    verbose : int, default=0
        1 shows progress.

    Attributes
    ----------
    labels_ : ndarray of shape (n_images,)
        Class of each training image: its most probable node.
    class_averages_ : ndarray of shape (n_nodes, D, D)
        CTF-corrected, Wiener-filtered average of each class, Eq. (3.6); vectors for plain input.
    half_averages_ : ndarray of shape (2, n_nodes, D, D)
        The same of the first, third, .. and of the other images that the fit learned from.
    class_resolution_ : ndarray of shape (n_nodes,)
        Where the Fourier ring correlation of the half averages falls below 0.143; infinite for classes
        without it. In Angstrom (pixels where the pixel size is unknown); NaN for vectors. The half averages
        share poses, templates and soft weights, so this is finer than what `class_quality` measures, which
        is what pictures show and files hold.
    cluster_centers_ : ndarray of shape (n_nodes, D, D)
        Templates mu of the nodes; vectors for plain input.
    latent_nodes_ : ndarray of shape (n_nodes, n_components)
        Latent positions of the nodes, over [-1, 1] along every axis; 1 and -1 are one point on a ring or
        torus. Unit vectors of shape (n_nodes, 3) on a sphere.
    node_pairs_ : ndarray of shape (n_pairs, 2)
        Nodes that are neighbours in the latent space, each pair once.
    grid_shape_ : tuple of int
        Shape of the grid of nodes; on a sphere their number alone.
    weights_ : ndarray of shape (n_basis + 1, n_features)
        W of Eq. (2.2); the bias comes last.
    noise_variance_ : ndarray of shape (n_shells,)
        Noise variance of each radial shell, from shell 1; of an image of average noise.
    noise_groups_ : ndarray of shape (n_groups,) or None
        Numbers of the noise groups seen, with ``noise="group"``. Particles of any other group are taken to
        have average noise.
    relative_noise_ : ndarray of shape (n_groups, n_shells) or (n_images,) or None
        Noise of each group and shell, or of each training image, in units of `noise_variance_`.
    alpha_ : ndarray of shape (n_shells,)
        Prior precision of the weights in each shell.
    outlier_ : ndarray of shape (n_images,), bool, or None
        Training images that are outliers and took no part in the fit, but have labels. None for vectors.
    class_sizes_, soft_class_sizes_ : ndarray of shape (n_nodes,)
        Images of each class, and sums of their posteriors; of those that the fit learned from.
    n_effective_clusters_ : float
        How many classes the images are told apart into: the exponential of the mutual information of image
        and class, Eq. (3.8). It is near 1 where noise alone tells classes apart, however even they are;
        ``metrics.effective_count(class_sizes_)`` says how even.
    log_posterior_ : ndarray of shape (n_iter,)
        Objective (3.5) after each iteration, per image, in nats. It never falls within a stage. For
        cross-fitted iterations, each of which is a stage, the log likelihood of held-out images.
    stage_ : ndarray of shape (n_iter,)
        Number of the stage: frequencies changed where it does, and with them the objective.
    resolution_ : float
        Resolution limit of the fitted model, in Angstrom (pixels where the pixel size is unknown); NaN for
        vectors.
    iteration_resolution_ : ndarray of shape (n_iter,)
        Resolution limit of each iteration.
    held_out_ : ndarray of shape (n_iter,), bool
        Whether an iteration is cross-fitted, its objective that of held-out images, Eq. (3.12).
    above_noise_ : ndarray of shape (n_iter,)
        Mean log evidence of an image against noise alone, in nats. It compares over stages.
    n_iter_ : int
        Number of iterations.
    n_images_seen_ : int
        Images learned from, those of all chunks given to `partial_fit` together.
    converged_ : bool
        Whether the objective stood still.
    n_features_in_ : int
        Number of pixels of an image, or of features of a vector.

    Notes
    -----
    For up to 60 iterations images are compared with templates that other images alone have made, Eq. (3.12):
    small classes otherwise hold on to the noise of their images. Frequencies march from 40 Angstrom on. Where
    images hold enough signal, up to ten more move nodes to where images are many, Eq. (3.22). Ordinary ones
    over all frequencies follow; vectors have these alone.

    Time goes as n_images * n_nodes * n_frequencies; memory does not depend on n_images but for the labels:
    images are prepared again in each iteration once 256 MB of features are kept, or read from `cache_folder`.

    Examples
    --------
    >>> from sklearn_cryoem import SMLClusterer
    >>> from sklearn_cryoem.datasets import aligned_to_truth, make_particles
    >>> stack = aligned_to_truth(make_particles("ribosome", 200, box=24, snr=1.0, random_state=0))
    >>> model = SMLClusterer((3, 3)).fit(stack)
    >>> model.class_averages_.shape, model.transform(stack[:5]).shape
    ((9, 24, 24), (5, 2))
    """

    def __init__(
        self,
        n_clusters: int | tuple[int, ...] = 100,
        *,
        n_components: int | None = None,
        topology: str = "grid",
        n_basis: str | int | tuple[int, ...] = "auto",
        alpha: str | float = "auto",
        noise: str = "shell",
        algorithm: str = "cross-fitted",
        init: str = "pca",
        max_resolution: float | None = None,
        min_resolution: float | None = None,
        mask_diameter: float | None = None,
        mirror: bool = False,
        max_iter: int = 100,
        tol: float = 0.01,
        checkpoint: Path | None = None,
        cache_folder: Path | None = None,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_components = n_components
        self.topology = topology
        self.n_basis = n_basis
        self.alpha = alpha
        self.noise = noise
        self.algorithm = algorithm
        self.init = init
        self.max_resolution = max_resolution
        self.min_resolution = min_resolution
        self.mask_diameter = mask_diameter
        self.mirror = mirror
        self.max_iter = max_iter
        self.tol = tol
        self.checkpoint = checkpoint
        self.cache_folder = cache_folder
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = True
        return tags

    # ---------------------------------------------------------------- learning
    def validate(self, X: Data | None = None) -> int:
        """Raise now what `fit` would refuse after hours of other work; no image is read.

        Parameters
        ----------
        X : ParticleStack, array-like or None
            What is to be fitted; None checks the parameters alone.

        Returns
        -------
        n_nodes : int
            Number of classes that the fit will have.
        """
        self._check_parameters()
        if X is not None and is_images(X):
            stack, space = self._open(X)
            blocks = space.blocks(stack)
            if self.cache_folder is not None:
                blocks.kept_in(self.cache_folder, may_write=False).check_room()
        return len(self._basis(on_images=True).nodes)

    @with_callbacks
    def fit(self, X: Data, y: Any = None) -> Self:
        """Fit the manifold to particles.

        Parameters
        ----------
        X : ParticleStack, array-like of shape (n_images, D, D) or (n_samples, n_features)
            Aligned particles, images, or plain vectors.
        y : None
            Ignored.

        Returns
        -------
        self : SMLClusterer
        """
        with memory_watched("SMLClusterer.fit", self.checkpoint), single_blas_threads():
            self._learn(X)
        return self

    @with_callbacks
    def partial_fit(self, X: Data, y: Any = None) -> Self:
        """Learn from a chunk of particles, for data that arrive while the microscope runs, Eq. (3.20).

        The first call fits its chunk as `fit` does; each further one improves the manifold by a few passes
        over its own chunk and the last images before it, cross-fitted as in `fit`, and by what is remembered
        of older ones, which counts the less the longer ago they were. Noise and prior follow. After `fit` it
        goes on from what was fitted, as if every class had seen the same mean CTF.

        Parameters
        ----------
        X : ParticleStack, array-like of shape (n_images, D, D) or (n_samples, n_features)
            The chunk. The first decides the kind, box and pixel size, and needs more images than there are
            basis functions (of vectors, two); a few times `n_clusters` make a good start. Later ones may be
            as small as one image, though some hundreds serve better.
        y : None
            Ignored.

        Returns
        -------
        self : SMLClusterer
            `labels_` are those of the chunk, `class_sizes_` count all labels given so far, and averages, soft
            sizes and noise are those of the last images and decayed means over older ones. `log_posterior_`
            and `stage_` go on: each sweep over images at hand adds the likelihood of held-out ones, a
            stage of its own; for vectors their objective (3.5), a stage a chunk. From the second chunk on,
            posteriors and scores are those of Eq. (3.1), surer than they are right: see `predict_proba`.

        Notes
        -----
        The same chunks in the same order give the same bits. The features of the last images are kept, in
        model files too: of 2,000, or eight for each node if that is more, or what 256 MB hold. What is
        remembered of the others takes about three times the memory of the templates, in double precision.
        """
        with memory_watched("SMLClusterer.partial_fit"), single_blas_threads():
            if not hasattr(self, "_manifold"):
                self._begin_stream(X)
            else:
                self._advance_stream(X)
        return self

    def _open(self, X):
        """Check training data; return them with the feature space that they span."""
        if not is_images(X):
            vectors = as_vectors(X, self, reset=True)
            return vectors, VectorSpace.of(vectors)
        stack = as_stack(X, self)
        if len(stack) < 2:
            raise ValueError("SMLClusterer got 1 sample, expected at least 2. Give more particles.")
        limits = self.max_resolution, self.mask_diameter, self.min_resolution
        space = ImageSpace.of(stack, *limits, in_window=self.algorithm != "paper")
        return stack, dataclasses.replace(space, mirror=self.mirror)

    def _learn(self, X):
        """Fit the manifold to X and return its feature blocks."""
        self._check_parameters()
        self._fit_warnings = []
        data, space = self._open(X)
        checkpoint, looked_at, self._usual_limits = checkpoint_of(self, data), None, None
        if isinstance(space, ImageSpace):
            self.n_features_in_ = data.box**2
            space.blocks(data)  # raises before images are read
            looked_at, self._usual_limits = as_screened(data, self)
            looked_at = to_working_box(looked_at, self.max_resolution, n_jobs=self.n_jobs)
            data = without_outliers(looked_at, self)
            space = dataclasses.replace(self._open(data)[1], given_box=space.plane.box)
        space, blocks = space.with_noise_of(data, self.noise, self.n_jobs, self.cache_folder)
        basis = self._basis(on_images=isinstance(space, ImageSpace))
        if looked_at is not None:
            warn_if_mask_too_tight(self, data)
            warn_if_not_aligned(self, X)
        else:
            warn_if_few_distinct_vectors(self, data, len(basis.nodes))
        logger.info("SMLClusterer: a %s of %s nodes", self.topology, basis.grid_shape)
        self._space, self._layout, self._stream = space, blocks.layout, None
        self._moments = measure_moments(blocks, n_jobs=self.n_jobs)
        state, plan, interrupted = self._run_em(blocks, basis, checkpoint)
        self._store_manifold(state.manifold(plan.m_step.basis, plan.m_step.alpha, blocks.layout))
        self.n_images_seen_ = blocks.n_samples
        self._store_trace(state.trace, state.converged)
        self.noise_groups_, self.relative_noise_ = space.noise_found(blocks)
        self._last_pass(blocks, plan, state.trace)
        self.outlier_ = None if looked_at is None else looked_at.outlier
        self._add_outliers(looked_at)
        self._interrupted = interrupted
        if not interrupted:
            checkpoint.remove()
            self._warn_unless_converged(state.trace)
        return blocks

    def _run_em(self, blocks, basis, checkpoint):
        """Choose a start, or go on from the state that was kept, and iterate; say how far it has come."""
        power = power_of(self._moments, blocks.layout)
        plan = self._plan(blocks, basis, power)
        announce(blocks, len(basis.nodes), plan)
        found = checkpoint.load()
        state = self._first_state(blocks, plan, power) if found is None else found
        task = FitTask(self, self.max_iter + 1, "iteration", blocks)
        how = {"verbose": self.verbose, "on_step": task.step, "costs": plan.costs}
        with progress(self.max_iter, "SMLClusterer", **how) as bar:
            bar.resume(len(state.trace.objective))
            show = partial(show_progress, bar, self._space)
            state, interrupted = last_state(fit_states(blocks, plan, state), checkpoint, show, found)
        task.end()
        if interrupted:
            warn(
                f"The fit was interrupted after {len(state.trace.objective)} iterations and ends with what "
                "it has learnt; Ctrl-C again leaves at once. Fit again with the same checkpoint to go on.",
            )
        return state, plan, interrupted

    def _plan(self, blocks, basis, power):
        """Prior, folds and schedules of the fit, which follow from the power of the data."""
        layout, space, n_nodes = blocks.layout, self._space, len(basis.nodes)
        blur = blur_of(power, layout)
        if isinstance(space, ImageSpace) and isinstance(self.n_basis, str) and self.algorithm != "paper":
            basis = dataclasses.replace(basis, width=basis.width * blur**0.5)  # (3.19)
        n_first = layout.n_shells if self.algorithm == "paper" else space.first_shells(INITIAL_RESOLUTION)
        n_folds = self._n_folds(blocks.n_samples, n_nodes)
        n_cross = cross_fitted_iterations(self.max_iter) if n_folds > 1 else 0
        if n_cross:
            n_telling = telling_shells(power, layout, blocks.n_samples * (1 + self.mirror) / n_nodes)
            crossed = Schedule.cross_fitted(n_first, max(n_first, n_telling), n_cross)
            n_marching = int(crossed.n_shells < layout.n_shells)  # all the others come in at once
            left = self.max_iter - n_cross
            ordinary = Schedule(crossed.n_shells, layout.n_shells, n_marching, left, self.tol)
        else:
            ordinary = crossed = Schedule.ordinary(n_first, layout.n_shells, self.max_iter, self.tol)
        alpha = prior_precision(self.alpha, basis, power, layout)
        m_step = MStep(basis=basis, alpha=alpha, layout=layout, **self._how)
        return FitPlan(
            m_step=m_step,
            ordinary=ordinary,
            n_folds=n_folds if n_cross else 1,
            crossed=crossed,
            mean=power.mean,
            blur=blur,
        )

    def _n_folds(self, n_samples, n_nodes=None):
        """Folds of cross-fitted EM, of ten images at least; without `n_nodes` those of a stream."""
        if isinstance(self._space, VectorSpace) or self.algorithm == "paper":
            return 1
        has_small_classes = n_nodes is not None and n_samples < SMALL_CLASS * n_nodes
        return max(1, min(MANY_FOLDS if has_small_classes else FEW_FOLDS, n_samples // 10))

    def _first_state(self, blocks, plan, power):
        """State before the first iteration."""
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        rng, n_shells = np.random.default_rng(seed), plan.crossed.first_shells
        if self.init == "pca":
            start = pca_start(blocks, plan.m_step.basis, power, n_shells, rng=rng, n_jobs=self.n_jobs)
        else:
            start = random_start(plan.m_step.basis, power, blocks.layout.truncate(n_shells), rng=rng)
        return first_state(start, plan.m_step.basis, n_shells, plan.n_folds)

    def _store_trace(self, trace, converged):
        """Fitted attributes that tell how the fit went."""
        self.log_posterior_, self.stage_ = np.array(trace.objective), trace.stage
        self.iteration_resolution_ = self._space.resolution(trace.n_shells)
        self.held_out_, self.above_noise_ = np.array(trace.is_held_out, bool), np.array(trace.above_noise)
        self.n_iter_, self.converged_ = len(trace.objective), bool(converged)

    def _store_manifold(self, manifold):
        """Fitted attributes that follow from the parameters alone."""
        self._manifold, basis = manifold, manifold.basis
        self.grid_shape_, self.latent_nodes_ = basis.grid_shape, basis.nodes
        self.node_pairs_ = basis.space.pairs(basis.grid_shape)
        self.weights_, self.alpha_ = manifold.weights, manifold.alpha
        self.noise_variance_ = manifold.noise_variance
        self.cluster_centers_ = self._space.to_data(manifold.templates)
        self.resolution_ = float(self._space.resolution(len(manifold.noise_variance)))

    def _store_classes(self, halves, layout, sizes):
        """Fitted attributes that follow from sums over even and odd rows, and from the labels."""
        manifold, space = self._manifold, self._space
        noise = manifold.noise_variance / layout.information  # (S,)
        ridge = manifold.alpha * noise
        averages = [space.to_data(class_averages(halves, ridge, layout, half)) for half in (0, 1)]
        self.half_averages_, self.class_resolution_ = np.stack(averages), np.full(len(sizes), np.nan)
        if isinstance(space, ImageSpace):
            ridge = signal_ridge(halves, noise, layout)
            n_shells = int(space.plane.shell[-1])
            self.class_resolution_ = class_resolution(*averages, space.pixel_length, n_shells)
        self.class_averages_ = space.to_data(class_averages(halves, ridge, layout))
        self.soft_class_sizes_ = halves.mass.sum(axis=0) / (1 + self.mirror)
        self.class_sizes_ = sizes

    def _last_pass(self, blocks, plan, trace):
        """Labels, averages, sizes and resolutions, from one more pass over the data."""
        manifold, dtype, self._held_out = self._manifold, self._space.dtype, None
        halves = sweep(blocks, self._matchers(blocks.layout), "halves", n_jobs=self.n_jobs)
        if plan.n_folds > 1:
            has = has_signal(self._moments, blocks.layout, trace)
            self._held_out = hold_out(blocks, manifold, plan.n_folds, has, dtype=dtype, n_jobs=self.n_jobs)
        self.labels_ = np.concatenate(halves.labels)
        sizes = np.bincount(self.labels_, minlength=len(self.latent_nodes_))
        self._store_classes(halves, blocks.layout, sizes)
        self._fit_sizes = self.soft_class_sizes_, sizes  # `assign_particles` changes those of its copy
        self._label_sums = 0.0
        self._tell_apart(blocks)

    def _tell_apart(self, blocks):
        """Count the classes that these images and those of earlier chunks are told apart into, Eq. (3.8)."""
        found = map_posterior(label_sums, blocks, self._matchers(blocks.layout), n_jobs=self.n_jobs)
        self._label_sums = self._label_sums + np.concatenate(list(found)).sum(axis=0)  # (K + 1,)
        self.n_effective_clusters_ = told_apart(self._label_sums)

    def _matchers(self, layout, *, held_out=True):
        """Templates that images of each fold are compared with, Eq. (3.17), or those of the whole map."""
        if self._held_out is None or not held_out:
            return [self._manifold.matcher(layout, dtype=self._space.dtype)]
        return self._held_out.matchers(self._manifold, layout, self._space.dtype)

    def _add_outliers(self, looked_at):
        """Labels, and noise if each image has its own, of the images that took no part in the fit."""
        if looked_at is None or not self.outlier_.any():
            return
        labels = np.empty(len(looked_at), dtype=self.labels_.dtype)
        labels[~self.outlier_] = self.labels_
        labels[self.outlier_] = self._posteriors(looked_at[self.outlier_], most_probable, warns=False)
        self.labels_ = labels
        if self.noise == "image":
            _, self.relative_noise_ = self._space.noise_found(self._space.blocks(looked_at))

    def _warn_unless_converged(self, trace):
        """Warn of a map that has collapsed onto few classes, and of a fit that has not come to its end."""
        n_nodes, on_images = len(self.latent_nodes_), isinstance(self._space, ImageSpace)
        may_collapse = on_images and self.alpha == "auto" and n_nodes >= MIN_NODES_TO_COLLAPSE
        if may_collapse and self.n_effective_clusters_ < MIN_EFFECTIVE_CLASSES:
            self.converged_ = False
            warn_and_keep(
                self,
                f"The map of SMLClusterer collapsed: its {n_nodes} classes tell images apart no better than "
                f"{self.n_effective_clusters_:.1f} clear ones. Give more particles, or fewer n_clusters.",
            )
        elif not self.converged_:
            how = "let finer detail in, so that its gain cannot be told"
            if np.isfinite(trace.last_gain):
                how = f"gained {trace.last_gain:.3g} nats per image, more than {self.tol:g}"
            warn_and_keep(
                self,
                f"SMLClusterer stopped at max_iter={self.max_iter} before it converged: the last iteration "
                f"{how}. Raise max_iter or tol.",
            )

    # ---------------------------------------------------------------- learning from chunks
    def _begin_stream(self, X):
        self._check_parameters()
        n_weights = self._basis(on_images=is_images(X)).phi.shape[1]
        if is_images(X) and len(X) < n_weights:
            raise ValueError(
                f"partial_fit got {len(X)} images in its first call, expected at least {n_weights}: as many "
                "as basis functions. Collect more for the first call, or ask for fewer n_clusters or n_basis."
            )
        blocks = self._learn(X)
        n_folds = self._n_folds(blocks.n_samples)
        self._stream = begin_stream(blocks, self._manifold, self._moments, n_folds=n_folds, **self._how)

    def _resumed_stream(self):
        """What `fit` would have remembered, as far as its results tell."""
        halves = np.stack([self._space.to_features(half) for half in self.half_averages_])  # (2, K, P)
        return resume_stream(
            self._manifold,
            self._moments,
            self._layout,
            halves,
            *self._fit_sizes,
            n_folds=self._n_folds(self.n_images_seen_),
        )

    def _advance_stream(self, X):
        self._check_parameters()
        given = as_fitted(X, self, on_images=isinstance(self._space, ImageSpace))
        begun = self._manifold.basis
        if dataclasses.replace(self._basis(on_images=is_images(X)), width=begun.width) != begun:
            raise ValueError(
                f"partial_fit cannot change the latent space ({begun.topology!r}, {begun.grid_shape} nodes, "
                f"{begun.basis_shape} basis functions) that the first call has laid out. Set these "
                "parameters back, or begin with a new model."
            )
        chunk, data = self._looked_at(given)
        if not len(data):  # nothing to learn from; labels alone
            self.outlier_, self.labels_ = chunk.outlier, self._posteriors(chunk, most_probable, warns=False)
            return
        space, blocks = self._space.with_noise_of(data, self.noise, self.n_jobs)
        warn_if_not_aligned(self, X)
        done = advance(
            self._resumed_stream() if self._stream is None else self._stream,
            blocks,
            self._manifold,
            alpha=self.alpha,
            **self._how,
        )
        self._space, self._stream = space, done.stream
        self.noise_groups_, self.relative_noise_ = space.noise_found(blocks)
        self._store_advance(done)
        self._tell_apart(blocks)
        self.outlier_ = None if chunk is None else chunk.outlier
        self._add_outliers(chunk)
        found = self.n_images_seen_, done.trace.objective[-1], len(data)
        logger.info("%d images seen, %.4f nats per image of the last %d", *found)

    def _looked_at(self, given):
        """A further chunk, looked at by the measure of the first, and what of it is learned from."""
        if not is_images(given):
            return None, given
        stack = normalised_like(given, self._space.background_px)
        dataclasses.replace(self._space, noise=None).blocks(stack)  # raises before images are read
        if stack.outlier is None:
            stack, _ = screened(
                stack,
                self.mask_diameter,
                noise=self.noise,
                limits=self._usual_limits,
                n_jobs=self.n_jobs,
            )
        return stack, stack[~stack.outlier]

    def _store_advance(self, done):
        """Fitted attributes after a further chunk."""
        stream = done.stream
        self.n_images_seen_, self.labels_ = stream.n_seen, done.labels
        self._store_manifold(done.manifold)
        self._held_out = None
        self._store_classes(done.halves, stream.layout, stream.class_counts)
        self.soft_class_sizes_ *= stream.n_seen / self.soft_class_sizes_.sum()
        n_sweeps, held_out = len(done.trace.objective), stream.n_folds > 1
        stages = np.arange(1, n_sweeps + 1) if held_out else np.ones(n_sweeps, dtype=np.int64)
        self.log_posterior_ = np.append(self.log_posterior_, done.trace.objective)
        self.above_noise_ = np.append(self.above_noise_, done.trace.above_noise)
        self.stage_ = np.append(self.stage_, self.stage_[-1] + stages)
        self.iteration_resolution_ = np.append(self.iteration_resolution_, [self.resolution_] * n_sweeps)
        self.held_out_ = np.append(self.held_out_, [held_out] * n_sweeps)
        self.n_iter_ += n_sweeps

    # ---------------------------------------------------------------- use
    def _posteriors(self, X, function, *, warns=True, with_labels=False):
        """Apply `function` to the posterior of every block of X, Eq. (3.17), and join the results.

        Labels are those of the whole map, which knows more images. With `warns`, missing poses are told.
        """
        check_is_fitted(self)
        data = as_fitted(X, self, on_images=isinstance(self._space, ImageSpace))
        with memory_watched("Comparing particles with SMLClusterer's nodes"), single_blas_threads():
            blocks = self._space.blocks(data, self.cache_folder, self.n_jobs)
            if warns:
                warn_if_not_aligned(self, X)
            matchers = partial(self._matchers, blocks.layout)
            how = {"matchers": matchers(held_out=function is not most_probable)}
            if with_labels:
                how["whole"] = matchers(held_out=False)[0]
            return np.concatenate(list(map_posterior(function, blocks, **how, n_jobs=self.n_jobs)))

    def predict(self, X: Data) -> NDArray[Any]:
        """Class of each particle: its most probable node.

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`.

        Returns
        -------
        labels : ndarray of shape (n_images,)
        """
        return self._posteriors(X, most_probable)

    def predict_proba(self, X: Data) -> NDArray[Any]:
        """Posterior probability of every node, with templates that the image is no part of, Eq. (3.17).

        After a further chunk of `partial_fit`, and where no image is held out, it is that of Eq. (3.1), whose
        templates know the images learned from. Then it is too sure, all the more where the signal is faint.

        `predict` knows all images and now and then names another node than the most probable one here.

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`.

        Returns
        -------
        responsibilities : ndarray of shape (n_images, n_nodes)
            Rows sum to 1.
        """
        return self._posteriors(X, attrgetter("responsibilities"))

    def transform(self, X: Data) -> NDArray[Any]:
        """Latent position of each particle: its posterior mean, Eq. (3.7).

        The most probable position is ``latent_nodes_[predict(X)]``. On a ring or torus the mean is circular,
        and coordinates run from -1 to 1, which are one point; on a sphere positions are unit vectors, and the
        mean is the direction of the mean vector. A posterior that is spread evenly over all of a closed shape
        has no such mean: what is returned then says nothing.

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`.

        Returns
        -------
        positions : ndarray of shape (n_images, n_components)
            On a sphere (n_images, 3).
        """
        check_is_fitted(self)
        basis = self._manifold.basis
        means = self._posteriors(X, partial(mean_positions, places=basis.embedding))
        return basis.space.unembed(means)  # means are averages off the shape, Eq. (2.7)

    def assign(self, X: Data) -> Assignment:
        """Class, posterior probability of it, and latent position of each particle, in one pass over them.

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`.

        Returns
        -------
        assignment : Assignment
            A tuple ``(labels, posterior, positions)``.
        """
        check_is_fitted(self)
        basis = self._manifold.basis
        found = self._posteriors(X, partial(class_and_place, places=basis.embedding), with_labels=True)
        return Assignment(found[:, 0].astype(np.int64), found[:, 1], basis.space.unembed(found[:, 2:]))

    def score_samples(self, X: Data) -> NDArray[Any]:
        """Log likelihood of each particle, Eq. (2.5).

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`.

        Returns
        -------
        log_likelihood : ndarray of shape (n_images,)
            In nats, over all frequencies up to `max_resolution`.
        """
        return self._posteriors(X, attrgetter("log_evidence"))

    def score(self, X: Data, y: Any = None) -> float:
        """Mean log likelihood per particle, Eq. (3.9).

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`.
        y : None
            Ignored.

        Returns
        -------
        score : float
            Higher is better; compare models of the same `max_resolution` and `mask_diameter` alone. Outliers
            do not count: for cross-validation, screen the stack before.
        """
        return mean_without_outliers(self.score_samples(X), X)

    def inverse_transform(self, Z: ArrayLike) -> NDArray[Any]:
        """Images anywhere on the manifold, mu(s) of Eq. (2.2).

        Parameters
        ----------
        Z : array-like of shape (n, n_components)
            Latent positions as of `transform`; the nodes span [-1, 1] along every axis. Directions (n, 3) of
            any length on a sphere.

        Returns
        -------
        images : ndarray of shape (n, D, D)
            Vectors (n, n_features) for a model of vectors.
        """
        check_is_fitted(self)
        positions = check_array(Z, dtype=np.float64, input_name="Z")  # (n, n_components)
        n_coordinates = self.latent_nodes_.shape[1]
        if positions.shape[1] != n_coordinates:
            raise ValueError(
                f"Z has shape {positions.shape}, expected (n, {n_coordinates}): latent positions as of "
                "transform. Give one column for each latent dimension."
            )
        with single_blas_threads():
            return self._space.to_data(self._manifold.basis.at(positions) @ self.weights_)

    def sample(
        self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Draw particles from the model: a node, Eq. (2.4), its template and noise, Eq. (1.3); the CTF is 1.

        Parameters
        ----------
        n_samples : int, default=1
            How many.
        random_state : int, RandomState instance or None, default=None
            Seed.

        Returns
        -------
        X : ndarray of shape (n_samples, D, D)
            Images, without frequencies beyond `max_resolution`; vectors for a model of vectors.
        labels : ndarray of shape (n_samples,)
            Node that each was drawn from.
        """
        check_is_fitted(self)
        check_number("n_samples", n_samples, owner="SMLClusterer.sample", minimum=1, integer=True)
        rng, space = check_random_state(random_state), self._space
        nodes = rng.randint(len(self.latent_nodes_), size=n_samples)
        deviation = np.sqrt(self.noise_variance_)[space.shell]  # (P,)
        noise = rng.standard_normal((n_samples, len(deviation))) * deviation
        with single_blas_threads():
            return space.to_data(self._manifold.templates[nodes] + noise), nodes

    @property
    def _n_features_out(self):
        return self.latent_nodes_.shape[1]

    # ---------------------------------------------------------------- parameters
    def _check_parameters(self):
        """Raise unless every parameter is one that `fit` can use."""
        self._basis(on_images=False)
        for name in ("max_resolution", "min_resolution", "mask_diameter"):
            check_number(name, getattr(self, name), owner=self, allow_none=True, minimum=0.0, inclusive=False)
        if not isinstance(self.cache_folder, str | os.PathLike | None):
            raise TypeError(
                f"The parameter 'cache_folder' of SMLClusterer is {self.cache_folder!r}, expected the path "
                "of a folder, or None."
            )
        check_number("max_iter", self.max_iter, owner=self, minimum=1, integer=True)
        check_number("tol", self.tol, owner=self, minimum=0.0)
        if isinstance(self.alpha, str):
            check_choice("alpha", self.alpha, ("auto",), owner=self)
        else:
            check_number("alpha", self.alpha, owner=self, minimum=0.0)
        check_choice("mirror", self.mirror, (True, False), owner=self)
        check_choice("noise", self.noise, NOISE_MODELS, owner=self)
        check_choice("algorithm", self.algorithm, ALGORITHMS, owner=self)
        check_choice("init", self.init, ("pca", "random"), owner=self)

    def _basis(self, *, on_images):
        """Nodes and basis functions that the parameters ask for."""
        as_paper = self.algorithm == "paper"
        shapes = self.n_clusters, self.n_basis, self.topology, self.n_components
        basis = latent_basis(*shapes, is_dense=on_images and not as_paper)
        return dataclasses.replace(basis, has_paper_prior=as_paper)

    @property
    def _how(self):
        """How noise variances are pooled, Eq. (3.4), and what products take."""
        noise = "white" if self.algorithm == "paper" else self.noise
        return {"noise": noise, "dtype": self._space.dtype, "n_jobs": self.n_jobs}
