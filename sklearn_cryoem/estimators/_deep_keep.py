"""The parts of a long run, each fitted once: what was done is loaded, what was under way goes on."""

from pathlib import Path
from typing import Any, NamedTuple

from sklearn.pipeline import Pipeline

from sklearn_cryoem.estimators._checkpoint import CheckpointFile, checkpoint_of
from sklearn_cryoem.estimators._doubts import repeat_doubts
from sklearn_cryoem.estimators._inputs import question_mask
from sklearn_cryoem.particles.stack import ParticleStack


class Part(NamedTuple):
    """A fitted estimator, and the file that keeps it until the whole run is done."""

    fitted: Any
    path: Path | None

    def remove(self):
        """Remove the file."""
        if self.path is not None:
            CheckpointFile(self.path).remove()


def fit_once(estimator, data, folder):
    """Fit, go on from where the same fit was killed, or load what it has done.

    Parameters
    ----------
    estimator : estimator
        With its parameters; one that keeps no states (without `checkpoint`) is simply fitted.
    data : ParticleStack or ndarray
        What is fitted.
    folder : path-like or None
        Where states and results are kept; None for nowhere.

    Returns
    -------
    Part

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C ended the fit; what it has reached is kept.
    ValueError
        If the random state of the estimator is not an int.
    """
    own = estimator.get_params(deep=False)
    if folder is None or "checkpoint" not in own:
        return Part(estimator.fit(data), None)
    state = checkpoint_of(estimator.set_params(checkpoint=folder), data).path
    done = CheckpointFile(state.with_suffix(".done.npz"))
    fitted = done.load()
    if fitted is None:
        fitted = estimator.fit(data)
        if state.exists():
            raise KeyboardInterrupt
        fitted.set_params(checkpoint=own["checkpoint"])
        done.keep(fitted, now=True)
    else:
        if isinstance(data, ParticleStack) and getattr(fitted, "mask_diameter", None) is not None:
            question_mask(fitted, data, stacklevel=2)
        repeat_doubts(fitted, stacklevel=2)
    return Part(fitted, done.path)


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
    parts : list of Part
    """
    if folder is None or not isinstance(estimator, Pipeline):
        part = fit_once(estimator, data, folder)
        return part.fitted, [part]
    parts = []
    for place, (name, step) in enumerate(estimator.steps):
        if step is None or step == "passthrough":
            continue
        fitted, of_step = fit_steps_once(step, data, folder, hand_on)
        estimator.steps[place] = (name, fitted)
        parts += of_step
        if place < len(estimator.steps) - 1:
            data = hand_on(fitted, data)
    return estimator, parts
