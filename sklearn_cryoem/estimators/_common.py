"""What estimators have in common: what they take, warnings that are remembered, callbacks of scikit-learn."""

from __future__ import annotations

import logging
import math
import os
from typing import Self, TypeAlias

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import validate_data

from sklearn_cryoem._core.memory import format_bytes, log_estimate, memory_watched
from sklearn_cryoem._core.validation import check_images, notify, warn
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.screening import screened
from sklearn_cryoem.physics.masks import box_problem

try:  # scikit-learn 1.9 and later
    from sklearn.callback import CallbackSupportMixin as TakesCallbacks
    from sklearn.callback import with_callbacks as with_callbacks
except ImportError:

    class TakesCallbacks:
        """What an older scikit-learn offers: no callbacks."""

    def with_callbacks(method):
        """Return the method as it is."""
        return method


logger = logging.getLogger(__name__)

Data: TypeAlias = ParticleStack | ArrayLike  # particles, images or vectors
Path: TypeAlias = str | os.PathLike[str]


class TakesImages:
    """What an estimator of images alone tells scikit-learn: no plain vectors. Comes before other bases."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags


class GivesStacks:
    """What an estimator tells scikit-learn whose `transform` returns a ParticleStack."""

    def set_output(self, *, transform: str | None = None) -> Self:
        """Return the estimator: a stack is no table, whatever a Pipeline asks of all of its steps."""
        return self


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


def as_fitted(X, owner, *, on_images):
    """X as a stack or as vectors, whichever was fitted.

    Parameters
    ----------
    X : ParticleStack or array_like
        What the user gave.
    owner : estimator
        Fitted.
    on_images : bool
        Whether it was fitted on images.

    Raises
    ------
    ValueError
        If X is of the other kind.
    """
    if is_images(X) == on_images:
        return as_stack(X, owner) if on_images else as_vectors(X, owner, reset=False)
    wanted = f"vectors. Give an array (n_samples, {owner.n_features_in_})"
    if on_images:
        box = math.isqrt(owner.n_features_in_)
        wanted = f"images. Give a ParticleStack or an array (n_images, {box}, {box})"
    raise ValueError(f"X has shape {np.shape(X)}, but this {type(owner).__name__} was fitted on {wanted}.")


def as_screened(X, owner):
    """X as a stack whose images have been looked at, which `fit` learns from; see `ParticleStack.screen`.

    Parameters
    ----------
    X : ParticleStack or array_like of shape (n_images, D, D)
        As of `as_stack`. A stack whose `outlier` is known is left as it is.
    owner : estimator
        Whose `mask_diameter` and `n_jobs` are used.

    Returns
    -------
    stack : ParticleStack
        All particles, normalised if they were not.
    limits : ndarray or None
        What is usual; None where others have looked.
    """
    stack = as_stack(X, owner)
    if stack.outlier is not None:
        return stack, None
    with memory_watched(f"{type(owner).__name__}.fit", getattr(owner, "checkpoint", None)):
        return screened(
            stack,
            getattr(owner, "mask_diameter", None),
            noise=getattr(owner, "noise", "shell"),
            n_jobs=owner.n_jobs,
            verbose=getattr(owner, "verbose", 0),
        )


def mean_without_outliers(values, X):
    """Mean over the particles that are not marked as outliers: one of them would outweigh all others."""
    outlier = X.outlier if isinstance(X, ParticleStack) else None
    if outlier is None or outlier.all():
        return float(values.mean())
    return float(values[~outlier].mean())


def without_outliers(stack, owner):
    """Particles of a screened stack that a fit learns from.

    Raises
    ------
    ValueError
        If there are none.
    """
    if stack.outlier.all():
        raise ValueError(
            f"{type(owner).__name__} got {len(stack)} particles, all of which are outliers. Have it take "
            "them as they are with stack.with_outliers([False] * len(stack)), or give sound ones."
        )
    return stack[~stack.outlier] if stack.outlier.any() else stack


def warn_if_mask_too_tight(owner, stack):
    """Warn if the mask that was asked for leaves no background in the box.

    Parameters
    ----------
    owner : estimator
        With `mask_diameter`.
    stack : ParticleStack
        What it is fitted to.
    """
    if owner.mask_diameter is None:
        return
    problem = box_problem(stack.box, stack.pixel_size, owner.mask_diameter)
    if problem is not None and problem[0] == "box-too-tight":
        notify(problem[0], f"{type(owner).__name__}: {problem[1]}")


def warn_if_not_aligned(owner, X):
    """Warn if X is a stack without poses: what is not aligned is clustered by its angles, not its views.

    Arrays of images have no place for poses; whoever gives them is taken to have aligned them.

    Parameters
    ----------
    owner : estimator
        That needs aligned particles.
    X : ParticleStack or array_like
        What the user gave.
    """
    if isinstance(X, ParticleStack) and X.poses is None:
        notify(
            "no-poses",
            f"{type(owner).__name__} needs aligned particles, and these have no poses: they are taken as "
            "they lie. Align them with a MAPAligner before, in a Pipeline; if they are aligned already, say "
            "so with stack.with_poses(Poses.identity(len(stack))).",
        )


def warn_if_few_distinct_vectors(owner, vectors, n_nodes):
    """Warn of fewer distinct vectors than classes, as `KMeans` does; a look at few rows unless they repeat.

    Parameters
    ----------
    owner : estimator
        With `n_clusters`.
    vectors : ndarray of shape (n_samples, n_features)
        What it is fitted to.
    n_nodes : int
        Classes of its map.
    """
    enough, distinct = min(n_nodes, len(vectors)), set()
    for row in vectors:
        distinct.add((row + 0.0).tobytes())  # -0.0 is 0.0
        if len(distinct) >= enough:
            return
    found = f"{len(distinct)} distinct vector{'s' if len(distinct) > 1 else ''}"
    warn(
        f"{type(owner).__name__} found {found} among {len(vectors)}, fewer than its {n_nodes} classes "
        f"(n_clusters={owner.n_clusters}): the others stay empty. Ask for fewer n_clusters, or "
        "look for constant columns and repeated rows in the data.",
        ConvergenceWarning,
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


# ---------------------------------------------------------------- warnings of a fit
def warn_and_keep(owner, message):
    """Warn about a fit and remember the warning, which is given again where the result is loaded from a file.

    Parameters
    ----------
    owner : estimator
        Whose fit it is; its attribute `_fit_warnings` is a list from the start of the fit.
    message : str
        The warning.

    Warns
    -----
    ConvergenceWarning
    """
    owner._fit_warnings = [*owner._fit_warnings, message]
    warn(message, ConvergenceWarning)


def repeat_warnings(owner):
    """Give the warnings of a fit that was loaded from a file."""
    for message in owner._fit_warnings:
        warn(message, ConvergenceWarning)


# ---------------------------------------------------------------- callbacks
class FitTask:
    """The task of a fit, as scikit-learn's callbacks see it: one subtask for every step.

    Parameters
    ----------
    estimator : estimator
        The one that is fitted, by a method decorated with `with_callbacks`.
    n_steps : int
        Most steps that there can be.
    name : str
        Of a step.
    X : ParticleStack or ndarray
        What is fitted.
    """

    def __init__(self, estimator, n_steps, name, X):
        self._estimator, self._name, self._context = estimator, name, None
        if getattr(estimator, "_skl_callbacks", None):
            self._context = estimator._init_callback_context(max_subtasks=n_steps)
            self._context.call_on_fit_task_begin(estimator=estimator, X=X)

    def step(self, n=1):
        """Tell of `n` steps that are done."""
        for _ in range(n if self._context is not None else 0):
            subtask = self._context.subcontext(task_name=self._name)
            subtask.call_on_fit_task_begin(estimator=self._estimator)
            subtask.call_on_fit_task_end(estimator=self._estimator)

    def end(self):
        """Tell of the end."""
        if self._context is not None:
            self._context.call_on_fit_task_end(estimator=self._estimator)


# ---------------------------------------------------------------- what a fit of a manifold says while it runs
def memory_of_fit(blocks, n_nodes, plan):
    """Bytes that a fit takes at most beyond the images given: its sums, and its blocks of features.

    Sums and templates exist for each fold, in the end of all shells, and for each half: in double
    precision once in total and three times in the M-step, in single for every worker and twice beside.
    While nodes move, the templates before are held as well, Eq. (3.22).
    """
    layout, n_workers = blocks.layout, effective_n_jobs(plan.m_step.n_jobs)
    crossed, n_rows = layout.truncate(plan.crossed.n_shells), -(-blocks.n_samples // len(blocks))
    n_values = layout.n_features + layout.n_norms
    n_columns = max(plan.n_folds * (crossed.n_features + crossed.n_shells), 2 * n_values)
    if plan.n_folds > 1:  # in the end all shells, Eq. (3.17)
        n_columns = max(n_columns, plan.n_folds * (layout.n_features + layout.n_shells))
    features = 2 * n_workers * n_rows * 4 * (n_values + 3 * n_nodes) + getattr(blocks, "cache_bytes", 0)
    n_bytes = 32 + 8 * (plan.n_rounds > 0) + 4 * (n_workers + 2)
    return n_nodes * n_columns * n_bytes + features


def announce(blocks, n_nodes, plan):
    """Log how much memory a fit takes, and how many images are prepared again in every pass."""
    log_estimate(logger, "SMLClusterer.fit", memory_of_fit(blocks, n_nodes, plan))
    share = getattr(blocks, "share_kept", 1.0)
    if share < 1.0:
        logger.info(
            "SMLClusterer.fit keeps the features of %.0f %% of the images in memory and prepares the others "
            "in every pass again, which may take longer than all the rest. cache_folder=... keeps all of "
            "them in files: %s.",
            100.0 * share,
            format_bytes(blocks.feature_bytes),
        )


def show_progress(bar, space, state):
    """Show objective and resolution of the last iteration, and count it."""
    objective = state.trace.objective
    n_new = len(objective) - bar.n_done  # the first M-step of ordinary EM has no objective yet
    if n_new:
        unit = "px" if getattr(space, "pixel_size", None) is None else "A"
        detail = space.resolution(state.trace.n_shells[-1])
        limit = f", details to {detail:.3g} {unit}" if np.isfinite(detail) else ""  # vectors have none
        bar.note(f"{objective[-1]:.4f} nats per image{limit}")
        bar.update(n_new)
