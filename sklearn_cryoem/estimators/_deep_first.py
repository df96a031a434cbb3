"""The first classification of a DeepClusterer: which estimator, fitted or not, and what it hands down."""

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sklearn_cryoem.estimators._deep_keep import fit_steps_once
from sklearn_cryoem.estimators._inputs import is_images
from sklearn_cryoem.estimators.map_aligner import MAPAligner
from sklearn_cryoem.estimators.sml_clusterer import SMLClusterer

SUBCLASSES_OF_FIRST = 10  # that an average first class is to be divided into
MOST_FIRST = 50  # classes; more views are told apart by the sub-classes


def n_first_classes(n_samples, images_per_subclass):
    """First classes for so many particles: few enough for each to have ten sub-classes, 2 to 50."""
    most = max(1, min(MOST_FIRST, n_samples // 2))
    return int(min(max(n_samples // (SUBCLASSES_OF_FIRST * images_per_subclass), 2), most))


def default_first(data, images_per_subclass, *, n_jobs, random_state, verbose):
    """A MAPAligner for images without poses, an SMLClusterer for aligned ones and for vectors."""
    needs_poses = is_images(data) and data.poses is None
    kind = MAPAligner if needs_poses else SMLClusterer
    n_classes = n_first_classes(len(data), images_per_subclass)
    return kind(n_classes, n_jobs=n_jobs, random_state=random_state, verbose=verbose)


def check_first(first, owner):
    """Raise unless `first` is an estimator that finds classes.

    Raises
    ------
    TypeError
        If it is a class, or cannot predict.
    """
    last = steps_of(first)[-1] if first is not None else None
    if isinstance(first, type) or (last is not None and not hasattr(last, "predict")):
        found = f"the class {first.__name__}" if isinstance(first, type) else f"a {type(last).__name__}"
        raise TypeError(
            f"The parameter 'first' of {type(owner).__name__} is {found}, expected an estimator that finds "
            "classes. Give a MAPAligner, an SMLClusterer, or a Pipeline that ends in one."
        )


def is_prefit(first):
    """Whether `first` comes fitted, or frozen by `sklearn.frozen.FrozenEstimator`."""
    if isinstance(first, FrozenEstimator):
        return True
    try:
        check_is_fitted(first)
    except NotFittedError:
        return False
    return True


def classify_training(first, data, folder=None):
    """Fit `first` unless it is fitted; return it, the particles as it aligned them, and their classes.

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
    parts : list of Part
        Files that may go when everything is done.
    """
    if is_prefit(first):
        fitted = first.estimator if isinstance(first, FrozenEstimator) else first
        return fitted, *classify_new(fitted, data), []
    fitted, parts = fit_steps_once(clone(first), data, folder, _aligned_training)
    *before, last = steps_of(fitted)
    for step in before:
        data = _aligned_training(step, data)
    return fitted, _aligned_training(last, data, is_last=True), last.labels_, parts


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


def classes_of(fitted):
    """Class averages and resolutions of a fitted estimator.

    Returns
    -------
    averages : ndarray of shape (n_classes, D, D) or (n_classes, n_features)
    resolution : ndarray of shape (n_classes,)
    """
    last = steps_of(fitted)[-1]
    if not hasattr(last, "class_averages_"):
        raise TypeError(
            f"{type(last).__name__} has no class_averages_ after its fit, which classes kept whole are shown "
            "by. Give first= a MAPAligner, an SMLClusterer, or a Pipeline that ends in one."
        )
    return last.class_averages_, last.class_resolution_


def steps_of(estimator):
    """Estimators of a pipeline in their order; any other estimator alone."""
    if isinstance(estimator, FrozenEstimator):
        estimator = estimator.estimator
    if not isinstance(estimator, Pipeline):
        return [estimator]
    steps = [step for _, step in estimator.steps if step is not None and step != "passthrough"]
    return [inner for step in steps for inner in steps_of(step)]


def _aligned_training(step, data, *, is_last=False):
    """Training data as a step hands them on; an aligner knows their poses without another search."""
    if hasattr(step, "poses_"):
        return data.with_poses(step.poses_)
    return data if is_last else step.transform(data)
