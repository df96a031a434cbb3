"""State of a running fit in a file that appears whole or not at all."""

import hashlib
import json
import logging
import tempfile
import time
import warnings
from pathlib import Path

import joblib
import numpy as np

from sklearn_cryoem._core.em import NullCheckpoint
from sklearn_cryoem._core.files import atomic_path, remove_leftovers
from sklearn_cryoem._version import __version__
from sklearn_cryoem.estimators._persistence import load_model, write_state

logger = logging.getLogger(__name__)

SECONDS_BETWEEN = 30.0
NOT_PART_OF_A_RUN = ("checkpoint", "cache_folder", "n_jobs", "verbose")  # they say how, not what


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

    Its name tells the class, the parameters, the data and the version: only the same fit goes on from it.

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
