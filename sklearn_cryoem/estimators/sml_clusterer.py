"""SMLClusterer: classes and latent positions of aligned particles on a manifold."""

from __future__ import annotations

import logging
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin, clone
from sklearn.utils import check_random_state

from sklearn_cryoem._core.memory import memory_watched
from sklearn_cryoem._core.parallel import single_blas_threads
from sklearn_cryoem.estimators._checkpoint import (
    FRAMES,
    TakesCallbacks,
    checkpoint_of,
    warn_and_keep,
    with_callbacks,
)
from sklearn_cryoem.estimators._inputs import (
    Data,
    Path,
    as_screened,
    as_stack,
    as_vectors,
    is_images,
    warn_if_few_distinct_vectors,
    warn_if_mask_too_tight,
    warn_if_not_aligned,
    without_outliers,
)
from sklearn_cryoem.estimators._sml_fit import learn, manifold_attributes, summarise
from sklearn_cryoem.estimators._sml_noise import noise_attributes
from sklearn_cryoem.estimators._sml_parameters import check_parameters, latent_basis
from sklearn_cryoem.estimators._sml_space import ImageSpace, VectorSpace
from sklearn_cryoem.estimators._sml_stream import ManifoldStream
from sklearn_cryoem.estimators._sml_use import ManifoldPrediction, most_probable

logger = logging.getLogger(__name__)

FEWEST_TO_COLLAPSE = 20  # nodes
COLLAPSED = 2.0  # effective classes: few distinct views may leave most nodes empty, but not all but one


class SMLClusterer(
    ManifoldStream,
    TakesCallbacks,
    ManifoldPrediction,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
    BaseEstimator,
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
        "sphere" lie, for example, views. A closed shape has no edge where classes pile up, but can start
        out folded where the data are not of its shape: compare by `score` on held-out particles.
    n_basis : "auto", int or tuple of int, default="auto"
        Number of Gaussian basis functions, or the shape of their grid; by default 0.8 of the nodes along each
        axis (0.64 of them on a sphere). Fewer make a stiffer manifold.
    basis_width : "auto" or float, default="auto"
        Standard deviation of the Gaussians in units of their spacing, by default 0.5 for images,
        and 0.75 for vectors or where `n_basis` is given (on a sphere the side of the square that
        has the area of one of them). From about 2 on the systems for the
        weights become singular where `alpha` does not hold them.
    alpha : "auto" or float, default="auto"
        Prior precision of the weights. By default one for each shell, from the power of the signal that the
        data hold, Eq. (3.11), measured once before the fit.
    n_folds : "auto" or int, default="auto"
        For up to 60 iterations images are compared with templates that the other folds alone have made,
        Eq. (3.12), over the shells that tell views apart, Eq. (3.15): small classes of noisy images otherwise
        hold on to the noise of their images. Ordinary iterations over all shells follow. By default ten
        folds, or four where classes have 40 images or more; 1 leaves it out. Vectors are never held out.
    noise : {"shell", "white", "group", "image"}, default="shell"
        One noise variance for each radial shell, or one for all, Eq. (3.4). With "group" the shells of each
        `noise_group` of the stack (micrographs, or optics groups) have noise of their own, with "image" each
        image has a factor of its own, measured once before the fit, Eq. (3.14).
    init : {"pca", "random"}, default="pca"
        Start on the plane of the first principal components, or with random weights.
    initial_resolution : float, default=40.0
        Images are compared up to this resolution first; frequencies then march up to `max_resolution`. In
        Angstrom (pixels where the pixel size is unknown); at least six Fourier shells are used.
    initial_temperature : float, default=1.0
        Above 1, posteriors begin flattened and are sharpened while the frequencies march. From about 3 a weak
        signal is lost at the start and the map collapses onto few classes. Vectors are not annealed.
    max_resolution : float or None, default=None
        Finest detail used, in Angstrom (pixels where the pixel size is unknown); by default all but Nyquist.
        Scores can be compared only between models with the same one.
    mask_diameter : float or None, default=None
        Diameter of the soft disc that holds the particle, in Angstrom (pixels where the pixel size is
        unknown); by default 0.9 of the box. Averages end there. Images are compared with them within 0.9 of
        the box, where the CTF spreads the particle; without a CTF within the disc, Eq. (3.16).
    class_average : {"soft", "hard"}, default="soft"
        Whether `class_averages_` weigh images by their posterior or count each for its own class, Eq. (3.6).
    position : {"mean", "mode"}, default="mean"
        Which latent position `transform` returns, Eq. (3.7).
    max_iter : int, default=100
        Largest number of EM iterations, marching included.
    tol : float, default=0.01
        Converged when an iteration gains less than this in the objective, in nats per image.
    checkpoint : path-like or None, default=None
        Folder where the state of a running fit is kept, every half minute: the same fit, known by its
        parameters, data and seed, goes on from there after it was killed, and ends with the same bits. The
        file goes when the fit has ended. Needs `random_state` to be an int.
    cache_folder : path-like or None, default=None
        Folder where the prepared (masked, aligned, transformed) features of images are kept, for those that
        do not fit into memory: made once instead of in each iteration, and read again by the next fit,
        `predict`, and workers and machines that see the folder. Their size is logged before anything is
        written, and must be free. Each set of images, poses and resolution has a sub-folder; delete it, or
        all, to have the room back. Of no use for vectors, which nothing is prepared of.
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
        without it. In Angstrom (pixels where the pixel size is unknown); NaN for vectors.
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
        Training images that are far out (see `ParticleStack.screen`): they have labels, and took no part in
        the fit. None for vectors.
    class_sizes_, soft_class_sizes_ : ndarray of shape (n_nodes,)
        Images of each class, and sums of their posteriors; of those that the fit learned from.
    information_share_ : float
        Share of the log likelihood that posteriors count, Eq. (3.17), so that they match how sure models of
        one half of the images are of the labels of the other: far below 1 where averages are noisy or images
        are not as the model has them. Labels and scores do not depend on it. 1 for vectors.
    n_effective_clusters_ : float
        exp(entropy of `class_sizes_`), Eq. (3.8).
    log_posterior_ : ndarray of shape (n_iter,)
        Objective (3.5) after each iteration, per image. It never falls within a stage. For cross-fitted
        iterations, each of which is a stage, the log likelihood of held-out images.
    stage_ : ndarray of shape (n_iter,)
        Number of the stage: frequencies or temperature changed where it does, and with them the objective.
    resolution_, temperature_ : ndarray of shape (n_iter,)
        Resolution limit and temperature of each iteration.
    held_out_ : ndarray of shape (n_iter,), bool
        Whether it is cross-fitted, its objective that of held-out images.
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
    Particles without poses are taken as aligned already: in silence those of an array, which has no place
    for poses, while of a stack it is questioned. Time goes as n_images * n_nodes * n_frequencies; memory does
    not depend on n_images but for the labels: blocks of images are prepared again in each iteration
    once 256 MB of them are kept, or read from `cache_folder`.

    Examples
    --------
    >>> from sklearn_cryoem import SMLClusterer
    >>> from sklearn_cryoem.datasets import aligned_to_truth, make_particles
    >>> stack = aligned_to_truth(make_particles("ribosome", 200, box=24, snr=1.0, random_state=0))
    >>> model = SMLClusterer((3, 3), max_iter=60).fit(stack)
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
        basis_width: str | float = "auto",
        alpha: str | float = "auto",
        n_folds: str | int = "auto",
        noise: str = "shell",
        init: str = "pca",
        initial_resolution: float = 40.0,
        initial_temperature: float = 1.0,
        max_resolution: float | None = None,
        mask_diameter: float | None = None,
        class_average: str = "soft",
        position: str = "mean",
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
        self.basis_width = basis_width
        self.alpha = alpha
        self.n_folds = n_folds
        self.noise = noise
        self.init = init
        self.initial_resolution = initial_resolution
        self.initial_temperature = initial_temperature
        self.max_resolution = max_resolution
        self.mask_diameter = mask_diameter
        self.class_average = class_average
        self.position = position
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

    def validate(self, X: Data) -> int:
        """Raise what `fit` would refuse, before a long alignment; nothing is fitted.

        Parameters
        ----------
        X : ParticleStack, array-like of shape (n_images, D, D) or (n_samples, n_features)
            What is to be fitted; it need not be aligned yet.

        Returns
        -------
        n_classes : int
            Number of classes that `fit` will find.

        Raises
        ------
        TypeError, ValueError
            As from `fit`.
        OSError
            If there is no room for the features of X in `cache_folder`.
        """
        trial = clone(self)
        check_parameters(trial)
        basis = latent_basis(trial)
        few, space = trial._open(X[:2])
        space.blocks(few)
        if self.cache_folder is not None and is_images(X):
            kept = space.blocks(as_stack(X, self)).kept_in(self.cache_folder, may_write=False)
            kept.check_room()
        return len(basis.nodes)

    # ---------------------------------------------------------------- learning
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
            self._learn(X, stacklevel=3 + FRAMES)
        return self

    def _learn(self, X, *, stacklevel):
        """Fit the manifold to X and return its feature blocks; warn at `stacklevel`."""
        check_parameters(self)
        self._fit_warnings = []
        given, self._space = self._open(X)
        kept = checkpoint_of(self, given)
        data, screened, self._usual = given, None, None
        if isinstance(self._space, ImageSpace):
            screened, self._usual = as_screened(given, self, stacklevel=stacklevel)
            data = without_outliers(screened, self)
            self._space = ImageSpace.of(data, self.max_resolution, self.mask_diameter, in_window=True)
        self._space, blocks = self._space.learn_noise(data, self.noise, self.n_jobs, self.cache_folder)
        self._store(noise_attributes(self._space, blocks))
        basis = latent_basis(self)
        if isinstance(self._space, VectorSpace):
            warn_if_few_distinct_vectors(self, data, len(basis.nodes), stacklevel=stacklevel)
        else:
            warn_if_mask_too_tight(self, data, stacklevel=stacklevel)
            warn_if_not_aligned(self, X, stacklevel=stacklevel)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        logger.info(
            "SMLClusterer, n_clusters=%s: a %s of %s nodes", self.n_clusters, self.topology, basis.grid_shape
        )
        fit, self._moments = learn(self, blocks, basis, self._space, np.random.default_rng(seed), kept)
        self._manifold, self._layout, self._stream = fit.manifold, blocks.layout, None
        self.n_images_seen_ = blocks.n_samples
        self._store_manifold(fit)
        self._store(summarise(self, blocks, self._manifold, self._space))
        self.outlier_ = None if screened is None else screened.outlier
        if screened is not None and self.outlier_.any():
            self._add_outliers(screened)
        if fit.interrupted:
            return blocks
        kept.remove()
        self._check_collapse(stacklevel + 1)
        if not fit.converged:
            gain = fit.trace.last_gain
            how = (
                f"gained {gain:.3g} nats per image, more than {self.tol:g}"
                if np.isfinite(gain)
                else "let finer detail in, so that its gain cannot be told"
            )
            warn_and_keep(
                self,
                f"SMLClusterer stopped at max_iter={self.max_iter} before it converged: the last iteration "
                f"{how}. Raise max_iter or tol.",
                stacklevel=stacklevel,
            )
        return blocks

    def _add_outliers(self, screened):
        """Labels, and noise if each image has its own, of the images that took no part in the fit."""
        labels = np.empty(len(screened), dtype=self.labels_.dtype)
        labels[~self.outlier_] = self.labels_
        labels[self.outlier_] = self._posteriors(screened[self.outlier_], most_probable, None)
        self.labels_ = labels
        if self.noise == "image":
            blocks = self._space.blocks(screened)
            self._store(noise_attributes(self._space, blocks))

    def _check_collapse(self, stacklevel):
        """A map of images whose many nodes are one class has lost the signal: it has not converged."""
        n_nodes = len(self.latent_nodes_)
        if self.alpha != "auto" or isinstance(self._space, VectorSpace) or n_nodes < FEWEST_TO_COLLAPSE:
            return  # whoever gives a number for alpha may want one template
        if self.n_effective_clusters_ < COLLAPSED:
            self.converged_ = False
            warn_and_keep(
                self,
                f"The map of SMLClusterer collapsed: its {n_nodes} classes are worth "
                f"{self.n_effective_clusters_:.1f} equal ones. Give more particles, or fewer "
                "n_clusters, or lower initial_temperature.",
                stacklevel=stacklevel,
            )

    def _open(self, X):
        """Check training data; return them with the feature space that they span."""
        if not is_images(X):
            vectors = as_vectors(X, self, reset=True)
            return vectors, VectorSpace.of(vectors)
        stack = as_stack(X, self)
        if len(stack) < 2:
            raise ValueError("SMLClusterer got 1 sample, expected at least 2. Give more particles.")
        self.n_features_in_ = stack.box**2
        return stack, ImageSpace.of(stack, self.max_resolution, self.mask_diameter, in_window=True)

    def _store_manifold(self, fit):
        basis, trace = fit.manifold.basis, fit.trace
        self.grid_shape_, self.latent_nodes_ = basis.grid_shape, basis.nodes
        self.node_pairs_ = basis.space.pairs(basis.grid_shape)
        self._store(manifold_attributes(fit.manifold, self._space))
        self.log_posterior_ = np.array(trace.objective)
        self.stage_, self.resolution_ = trace.stage, self._space.resolution(trace.n_shells)
        self.temperature_, self.held_out_ = np.array(trace.temperature), np.array(trace.is_held_out, bool)
        self.n_iter_, self.converged_ = len(trace.objective), fit.converged

    def _store(self, attributes):
        for name, value in attributes.items():
            setattr(self, name, value)
