"""What estimators take: a stack, images, or plain vectors, told apart in one place."""

from __future__ import annotations

import os
import warnings
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import validate_data

from sklearn_cryoem._core.notices import notify
from sklearn_cryoem._core.validation import check_images
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.geometry import box_problem

Data: TypeAlias = ParticleStack | ArrayLike  # particles, images or vectors
Path: TypeAlias = str | os.PathLike[str]


class TakesImages:
    """What an estimator of images alone tells scikit-learn: no plain vectors. Comes before other bases."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags


def is_images(X):
    """Whether X is a stack, a three-dimensional array or a list of images, rather than plain vectors."""
    if isinstance(X, list | tuple):
        try:
            return np.ndim(X) == 3
        except ValueError:  # a ragged list: the check of vectors says what is wrong with it
            return False
    return isinstance(X, ParticleStack) or (hasattr(X, "shape") and len(X.shape) == 3)


def as_stack(X, owner):
    """X as a stack: unchanged if it is one, wrapped if it is images.

    Parameters
    ----------
    X : ParticleStack or array_like of shape (n_images, D, D)
        What the user gave. Images come without pixel size, CTF and poses.
    owner : estimator
        Who asks; named in the message.

    Returns
    -------
    stack : ParticleStack

    Raises
    ------
    ValueError
        If X is neither, is empty, or its images are not square and finite.
    """
    if not isinstance(X, ParticleStack):
        if np.ndim(X) != 3:
            raise ValueError(
                f"{type(owner).__name__} got an array of shape {np.shape(X)}, expected a ParticleStack or "
                "images (n_images, D, D). Read particles with read_particles, or reshape vectors to images."
            )
        X = ParticleStack(check_images(X, name="X"))
    if len(X) == 0:
        raise ValueError(
            f"{type(owner).__name__} got 0 particles, expected at least 1. Give a stack with particles."
        )
    return X


def question_mask(owner, stack, *, stacklevel):
    """Warn if the mask that was asked for leaves no background in the box.

    Parameters
    ----------
    owner : estimator
        With `mask_diameter`.
    stack : ParticleStack
        What it is fitted to.
    stacklevel : int
        1 blames the caller of this function.
    """
    if owner.mask_diameter is None:
        return
    problem = box_problem(stack.box, stack.pixel_size, owner.mask_diameter)
    if problem is not None and problem[0] == "box-too-tight":
        notify(problem[0], f"{type(owner).__name__}: {problem[1]}", stacklevel=stacklevel + 1)


def question_vectors(owner, vectors, n_nodes, *, stacklevel):
    """Warn of fewer distinct vectors than classes, as `KMeans` does; a look at few rows unless they repeat.

    Parameters
    ----------
    owner : estimator
        With `n_clusters`.
    vectors : ndarray of shape (n_samples, n_features)
        What it is fitted to.
    n_nodes : int
        Classes of its map.
    stacklevel : int
        1 blames the caller of this function.
    """
    enough, distinct = min(n_nodes, len(vectors)), set()
    for row in vectors:
        distinct.add((row + 0.0).tobytes())  # -0.0 is 0.0
        if len(distinct) >= enough:
            return
    found = f"{len(distinct)} distinct vector{'s' if len(distinct) > 1 else ''}"
    warnings.warn(
        f"{type(owner).__name__} found {found} among {len(vectors)}, fewer than its {n_nodes} classes "
        f"(n_clusters={owner.n_clusters}): the others stay empty. Ask for fewer n_clusters, or "
        "look for constant columns and repeated rows in the data.",
        ConvergenceWarning,
        stacklevel=stacklevel + 1,
    )


def as_vectors(X, owner, *, reset):
    """X as finite float32 or float64 vectors (n_samples, n_features), checked as scikit-learn does.

    Parameters
    ----------
    X : array_like
        What the user gave.
    owner : estimator
        Who asks; its `n_features_in_` is set or checked.
    reset : bool
        True in `fit`, False afterwards.
    """
    return validate_data(
        owner, X, dtype=[np.float64, np.float32], reset=reset, ensure_min_samples=2 if reset else 1
    )
