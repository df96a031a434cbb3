"""DeepClusterer: classes first, then sub-classes inside each by its population."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin, clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import euclidean_distances
from sklearn.utils import check_random_state, get_tags
from sklearn.utils.validation import check_is_fitted

from sklearn_cryoem._core.memory import memory_watched
from sklearn_cryoem._core.parallel import ordered_map
from sklearn_cryoem._core.progress import progress
from sklearn_cryoem._core.validation import ParticleDataWarning, check_number
from sklearn_cryoem.estimators._common import (
    Data,
    Path,
    as_fitted,
    as_screened,
    as_stack,
    as_vectors,
    is_images,
    warn_and_keep,
    warn_if_mask_too_tight,
)
from sklearn_cryoem.estimators.map_aligner import MAPAligner
from sklearn_cryoem.estimators.model_files import checkpoint_of, fit_steps_once
from sklearn_cryoem.estimators.sml_clusterer import SMLClusterer
from sklearn_cryoem.manifold.topology import TOPOLOGIES
from sklearn_cryoem.metrics import effective_count
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.classes import steps_of
from sklearn_cryoem.particles.feature_space import MIN_WORKING_BOX, at_box

SUBCLASSES_OF_FIRST = 10  # that an average first class is to be divided into
MAX_FIRST_CLASSES = 50  # more views are told apart by the sub-classes; also nodes that are united to fewer


class DeepClusterer(ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin, BaseEstimator):
    """Classify particles, then divide each class by statistical manifold learning inside it.

    The second strategy of deep clustering: classes of a first classification are often mixed. The particles
    of each, in the poses that the first classification found, get a manifold of their own, with as many nodes
    as its population can feed; every node is a sub-class. What a manifold of all views has no node to spare
    for comes out here.

    Parameters
    ----------
    first : MAPAligner, SMLClusterer, Pipeline or None, default=None
        The first classification; a Pipeline ends in one of the two. If it is fitted already (or frozen by
        `sklearn.frozen.FrozenEstimator`, which survives `clone`), it is used as it is; otherwise a copy is
        fitted. By default a MAPAligner for particles without poses, an SMLClusterer for those that have
        them, as after a MAPAligner in a Pipeline, of a class for every ten sub-classes' worth of images:
        n // (10 * images_per_subclass) classes, 2 to 50. Those of the SMLClusterer, which is like `second` if
        that is one, are united from up to 50 nodes, Eq. (4.9), so that a minority of some per cent stays
        together.
    second : SMLClusterer, Pipeline or None, default=None
        Copied for every class, with `n_clusters` by the rule below, and `n_jobs` and `random_state` those of
        this estimator. By default ``SMLClusterer()``. A Pipeline ends in one:
        ``make_pipeline(EigenImages(6), SMLClusterer())`` divides each class along its own eigen-images, which
        serves classes of some hundred images best; averages are then those of the coordinates, back
        in images, and have no resolution.
    images_per_subclass : int, default=30
        A class of n images is divided into n // images_per_subclass sub-classes, at least 2, rounded to the
        nearest grid. Empty nodes are not sub-classes; particles assigned to one later go to the nearest
        occupied node.
    min_class_size : int or None, default=None
        Classes of fewer images are kept whole: one sub-class, with the average of the first classification.
        By default twice `images_per_subclass`.
    max_subclasses : int or None, default=None
        Sub-classes of one class, at most.
    checkpoint : path-like or None, default=None
        Folder where the state of the fits under way is kept, and the classes that are done: the same fit goes
        on from there after it was killed or interrupted, and ends with the same bits. Files go when the fit
        has ended. Needs `random_state`, and that of a `first` of one's own, to be an int.
    n_jobs : int or None, default=None
        Classes that are divided at a time; a `first` of one's own has its own. Results are the same bits for
        any number.
    random_state : int, RandomState instance or None, default=None
        Seed of the starts inside the classes (and of the default `first`).
    verbose : int, default=0
        1 shows progress.

    Attributes
    ----------
    labels_ : ndarray of shape (n_images,)
        Flat class of each training image: sub-classes are numbered through, class by class.
    first_labels_ : ndarray of shape (n_images,)
        Class of the first classification of each training image: ``parent_label_[labels_]``. Nodes of the
        default SMLClusterer are united to these.
    parent_label_ : ndarray of shape (n_classes,)
        First class that each flat class is part of.
    children_ : list of ndarray
        Flat classes of each first class.
    tree_ : dict
        The same with sizes and latent positions, in plain lists and numbers, ready for ``json.dumps``.
    class_averages_ : ndarray of shape (n_classes, D, D)
        Average of each flat class; vectors for plain input.
    class_resolution_ : ndarray of shape (n_classes,)
        Resolution of each, of the clustering that it comes from; infinite where there is none. In Angstrom
        (pixels where the pixel size is unknown); NaN for vectors. Pictures and files have what
        `class_quality` measures.
    class_sizes_ : ndarray of shape (n_classes,)
        Training images of each flat class, but for outliers (see `ParticleStack.screen`), which
        have labels and took no part in the fit.
    n_effective_clusters_ : float
        exp(entropy of `class_sizes_`), Eq. (3.8).
    first_ : estimator
        The fitted first classification.
    clusterers_ : list of SMLClusterer, Pipeline or None
        That of each first class; None for those kept whole.
    poses_ : Poses or None
        Poses of the training images that the classes were divided with; None where they had none.
    converged_ : bool
        Whether all manifolds did.
    n_features_in_ : int
        Number of pixels of an image, or of features of a vector.

    Notes
    -----
    A particle is handed down to its most probable first class alone: what the first classification puts into
    the wrong class stays there, in a sub-class of its own at best. Images are read class by class; a stack of
    files stays in its files.

    Examples
    --------
    >>> from sklearn_cryoem import DeepClusterer, SMLClusterer
    >>> from sklearn_cryoem.datasets import aligned_to_truth, make_particles
    >>> stack = aligned_to_truth(make_particles("ribosome", 200, box=24, snr=1.0, random_state=0))
    >>> deep = DeepClusterer(SMLClusterer((2, 2)), images_per_subclass=20, random_state=0).fit(stack)
    >>> len(deep.children_), deep.predict(stack[:5]).shape
    (4, (5,))
    """

    def __init__(
        self,
        first: BaseEstimator | None = None,
        second: BaseEstimator | None = None,
        *,
        images_per_subclass: int = 30,
        min_class_size: int | None = None,
        max_subclasses: int | None = None,
        checkpoint: Path | None = None,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.first = first
        self.second = second
        self.images_per_subclass = images_per_subclass
        self.min_class_size = min_class_size
        self.max_subclasses = max_subclasses
        self.checkpoint = checkpoint
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        takes = get_tags(SMLClusterer() if self.first is None else self.first).input_tags
        tags.input_tags.two_d_array = takes.two_d_array
        tags.input_tags.three_d_array = True
        return tags

    # ---------------------------------------------------------------- learning
    def fit(self, X: Data, y: Any = None) -> Self:
        """Classify particles, then divide their classes.

        Parameters
        ----------
        X : ParticleStack, array-like of shape (n_images, D, D) or (n_samples, n_features)
            Particles; aligned ones if `first` does not align.
        y : None
            Ignored.

        Returns
        -------
        self : DeepClusterer
        """
        self._check_parameters()
        self._fit_warnings = []
        on_images = is_images(X)
        data = as_stack(X, self) if on_images else as_vectors(X, self, reset=True)
        outlier = np.zeros(len(data), dtype=bool)
        if on_images:
            self.n_features_in_ = data.box**2
            self._warn_if_mask_too_tight(data)
            data, _ = as_screened(data, self)
            outlier = data.outlier
        checkpoint_of(self, data)  # raises what stands in the way of a checkpoint before anything is fitted
        rng = check_random_state(self.random_state)
        common = {"n_jobs": self.n_jobs, "random_state": rng.randint(2**31 - 1), "verbose": self.verbose}
        first = self.first
        if first is None:
            first = default_first(data, self.images_per_subclass, self.second, **common)
        self.first_, data, nodes, checkpoints = fit_first(first, data, self.checkpoint)
        n_first = None if self.first is not None else n_first_classes(len(data), self.images_per_subclass)
        self._first_of_node, *classes = classes_of(self.first_, n_first)
        self.first_labels_ = self._first_of_node[nodes]
        if on_images:  # a first classification of one's own may have lost outliers; averages share its box
            self._box = classes[0].shape[-1]
            data = (data if data.box <= MIN_WORKING_BOX else data.downsample(self._box)).with_outliers(
                outlier
            )
        rows = [np.flatnonzero((self.first_labels_ == k) & ~outlier) for k in range(len(classes[0]))]
        rule = self.images_per_subclass, self.min_class_size, self.max_subclasses
        self.clusterers_, of_classes = fit_subclasses(
            SMLClusterer() if self.second is None else self.second,
            data,
            rows,
            [n_subclasses(len(members), *rule) for members in rows],
            rng.randint(2**31 - 1, size=len(rows)),
            folder=self.checkpoint,
            n_jobs=self.n_jobs,
            verbose=self.verbose,
        )
        for name, value in flat_classes(self.clusterers_, rows, len(data), *classes).items():
            setattr(self, name, value)
        if outlier.any():
            found = self._in_own_classes(data[outlier], self.first_labels_[outlier], "predict")
            self.labels_[outlier] = self._flat_labels(np.count_nonzero(outlier), found)
        self.poses_ = data.poses if on_images else None
        for checkpoint in [*checkpoints, *of_classes]:
            checkpoint.remove()
        self._warn_unless_converged()
        return self

    def _warn_if_mask_too_tight(self, stack):
        """Warn about the mask of the sub-classes, unless the first classification will warn about it."""
        given = {} if self.first is None else self.first.get_params()
        first_masks = [value for name, value in given.items() if name.endswith("mask_diameter")]
        masked = [step for step in steps_of(self.second) if hasattr(step, "mask_diameter")]
        if masked and masked[0].mask_diameter not in first_masks:
            warn_if_mask_too_tight(masked[0], stack)

    def _check_parameters(self):
        name = type(self).__name__
        last = steps_of(self.first)[-1] if self.first is not None else None
        if isinstance(self.first, type) or (last is not None and not hasattr(last, "predict")):
            is_class = isinstance(self.first, type)
            found = f"the class {self.first.__name__}" if is_class else f"a {type(last).__name__}"
            raise TypeError(
                f"The parameter 'first' of {name} is {found}, expected an estimator that finds classes. "
                "Give a MAPAligner, an SMLClusterer, or a Pipeline that ends in one."
            )
        if self.second is not None and not isinstance(steps_of(self.second)[-1], SMLClusterer):
            raise TypeError(
                f"The parameter 'second' of {name} is a {type(self.second).__name__}, expected an "
                "SMLClusterer, a Pipeline that ends in one, or None. Put everything else into first=."
            )
        self._check_late_steps()
        counts = {"owner": self, "integer": True}
        check_number("images_per_subclass", self.images_per_subclass, minimum=1, **counts)
        check_number("min_class_size", self.min_class_size, minimum=2, allow_none=True, **counts)
        check_number("max_subclasses", self.max_subclasses, minimum=2, allow_none=True, **counts)

    def _check_late_steps(self):
        """Raise now what an SMLClusterer would refuse only once the first classes are found."""
        late = [] if self.first is None or is_prefit(self.first) else steps_of(self.first)[1:]
        if self.second is not None:
            *before, last = steps_of(self.second)
            late += [*before, clone(last).set_params(n_clusters=SMLClusterer().n_clusters)]  # set later
        for step in late:
            if isinstance(step, SMLClusterer):
                step.validate()

    def _warn_unless_converged(self):
        fitted = [steps_of(clusterer)[-1] for clusterer in self.clusterers_ if clusterer is not None]
        n_stopped = sum(not clusterer.converged_ for clusterer in fitted)
        self.converged_ = n_stopped == 0
        if n_stopped:
            warn_and_keep(
                self,
                f"DeepClusterer: {n_stopped} of {len(fitted)} manifolds stopped at "
                f"max_iter={fitted[0].max_iter} before they converged. Raise max_iter or tol of second=.",
            )

    # ---------------------------------------------------------------- use
    def predict(self, X: Data) -> NDArray[Any]:
        """Flat class of each particle: the sub-class of its class.

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`. New particles are aligned and classified by `first_`, then by the clusterer of their
            class.

        Returns
        -------
        labels : ndarray of shape (n_images,)
        """
        return self._flat_labels(*self._classified(X, "predict"))

    def predict_proba(self, X: Data) -> NDArray[Any]:
        """Posterior probability of every flat class, given the class that `first_` puts a particle in.

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`.

        Returns
        -------
        responsibilities : ndarray of shape (n_images, n_classes)
            Rows sum to 1 and are 0 outside the sub-classes of the particle's own first class.
        """
        n_samples, found = self._classified(X, "predict_proba")
        posterior = np.zeros((n_samples, len(self.parent_label_)), dtype=self.class_averages_.dtype)
        for k, rows, part in found:
            if part is None:
                posterior[rows, self.children_[k][0]] = 1.0
                continue
            for node, subclass in enumerate(self._subclass_of_node[k]):
                posterior[rows, self.children_[k][subclass]] += part[:, node]
        return posterior

    def transform(self, X: Data) -> NDArray[Any]:
        """Latent position of each particle on the manifold of its own first class, Eq. (3.7).

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`.

        Returns
        -------
        positions : ndarray of shape (n_images, n_components)
            Comparable inside a first class alone; 0 in classes kept whole.
        """
        n_samples, found = self._classified(X, "transform")
        positions = np.zeros((n_samples, self._n_features_out))
        for _, rows, part in found:
            if part is not None:
                positions[rows] = part
        return positions

    def align(self, X: Data) -> ParticleStack:
        """Particles with the poses that `first_` finds for them.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Particles of the same box.

        Returns
        -------
        stack : ParticleStack

        Raises
        ------
        ValueError
            If `first_` does not align.
        """
        check_is_fitted(self)
        if not aligns(self.first_):
            raise ValueError(
                f"first_ is a {type(self.first_).__name__}, which does not align. Align the particles before "
                "them with a MAPAligner, or give it as first=."
            )
        return classify_new(self.first_, self._checked(X))[0]

    def _classified(self, X, method):
        """Number of particles, and what `_in_own_classes` finds for them in the classes of `first_`."""
        check_is_fitted(self)
        data, first_labels = self._in_first_classes(self._checked(X))
        return len(data), self._in_own_classes(data, first_labels, method)

    def _in_first_classes(self, data):
        """Particles as `first_` aligns them, and their first classes."""
        data, nodes = classify_new(self.first_, data)
        data = at_box(data, self._box) if isinstance(data, ParticleStack) else data
        return data, self._first_of_node[nodes]

    def _in_own_classes(self, data, first_labels, method):
        """Apply a method of the clusterer of its own first class to each particle.

        Returns
        -------
        list of (class, rows, result)
            Of the first classes that hold particles; the result is None for classes kept whole.
        """
        classes = [int(k) for k in np.unique(first_labels)]
        rows = [np.flatnonzero(first_labels == k) for k in classes]
        tasks = zip([self.clusterers_[k] for k in classes], rows, strict=True)
        results = ordered_map(partial(_apply, data, method), list(tasks), n_jobs=self.n_jobs)
        return list(zip(classes, rows, results, strict=True))

    def _flat_labels(self, n_samples, found):
        """Flat class of each particle from the nodes that `_in_own_classes` found."""
        labels = np.empty(n_samples, dtype=np.int64)
        for k, rows, nodes in found:
            labels[rows] = self.children_[k][0 if nodes is None else self._subclass_of_node[k][nodes]]
        return labels

    def _checked(self, X):
        """X as a stack or as vectors, whichever was fitted."""
        return as_fitted(X, self, on_images=self.class_averages_.ndim == 3)

    @property
    def _n_features_out(self):
        fitted = [steps_of(clusterer)[-1] for clusterer in self.clusterers_ if clusterer is not None]
        return fitted[0].latent_nodes_.shape[1] if fitted else 1


def _apply(data, method, task):
    clusterer, rows = task
    return None if clusterer is None else getattr(clusterer, method)(data[rows])


# ---------------------------------------------------------------- the first classification
def n_first_classes(n_samples, images_per_subclass):
    """First classes for so many particles: few enough for each to have ten sub-classes, 2 to 50."""
    largest = max(1, min(MAX_FIRST_CLASSES, n_samples // 2))
    return int(min(max(n_samples // (SUBCLASSES_OF_FIRST * images_per_subclass), 2), largest))


def default_first(data, images_per_subclass, second, **common):
    """A MAPAligner for images without poses; `second`, or an SMLClusterer, for aligned ones and vectors."""
    n_classes = n_first_classes(len(data), images_per_subclass)
    if is_images(data) and data.poses is None:
        return MAPAligner(n_classes, **common)
    first = clone(second) if isinstance(second, SMLClusterer) else SMLClusterer()
    n_nodes = min(max(n_classes, len(data) // images_per_subclass), MAX_FIRST_CLASSES)
    return first.set_params(n_clusters=n_nodes, **common)


def is_prefit(first):
    """Whether `first` comes fitted, or frozen by `sklearn.frozen.FrozenEstimator`."""
    if isinstance(first, FrozenEstimator):
        return True
    try:
        check_is_fitted(first)
    except NotFittedError:
        return False
    return True


def fit_first(first, data, folder):
    """Fit the first classification, unless it is fitted already.

    Parameters
    ----------
    first : estimator
        Left untouched: a copy is fitted.
    data : ParticleStack or ndarray of shape (n_samples, n_features)
        Training data.
    folder : path-like or None
        Where a fit that is under way keeps its state, and one that is done its result.

    Returns
    -------
    fitted : estimator
    data : ParticleStack or ndarray
        With the poses that `fitted` found, if it aligns.
    labels : ndarray of shape (n_samples,), int
    checkpoints : list of Checkpoint
        May be removed when everything is done.
    """
    if is_prefit(first):
        fitted = first.estimator if isinstance(first, FrozenEstimator) else first
        return fitted, *classify_new(fitted, data), []
    fitted, checkpoints = fit_steps_once(clone(first), data, folder, _aligned_training)
    *before, last = steps_of(fitted)
    for step in before:
        data = _aligned_training(step, data)
    return fitted, _aligned_training(last, data, is_last=True), last.labels_, checkpoints


def classify_new(fitted, data):
    """Particles as a fitted estimator aligns them, and their classes; any particles.

    Parameters
    ----------
    fitted : estimator
        Fitted MAPAligner, SMLClusterer or Pipeline.
    data : ParticleStack or ndarray of shape (n_samples, n_features)
        The particles.

    Returns
    -------
    data : ParticleStack or ndarray
    labels : ndarray of shape (n_samples,), int
    """
    *before, last = steps_of(fitted)
    for step in before:
        data = step.transform(data)
    labels = last.predict(data)
    return (last.transform(data) if aligns(last) else data), labels


def aligns(fitted):
    """Whether a fitted estimator found poses, so that its `transform` returns particles with them."""
    return any(hasattr(step, "poses_") for step in steps_of(fitted))


def classes_of(fitted, n_classes=None):
    """Class averages and resolutions of a fitted estimator, whose nodes are united to `n_classes`.

    Few nodes would spread a minority over classes that are each too large to give it a sub-class.

    Returns
    -------
    class_of_node : ndarray of shape (n_nodes,), int
        What the labels of the estimator mean.
    averages : ndarray of shape (n_classes, D, D) or (n_classes, n_features)
        Of united nodes, the mean by their sizes.
    resolution : ndarray of shape (n_classes,)
        Of united nodes, that of the largest.
    """
    last = steps_of(fitted)[-1]
    if not hasattr(last, "class_averages_"):
        raise TypeError(
            f"{type(last).__name__} has no class_averages_ after its fit, which classes kept whole are shown "
            "by. Give first= a MAPAligner, an SMLClusterer, or a Pipeline that ends in one."
        )
    averages, resolution = last.class_averages_, last.class_resolution_
    if n_classes is None or n_classes >= len(averages) or aligns(fitted):
        return np.arange(len(averages)), averages, resolution
    class_of_node = united(last.cluster_centers_.reshape(len(averages), -1), last.class_sizes_, n_classes)
    members = class_of_node == np.arange(class_of_node.max() + 1)[:, None]  # (n_classes, n_nodes)
    share = (members * last.class_sizes_) / (members @ last.class_sizes_)[:, None]
    averages = np.tensordot(share, averages, axes=1).astype(averages.dtype)
    return class_of_node, averages, resolution[share.argmax(axis=1)]


def united(templates, sizes, n_classes):
    """Class of each node: two by two they are united where the likelihood loses least, as in Eq. (4.9).

    Parameters
    ----------
    templates : ndarray of shape (n_nodes, n_features)
        Of noise that is the same in all features.
    sizes : ndarray of shape (n_nodes,)
        Images of each; nodes without any join the nearest class.
    n_classes : int
        Classes that are left, if so many nodes have images.
    """
    means, mass = templates.astype(np.float64), sizes.astype(np.float64)
    class_of_node, used = np.arange(len(sizes)), np.flatnonzero(sizes)
    while len(used) > n_classes:
        weight = mass[used]
        loss = euclidean_distances(means[used], squared=True) / (1.0 / weight + 1.0 / weight[:, None])
        np.fill_diagonal(loss, np.inf)
        first, second = np.sort(used[list(np.unravel_index(loss.argmin(), loss.shape))])
        means[first] = np.average(means[[first, second]], axis=0, weights=mass[[first, second]])
        mass[first] += mass[second]
        class_of_node[class_of_node == second] = first
        used = used[used != second]
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        class_of_node[empty] = used[euclidean_distances(means[empty], means[used]).argmin(axis=1)]
    return np.unique(class_of_node, return_inverse=True)[1]


def _aligned_training(step, data, *, is_last=False):
    """Training data as a step hands them on; an aligner knows their poses without another search."""
    if hasattr(step, "poses_"):
        return data.with_poses(step.poses_)
    return data if is_last else step.transform(data)


# ---------------------------------------------------------------- the sub-classes
def n_subclasses(size, images_per_subclass, min_class_size, max_subclasses):
    """Sub-classes of a class of `size` images: one for every `images_per_subclass`, 1 if it stays whole.

    Parameters
    ----------
    size : int
        Images of the class.
    images_per_subclass : int
        How many images a sub-class should have, on average.
    min_class_size : int or None
        Smaller classes stay whole; None for twice `images_per_subclass`.
    max_subclasses : int or None
        At most so many.
    """
    smallest = 2 * images_per_subclass if min_class_size is None else min_class_size
    if size < max(smallest, 2):
        return 1
    largest = size if max_subclasses is None else min(size, max_subclasses)
    return int(min(max(size // images_per_subclass, 2), largest))


def fit_subclasses(second, data, rows, counts, seeds, *, folder, n_jobs, verbose):
    """Fit a copy of `second` to every class that is divided.

    Parameters
    ----------
    second : SMLClusterer or Pipeline that ends in one
        Copied for every class, with its number of classes set.
    data : ParticleStack or ndarray
        All particles, aligned.
    rows : list of ndarray
        Particles of each class.
    counts : list of int
        Sub-classes of each; 1 leaves it whole.
    seeds : ndarray of shape (n_classes,), int
        Seed of each.
    folder : path-like or None
        Where classes under way keep their states, and those that are done their results.
    n_jobs : int or None
        Classes fitted at a time. A class that is alone gets all workers.
    verbose : int
        1 shows progress.

    Returns
    -------
    clusterers : list of SMLClusterer, Pipeline or None
        None for classes that stay whole.
    checkpoints : list of Checkpoint
        May be removed when everything is done.
    """
    divided = sorted((k for k in range(len(rows)) if counts[k] > 1), key=lambda k: -len(rows[k]))
    inner = n_jobs if len(divided) == 1 else 1  # workers are not nested
    tasks = [(_copy_of(second, counts[k], inner, int(seeds[k])), rows[k]) for k in divided]
    clusterers, checkpoints = [None] * len(rows), []
    bar = progress(len(tasks), "DeepClusterer: classes", verbose=verbose)
    with memory_watched("DeepClusterer.fit", folder), bar, warnings.catch_warnings():
        # the caller gives each of these warnings once for all classes
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", r"(?s).*\[(box-too-tight|no-poses)\]$", ParticleDataWarning)
        fits = ordered_map(partial(_fit_class, data, folder), tasks, n_jobs=1 if len(tasks) == 1 else n_jobs)
        for k, (fitted, of_class) in zip(divided, fits, strict=True):
            clusterers[k] = fitted
            checkpoints += of_class
            bar.update()
    return clusterers, checkpoints


def _fit_class(data, folder, task):
    clusterer, rows = task
    return fit_steps_once(clusterer, data[rows], folder, _aligned_training)


def _copy_of(second, n_clusters, n_jobs, seed):
    """Copy of `second` for one class."""
    copy = clone(second)
    for step in steps_of(copy):
        wanted = {"n_jobs": n_jobs, "random_state": seed}
        step.set_params(**{name: value for name, value in wanted.items() if name in step.get_params()})
    steps_of(copy)[-1].set_params(n_clusters=n_clusters)
    return copy


def subclasses_of_nodes(fitted):
    """Sub-class of each node: nodes without images are none, and belong to that of the nearest other node.

    Parameters
    ----------
    fitted : SMLClusterer, Pipeline or None
        Of one class.

    Returns
    -------
    subclass_of_node : ndarray of shape (n_nodes,), int
        Numbered in the order of the nodes; one for a class that stays whole.
    occupied : ndarray of shape (n_subclasses,), int
        Nodes that have images.
    """
    if fitted is None:
        return np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    last = steps_of(fitted)[-1]
    occupied = np.unique(last.labels_)
    embedded = TOPOLOGIES[last.topology].embed(last.latent_nodes_)  # where distances cross the seam of a ring
    offset = embedded[:, None] - embedded[occupied]  # (n_nodes, n_subclasses, E)
    return np.square(offset).sum(axis=2).argmin(axis=1), occupied


def averages_of(fitted, occupied):
    """Averages and resolutions of the nodes that have images, in the space of the data."""
    last = steps_of(fitted)[-1]
    averages = last.class_averages_[occupied]
    if fitted is not last:
        averages = fitted[:-1].inverse_transform(averages)
    return averages, last.class_resolution_[occupied]


def flat_classes(clusterers, rows, n_samples, averages, resolution):
    """Number the sub-classes through: what DeepClusterer learns of them, by the names of its attributes.

    Parameters
    ----------
    clusterers : list of SMLClusterer, Pipeline or None
        Of each first class.
    rows : list of ndarray
        Particles of each first class that its clusterer learned from.
    n_samples : int
        Number of particles; those in none of `rows` get the label -1.
    averages, resolution : ndarrays
        Of the first classes: those of the ones that stay whole.
    """
    subclasses, occupied = zip(*map(subclasses_of_nodes, clusterers), strict=True)
    n_of_class = [len(nodes) for nodes in occupied]
    starts = np.cumsum([0, *n_of_class])
    labels = np.full(n_samples, -1)
    found = []
    for k, (fitted, members) in enumerate(zip(clusterers, rows, strict=True)):
        labels[members] = starts[k] + (0 if fitted is None else subclasses[k][steps_of(fitted)[-1].labels_])
        whole = averages[k][None], resolution[k : k + 1]
        found.append(whole if fitted is None else averages_of(fitted, occupied[k]))
    sizes = np.bincount(labels[labels >= 0], minlength=starts[-1])
    children = [np.arange(start, start + n) for start, n in zip(starts[:-1], n_of_class, strict=True)]
    return {
        "labels_": labels,
        "parent_label_": np.repeat(np.arange(len(rows)), n_of_class),
        "children_": children,
        "class_averages_": np.concatenate([part for part, _ in found]),
        "class_resolution_": np.concatenate([part for _, part in found]),
        "class_sizes_": sizes,
        "n_effective_clusters_": effective_count(sizes),
        "tree_": describe_tree(clusterers, rows, children, sizes, occupied),
        "_subclass_of_node": list(subclasses),  # of each first class, (n_nodes,)
    }


def describe_tree(clusterers, rows, children, sizes, occupied):
    """The classes and their sub-classes in plain lists and numbers, ready for JSON."""
    classes = []
    for k, fitted in enumerate(clusterers):
        last = None if fitted is None else steps_of(fitted)[-1]
        subclasses = [{"label": int(label), "n_images": int(sizes[label])} for label in children[k]]
        if last is not None:
            for subclass, position in zip(subclasses, last.latent_nodes_[occupied[k]], strict=True):
                subclass["latent_position"] = [float(value) for value in position]
        classes.append(
            {
                "first_class": k,
                "n_images": len(rows[k]),
                "is_whole": fitted is None,
                "grid_shape": [1] if last is None else [int(side) for side in last.grid_shape_],
                "topology": "grid" if last is None else last.topology,
                "subclasses": subclasses,
            }
        )
    return {"n_images": int(sizes.sum()), "n_classes": len(sizes), "classes": classes}
