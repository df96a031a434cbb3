"""What fits have in common: states in files, warnings that are remembered, callbacks of scikit-learn."""

import hashlib
import json
import logging
import tempfile
import time
import warnings
from pathlib import Path

import joblib
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import Pipeline

from sklearn_cryoem._core.em import NullCheckpoint
from sklearn_cryoem._core.files import atomic_path, remove_leftovers
from sklearn_cryoem._version import __version__
from sklearn_cryoem.estimators._inputs import warn_if_mask_too_tight
from sklearn_cryoem.estimators.model_files import load_model, write_state
from sklearn_cryoem.particles import ParticleStack

try:  # scikit-learn 1.9 and later
    from sklearn.callback import CallbackSupportMixin as TakesCallbacks
    from sklearn.callback import with_callbacks as with_callbacks

    FRAMES = 1  # that `with_callbacks` puts between a method and its caller
except ImportError:
    FRAMES = 0

    class TakesCallbacks:
        """What an older scikit-learn offers: no callbacks."""

    def with_callbacks(method):
        """Return the method as it is."""
        return method


logger = logging.getLogger(__name__)

SECONDS_BETWEEN = 30.0
NOT_PART_OF_A_RUN = ("checkpoint", "cache_folder", "n_jobs", "verbose")  # they say how, not what


# ---------------------------------------------------------------- the state of a fit in a file
class CheckpointFile:
    """The state of one fit, of these parameters to these data.

    Parameters
    ----------
    path : path-like
        The file.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._last = time.monotonic()

    def load(self):
        """Return the state that was kept last, or None."""
        if not self.path.exists():
            return None
        state = load_model(self.path)
        logger.info("going on from %s", self.path)
        return state

    def keep(self, state, *, now=False):
        """Write the state if the last time is long ago, or `now`."""
        if not now and time.monotonic() - self._last < SECONDS_BETWEEN:
            return
        try:
            with atomic_path(self.path, overwrite=True) as temporary:
                write_state(state, temporary)
        except OSError as error:  # what was computed is worth more than its copy
            warnings.warn(
                f"The state of the fit could not be kept: {error}. The fit goes on; if it is killed, it will "
                "go on from the last state kept, or from the start.",
                UserWarning,
                stacklevel=2,
            )
        self._last = time.monotonic()

    def remove(self):
        """Remove the file of a fit that has ended, and what was half-written when it was killed."""
        self.path.unlink(missing_ok=True)
        remove_leftovers(self.path)


def checkpoint_of(estimator, data):
    """Where the state of this fit is kept: a file in the folder `estimator.checkpoint`, or nowhere.

    The name of the file is made of the class, the parameters, the data and the version, so that only the same
    fit goes on from it.

    Parameters
    ----------
    estimator : estimator
        With a parameter `checkpoint`: a folder, made where there is none, or None.
    data : ParticleStack or ndarray
        What is fitted.

    Raises
    ------
    ValueError
        If the random state of the estimator is not an int: two fits would not be the same run.
    """
    if estimator.checkpoint is None:
        return NullCheckpoint()
    name = type(estimator).__name__
    if not isinstance(estimator.random_state, int | np.integer):
        raise ValueError(
            f"{name}(checkpoint={str(estimator.checkpoint)!r}) needs random_state to be an int; it is "
            f"{estimator.random_state!r}. A fit that was interrupted is known again by its seed."
        )
    parameters = {k: v for k, v in estimator.get_params().items() if k not in NOT_PART_OF_A_RUN}
    key = json.dumps([__version__, name, joblib.hash(parameters), joblib.hash(data)])
    folder = Path(estimator.checkpoint)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{name}(checkpoint={str(folder)!r}): this is a file. Give a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:  # said now, not after the first half minute
        raise OSError(
            error.errno,
            f"{name}(checkpoint={str(folder)!r}): nothing can be written there ({error.strerror}). Give a "
            "folder of your own",
        ) from error
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return CheckpointFile(folder / f"{name.lower()}-{digest}.npz")


def fit_once(estimator, data, folder):
    """Fit an estimator, go on from where the same fit was killed, or load the result of the same fit.

    Parameters
    ----------
    estimator : estimator
        With its parameters; one without a parameter `checkpoint` is simply fitted.
    data : ParticleStack or ndarray
        What is fitted.
    folder : path-like or None
        Where states and results are kept; None for nowhere.

    Returns
    -------
    fitted : estimator
    checkpoint : CheckpointFile or NullCheckpoint
        Holds the fitted estimator until it is removed.

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C ended the fit; what it has reached is kept.
    ValueError
        If the random state of the estimator is not an int.
    """
    own = estimator.get_params(deep=False)
    if folder is None or "checkpoint" not in own:
        return estimator.fit(data), NullCheckpoint()
    state = checkpoint_of(estimator.set_params(checkpoint=folder), data).path
    result = CheckpointFile(state.with_suffix(".done.npz"))
    fitted = result.load()
    if fitted is None:
        fitted = estimator.fit(data)
        if state.exists():  # an interrupted fit leaves its state and returns what it has reached
            raise KeyboardInterrupt
        fitted.set_params(checkpoint=own["checkpoint"])
        result.keep(fitted, now=True)
    else:
        if isinstance(data, ParticleStack) and getattr(fitted, "mask_diameter", None) is not None:
            warn_if_mask_too_tight(fitted, data, stacklevel=2)
        repeat_warnings(fitted, stacklevel=2)
    return fitted, result


def fit_steps_once(estimator, data, folder, hand_on):
    """`fit_once` for each step of a Pipeline in turn, or for any other estimator.

    Parameters
    ----------
    estimator : estimator
        Its steps are replaced by fitted ones.
    data : ParticleStack or ndarray
        What is fitted.
    folder : path-like or None
        As in `fit_once`.
    hand_on : callable
        What the data are after a fitted step: ``hand_on(step, data)``.

    Returns
    -------
    fitted : estimator
    checkpoints : list of CheckpointFile or NullCheckpoint
    """
    if folder is None or not isinstance(estimator, Pipeline):
        fitted, checkpoint = fit_once(estimator, data, folder)
        return fitted, [checkpoint]
    checkpoints = []
    for place, (name, step) in enumerate(estimator.steps):
        if step is None or step == "passthrough":
            continue
        fitted, of_step = fit_steps_once(step, data, folder, hand_on)
        estimator.steps[place] = (name, fitted)
        checkpoints += of_step
        if place < len(estimator.steps) - 1:
            data = hand_on(fitted, data)
    return estimator, checkpoints


# ---------------------------------------------------------------- warnings of a fit
def warn_and_keep(owner, message, *, stacklevel):
    """Warn about a fit and remember the warning, which is given again where the result is loaded from a file.

    Parameters
    ----------
    owner : estimator
        Whose fit it is; its attribute `_fit_warnings` is a list from the start of the fit.
    message : str
        The warning.
    stacklevel : int
        1 blames the caller of this function.

    Warns
    -----
    ConvergenceWarning
    """
    owner._fit_warnings = [*owner._fit_warnings, message]
    warnings.warn(message, ConvergenceWarning, stacklevel=stacklevel + 1)


def repeat_warnings(owner, *, stacklevel):
    """Give the warnings of a fit that was loaded from a file."""
    for message in owner._fit_warnings:
        warnings.warn(message, ConvergenceWarning, stacklevel=stacklevel + 1)


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
