"""DeepClusterer: classes first, then sub-classes inside each by its population."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin, clone
from sklearn.utils import check_random_state, get_tags

from sklearn_cryoem._core.validation import check_number
from sklearn_cryoem.estimators._checkpoint import checkpoint_of
from sklearn_cryoem.estimators._deep_first import (
    check_first,
    classes_of,
    classify_training,
    default_first,
    is_prefit,
    steps_of,
)
from sklearn_cryoem.estimators._deep_fit import fit_subclasses, n_subclasses, summarise
from sklearn_cryoem.estimators._deep_use import DescendsTree
from sklearn_cryoem.estimators._doubts import doubt, forget_doubts
from sklearn_cryoem.estimators._inputs import (
    Data,
    Path,
    as_screened,
    as_stack,
    as_vectors,
    is_images,
    question_mask,
)
from sklearn_cryoem.estimators._sml_parameters import check_parameters
from sklearn_cryoem.estimators.sml_clusterer import SMLClusterer


class DeepClusterer(
    DescendsTree, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin, BaseEstimator
):
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
        n // (10 * images_per_subclass) classes, 2 to 50.
    second : SMLClusterer, Pipeline or None, default=None
        Copied for every class, with `n_clusters` by the rule below, and `n_jobs` and `random_state` those of
        this estimator. By default ``SMLClusterer()``. A Pipeline ends in one:
        ``make_pipeline(EigenImages(6), SMLClusterer())`` divides each class along its own eigen-images, which
        serves classes of some hundred images best; averages are then those of the coordinates, back
        in images, and have no resolution.
    images_per_subclass : int, default=30
        A class of n images is divided into n // images_per_subclass sub-classes, at least 2, rounded to the
        nearest grid. Nodes that are left without images are no sub-classes: what comes to them later goes to
        the nearest one on the manifold that is.
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
        Class of the first classification of each training image: ``parent_label_[labels_]``.
    parent_label_ : ndarray of shape (n_classes,)
        First class that each flat class is part of.
    children_ : list of ndarray
        Flat classes of each first class.
    tree_ : dict
        The same with sizes and latent positions, in plain lists and numbers, ready for ``json.dumps``.
    class_averages_ : ndarray of shape (n_classes, D, D)
        Average of each flat class; vectors for plain input.
    class_resolution_ : ndarray of shape (n_classes,)
        Resolution of each; infinite where there is none. In Angstrom (pixels where the pixel size is
        unknown); NaN for vectors.
    class_sizes_ : ndarray of shape (n_classes,)
        Training images of each flat class, but for those that are far out (see `ParticleStack.screen`), which
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
        forget_doubts(self)
        data = as_stack(X, self) if is_images(X) else as_vectors(X, self, reset=True)
        if is_images(X):
            self.n_features_in_ = data.box**2
            self._question_mask(data)
        rng = check_random_state(self.random_state)
        seed = rng.randint(2**31 - 1)
        first = self.first
        if first is None:
            common = {"n_jobs": self.n_jobs, "random_state": seed, "verbose": self.verbose}
            first = default_first(data, self.images_per_subclass, **common)
        outlier = np.zeros(len(data), dtype=bool)
        if is_images(X):
            data, _ = as_screened(data, self, stacklevel=2)
            outlier = data.outlier
        checkpoint_of(self, data)  # raises what stands in the way of a checkpoint before anything is fitted
        self.first_, data, self.first_labels_, parts = classify_training(first, data, self.checkpoint)
        if is_images(X):
            data = data.with_outliers(outlier)  # a first classification of one's own may have lost them
        averages, resolution = classes_of(self.first_)
        rows = [np.flatnonzero((self.first_labels_ == k) & ~outlier) for k in range(len(averages))]
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
        for name, value in summarise(self.clusterers_, rows, len(data), averages, resolution).items():
            setattr(self, name, value)
        if outlier.any():
            found = self._ask_own_class(data[outlier], self.first_labels_[outlier], "predict")
            self.labels_[outlier] = self._leaves(np.count_nonzero(outlier), found)
        self.poses_ = data.poses if is_images(X) else None
        for part in [*parts, *of_classes]:
            part.remove()
        self._tell_convergence()
        return self

    def _question_mask(self, stack):
        """Question the mask of the sub-classes, unless the first classification will question the same."""
        second = self.second
        given = {} if self.first is None else self.first.get_params()
        first_masks = [value for name, value in given.items() if name.endswith("mask_diameter")]
        masked = [] if second is None else [s for s in steps_of(second) if hasattr(s, "mask_diameter")]
        if masked and masked[0].mask_diameter not in first_masks:
            question_mask(masked[0], stack, stacklevel=3)

    def _check_parameters(self):
        check_first(self.first, self)
        if self.second is not None and not isinstance(steps_of(self.second)[-1], SMLClusterer):
            raise TypeError(
                f"The parameter 'second' of {type(self).__name__} is a {type(self.second).__name__}, "
                "expected an SMLClusterer, a Pipeline that ends in one, or None. Put everything else before "
                "it, into first=."
            )
        self._check_late_steps()
        counts = {"owner": self, "integer": True}
        check_number("images_per_subclass", self.images_per_subclass, minimum=1, **counts)
        check_number("min_class_size", self.min_class_size, minimum=2, allow_none=True, **counts)
        check_number("max_subclasses", self.max_subclasses, minimum=2, allow_none=True, **counts)

    def _check_late_steps(self):
        """Raise now what an SMLClusterer would refuse only once the first classes are found."""
        late = [] if self.first is None or is_prefit(self.first) else list(steps_of(self.first)[1:])
        if self.second is not None:
            *before, last = steps_of(self.second)
            late += [*before, clone(last).set_params(n_clusters=SMLClusterer().n_clusters)]  # set later
        for step in late:
            if isinstance(step, SMLClusterer):
                check_parameters(step)

    def _tell_convergence(self):
        fitted = [steps_of(clusterer)[-1] for clusterer in self.clusterers_ if clusterer is not None]
        restless = sum(not clusterer.converged_ for clusterer in fitted)
        self.converged_ = restless == 0
        if restless:
            doubt(
                self,
                f"DeepClusterer: {restless} of {len(fitted)} manifolds stopped at "
                f"max_iter={fitted[0].max_iter} before they converged. Raise max_iter or tol of second=.",
                stacklevel=3,
            )

    @property
    def _n_features_out(self):
        fitted = [steps_of(clusterer)[-1] for clusterer in self.clusterers_ if clusterer is not None]
        return fitted[0].latent_nodes_.shape[1] if fitted else 1
