"""Classes of particles as a column of their table, which survives slicing, joining and writing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from sklearn_cryoem._core.validation import check_number
from sklearn_cryoem.particles.stack import ParticleStack

RELION_CLASS, CRYOSPARC_CLASS = "rlnClassNumber", "alignments2D/class"
OUTLIER = "smlOutlier"  # 1 for images that took no part in the fit that made the classes
OUTLIER_COLUMNS = (OUTLIER, f"sklearn_cryoem/{OUTLIER}")  # in a STAR file, in a .cs file
# in a STAR file, in a .cs file: probability of the class; how well the particle matches it
POSTERIOR = ("rlnMaxValueProbDistribution", "alignments2D/class_posterior")
MATCH = ("smlMatch", "sklearn_cryoem/smlMatch")
_NO_CLASS = 2**31


def class_column(stack: ParticleStack) -> str:
    """Name of the column of classes: cryoSPARC's (from 0) for its own particles, else RELION's (from 1)."""
    own = {"uid", CRYOSPARC_CLASS}
    return RELION_CLASS if own.isdisjoint(stack.metadata.columns) else CRYOSPARC_CLASS


def with_classes(stack: ParticleStack, labels: Any) -> ParticleStack:
    """Return the same particles with their classes in their table.

    Parameters
    ----------
    stack : ParticleStack
        The particles.
    labels : array_like of shape (n_images,), int
        Class of each particle from 0; -1 for none.

    Returns
    -------
    ParticleStack
        With ``rlnClassNumber`` from 1 (0 for none), or ``alignments2D/class`` from 0 for particles of
        cryoSPARC, among its metadata: what slices, joins and `write_particles` keep.

    Raises
    ------
    ValueError
        If there is not one label for each particle, or a particle of cryoSPARC has none.
    """
    label = check_labels(labels, len(stack))
    column = class_column(stack)
    if column == RELION_CLASS:
        return stack.with_metadata(**{column: label + 1})
    if (label < 0).any():
        raise ValueError(
            f"{(label < 0).sum():,} particles have no class (-1), which {CRYOSPARC_CLASS} cannot say. "
            "Select the particles that have one first."
        )
    return stack.with_metadata(**{column: label.astype(np.uint32)})


def class_labels(stack: ParticleStack) -> NDArray[np.int64] | None:
    """Class of each particle from 0 as its table says, -1 for none; None if it does not say.

    Parameters
    ----------
    stack : ParticleStack
        The particles, as read from a file or from `with_classes`.

    Returns
    -------
    ndarray of shape (n_images,), int, or None
    """
    column = class_column(stack)
    metadata = stack.metadata
    if column not in metadata.columns:
        return None
    first = 1 if column == RELION_CLASS else 0
    numbers = pd.to_numeric(metadata[column], errors="coerce").to_numpy(dtype=np.float64)
    # none: NaN after joining others, RELION's 0, -999 of other programs, and -1 in cryoSPARC's unsigned field
    known = (numbers >= first) & (numbers < _NO_CLASS)
    return np.where(known, numbers - first, -1).astype(np.int64)


def select_classes(stack: ParticleStack, labels: Any, classes: Any) -> ParticleStack:
    """Return the particles of some classes, in their order, with their classes in their table.

    Outliers are left out: marked in `outlier`, or where nobody has looked, in the table.

    Parameters
    ----------
    stack : ParticleStack
        The particles.
    labels : array_like of shape (n_images,), int, or None
        Class of each particle from 0, as `labels_`; None for those that the particles were read with.
    classes : array_like of int
        Classes to keep, from 0: one less than the numbers in files and pictures.

    Returns
    -------
    ParticleStack
        See `with_classes` for the column.

    Raises
    ------
    ValueError
        If the labels do not fit, a class is named that no particle has, or there are no labels.
    TypeError
        If the particles do not come first, or the labels are an estimator.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_cryoem import ParticleStack
    >>> stack = ParticleStack(np.random.default_rng(0).normal(size=(6, 8, 8)))
    >>> chosen = select_classes(stack, [0, 1, 2, 0, 1, 2], [0, 2])
    >>> chosen.metadata["rlnClassNumber"].tolist()
    [1, 3, 1, 3]
    """
    if not isinstance(stack, ParticleStack):
        raise TypeError(
            f"select_classes got a {type(stack).__name__} as its first argument, expected a ParticleStack. "
            "Pass the particles first: select_classes(stack, labels, classes)."
        )
    label = class_labels(stack) if labels is None else check_labels(labels, len(stack))
    if label is None:
        raise ValueError(
            f"The particles have no column {class_column(stack)}: their classes are not known. Pass labels."
        )
    wanted = np.unique(np.asarray(classes))
    if wanted.size == 0 or wanted.dtype.kind not in "iu":
        raise ValueError(f"classes is {classes!r}, expected class numbers from 0. Name at least one class.")
    unknown = np.setdiff1d(wanted, label)
    if unknown.size:
        raise ValueError(
            f"No particle is in class(es) {unknown.tolist()} (from 0), only in {np.unique(label).tolist()}. "
            "Subtract 1 from the numbers in files and pictures."
        )
    rows = np.flatnonzero(np.isin(label, wanted) & ~marked_outliers(stack))
    return with_classes(stack[rows], label[rows])


def best_of_classes(
    labels: Any, values: Any, *, drop_worst: float = 0.0, max_per_class: int | None = None
) -> NDArray[np.bool_]:
    """Which particles to keep of each class, by a value that each has.

    Parameters
    ----------
    labels : array_like of shape (n_images,), int
        Class of each particle from 0; those of -1 are not kept.
    values : array_like of shape (n_images,)
        The larger, the better; of equals the first is the better one, and NaN is the worst.
    drop_worst : float, default=0.0
        Share of each class that is not kept, from 0 to 1, rounded down to whole particles.
    max_per_class : int, optional
        Particles kept of each class, at most: large classes come closer to small ones.

    Returns
    -------
    ndarray of shape (n_images,), bool

    Examples
    --------
    >>> best_of_classes([0, 0, 0, 1], [0.3, 0.1, 0.2, 0.0], drop_worst=0.4).tolist()
    [True, False, True, True]
    """
    value = np.asarray(values, dtype=np.float64)
    label = check_labels(labels, len(value))
    check_number("drop_worst", drop_worst, owner="best_of_classes", minimum=0, maximum=1)
    check_number("max_per_class", max_per_class, owner="best_of_classes", minimum=1, integer=True,
                 allow_none=True)  # fmt: skip
    order = np.argsort(-value, kind="stable")
    rank = np.empty(len(value), dtype=np.int64)  # among its class, from 0
    rank[order] = pd.Series(order).groupby(label[order]).cumcount()
    size = np.bincount(label + 1, minlength=1)[label + 1]
    keep = (label >= 0) & (rank < size - np.floor(drop_worst * size))
    return keep if max_per_class is None else keep & (rank < max_per_class)


def marked_outliers(stack: ParticleStack) -> NDArray[np.bool_]:
    """Which particles are outliers, as `outlier` says, or else their table; (n_images,)."""
    if stack.outlier is not None:
        return stack.outlier
    metadata = stack.metadata
    marks = np.zeros(len(stack), dtype=bool)
    for name in metadata.columns.intersection(OUTLIER_COLUMNS):
        marks |= pd.to_numeric(metadata[name], errors="coerce").to_numpy(dtype=np.float64) == 1.0
    return marks


def steps_of(estimator: Any) -> list[Any]:
    """Estimators of a Pipeline in their order; anything else alone."""
    if isinstance(estimator, FrozenEstimator):
        estimator = estimator.estimator
    if not isinstance(estimator, Pipeline):
        return [estimator]
    steps = [step for _, step in estimator.steps if step is not None and step != "passthrough"]
    return [inner for step in steps for inner in steps_of(step)]


def check_labels(labels: Any, n_images: int) -> NDArray[np.int64]:
    """Return labels as int64, one for each particle, from -1; raise ValueError or TypeError otherwise."""
    if isinstance(labels, BaseEstimator):
        raise TypeError(
            f"labels is a {type(labels).__name__}, expected the class of each particle. Pass its `labels_`."
        )
    array = np.asarray(labels)
    if array.shape != (n_images,) or array.dtype.kind not in "iu" or (array.size and array.min() < -1):
        raise ValueError(
            f"labels has shape {array.shape} and dtype {array.dtype}, expected ({n_images},) integers from 0 "
            "(-1 for none). Give one label for each particle of the stack."
        )
    return array.astype(np.int64)


def check_order(function: str, classification: Any, stack: Any) -> None:
    """Raise unless the classification comes first and the particles, if any, second.

    Parameters
    ----------
    function : str
        Name of the function that was called, for the message.
    classification, stack : object
        Its first two arguments.

    Raises
    ------
    TypeError
        If the two are swapped, or the second is no ParticleStack.
    """
    if isinstance(classification, ParticleStack):
        raise TypeError(
            f"{function} got the particles as its first argument. Pass the classification first and the "
            f"particles second: {function}(estimator, stack)."
        )
    if stack is not None and not isinstance(stack, ParticleStack):
        raise TypeError(
            f"{function} got a {type(stack).__name__} as its second argument, expected a ParticleStack. "
            "Pass the particles second, and everything else by its name."
        )
