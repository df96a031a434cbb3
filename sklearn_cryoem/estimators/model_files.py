"""Fitted models and states of running fits as plain files: arrays and a JSON header in one .npz, no pickle.

A pickle runs code when it is opened and breaks when a module moves. Here every array of an estimator is a
member of the archive, and everything else is JSON that says how to put it together. What can come back is a
closed list: numbers, text, arrays, dataclasses of this library, its estimators, and a scikit-learn Pipeline
of them.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib
import json
import logging
import os
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from sklearn_cryoem._core.em import Checkpoint
from sklearn_cryoem._core.files import atomic_path, check_content, explained, remove_leftovers
from sklearn_cryoem._core.validation import ModelFileError, warn
from sklearn_cryoem._version import __version__
from sklearn_cryoem.estimators._common import repeat_warnings, warn_if_mask_too_tight
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.preprocess import as_made

logger = logging.getLogger(__name__)

FORMAT = "sklearn-cryoem model"
FORMAT_VERSION = 3
SECONDS_BETWEEN = 30.0  # from one state of a running fit to the next
NOT_PART_OF_A_RUN = ("checkpoint", "cache_folder", "n_jobs", "verbose")  # they say how, not what

_HEADER = "header"
_WHOLE = {"$estimator", "$pipeline", "$frozen", "$dataclass"}  # what a file may hold: models and states
_WITH_DATACLASSES = tuple(
    ("sklearn_cryoem", name)
    for name in ("alignment", "estimators", "manifold", "particles", "physics", "projections")
)
# by name, from sklearn_cryoem.estimators
_ESTIMATORS = (
    "DeepClusterer", "EigenImages", "MAPAligner", "ProjectionClusterer", "RealigningClusterer",
    "SMLClusterer",
)  # fmt: skip


def save_model(estimator: BaseEstimator, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write an estimator, fitted or not, to a .npz file.

    Parameters
    ----------
    estimator : MAPAligner, SMLClusterer, DeepClusterer, RealigningClusterer, EigenImages, or Pipeline of them
        What to keep: its parameters and everything it learned.
    path : path-like
        File to write; by custom it ends in .npz.
    overwrite : bool, default=False
        Whether an existing file may be replaced.

    Raises
    ------
    ModelFileError
        If the estimator holds something that cannot be written as numbers, text or arrays.
    FileExistsError
        If `path` exists and `overwrite` is false.
    TypeError
        If the first argument is no estimator.

    Notes
    -----
    Files are written whole or not at all. `random_state` is kept if it is an int or None; a generator is not
    (it has moved on), and a model loaded back has None there. Predictions never depend on it.
    """
    if not isinstance(estimator, BaseEstimator):
        raise TypeError(
            f"save_model got a {type(estimator).__name__} as its first argument, expected an estimator. "
            "Pass the estimator first and the file second: save_model(estimator, path)."
        )
    with atomic_path(path, overwrite=overwrite) as temporary:
        write_state(estimator, temporary)


def write_state(state, path):
    """Write a dataclass of this library, such as the state of a running fit, in the format of `save_model`.

    Parameters
    ----------
    state : dataclass or estimator
        Of numbers, text, arrays, lists, tuples and other dataclasses of this library.
    path : path-like
        File to write, under this very name.
    """
    arrays = {}
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "written_by": f"sklearn-cryoem {__version__}",
        "written_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": _encode(state, type(state).__name__, arrays),
    }
    with open(path, "wb") as file:
        np.savez(file, **{_HEADER: np.array(json.dumps(header))}, **arrays)


def load_model(path: str | os.PathLike[str]) -> Any:
    """Read back what `save_model` wrote.

    Parameters
    ----------
    path : path-like
        A file written by `save_model`.

    Returns
    -------
    estimator
        In the state it was saved in: the same parameters, the same predictions.

    Raises
    ------
    ModelFileError
        If the file is not such a model, is damaged, or has another version of the format.
    """
    header, arrays = _read(path)
    try:
        model = header["model"]
        if not isinstance(model, dict) or _WHOLE.isdisjoint(model):
            raise ValueError("it holds no estimator")
        return _decode(model, arrays)
    except ModelFileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ImportError, RecursionError) as error:
        raise ModelFileError(
            f"{path}, {header.get('written_by', 'of unknown origin')}, cannot be put together ({error}). "
            f"Fit the model again with this version, or load it with the one that wrote it."
        ) from error


def read_model_header(path):
    """What a model file says of itself, without building the estimator.

    Parameters
    ----------
    path : path-like
        A file written by `save_model`.

    Returns
    -------
    dict
        Keys `written_by`, `written_at`, `steps`: a list of (name, class name, parameters).
    """
    header, _ = _read(path)
    model = header["model"]
    steps = model["$pipeline"] if "$pipeline" in model else [[model["$estimator"].lower(), model]]
    return {
        "written_by": header["written_by"],
        "written_at": header["written_at"],
        "steps": [(name, step["$estimator"], _plain(step["parameters"])) for name, step in steps],
    }


def _read(path):
    """Header and arrays of a model file, after a look at its format and version."""
    check_content(path, "a model file that save_model wrote", "zip", error=ModelFileError)
    try:
        # np.load leaves a file that it opened itself, and that is damaged, open
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
        header = json.loads(str(arrays.pop(_HEADER, "null")))
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError, RecursionError) as error:
        # where there is a pickle inside, numpy would advise to unpickle it
        why = "it is no archive of arrays" if "pickle" in str(error) else error
        raise ModelFileError(
            f"{path} cannot be read as a model file ({why}). It is damaged or something else; "
            f"give a file that save_model wrote."
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ModelFileError(f"{path} holds arrays but no {FORMAT}. Give a file that save_model wrote.")
    if header.get("format_version") != FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format version {header.get('format_version')!r}, written by "
            f"{header.get('written_by', 'an unknown program')}; sklearn-cryoem {__version__} reads version "
            f"{FORMAT_VERSION}. Fit the model again, or load it with the version that wrote it."
        )
    return header, arrays


# ---------------------------------------------------------------- to JSON and arrays
def _encode(value, where, arrays):  # noqa: PLR0911 (one line for each kind of value reads best)
    """`value` as JSON; arrays go to `arrays` under the name of the place they come from."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufcU":
        arrays[where] = value
        return {"$array": where}
    if isinstance(value, np.ndarray) and all(isinstance(item, str) for item in value.flat):
        return {"$texts": value.tolist()}  # an array of str objects, such as feature_names_in_
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{where}.{index}", arrays) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"$dict": {key: _encode(item, f"{where}.{key}", arrays) for key, item in value.items()}}
    if dataclasses.is_dataclass(value) and _is_ours(type(value)):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        fields = {name: _encode(getattr(value, name), f"{where}.{name}", arrays) for name in names}
        return {"$dataclass": f"{type(value).__module__}:{type(value).__qualname__}", "fields": fields}
    if isinstance(value, Pipeline):
        steps = [[name, _encode(step, f"{where}.{name}", arrays)] for name, step in value.steps]
        return {"$pipeline": steps}
    if isinstance(value, FrozenEstimator):
        return {"$frozen": _encode(value.estimator, where, arrays)}
    if type(value).__name__ in _ESTIMATORS and _is_ours(type(value)):
        return _encode_estimator(value, where, arrays)
    raise ModelFileError(
        f"{where} is a {type(value).__name__}, which a model file cannot hold. Save one of "
        f"{', '.join(_ESTIMATORS)} or a Pipeline of them, with parameters that are numbers, text or arrays."
    )


def _encode_estimator(estimator, where, arrays):
    parameters = estimator.get_params(deep=False)
    if isinstance(parameters.get("random_state"), np.random.RandomState | np.random.Generator):
        parameters["random_state"] = None
    learned = {
        name: value
        for name, value in vars(estimator).items()
        if name not in parameters and not name.startswith("_skl_")  # callbacks are no part of a model
    }
    return {
        "$estimator": type(estimator).__name__,
        "parameters": {name: _encode(v, f"{where}.{name}", arrays) for name, v in parameters.items()},
        "learned": {name: _encode(v, f"{where}.{name}", arrays) for name, v in learned.items()},
    }


def _is_ours(kind):
    return kind.__module__.split(".")[0] == "sklearn_cryoem"


# ---------------------------------------------------------------- and back
def _decode(value, arrays):
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), None)
    if tag not in _DECODERS:
        raise ModelFileError(f"the model file holds an unknown kind of value, {tag}. Upgrade sklearn-cryoem.")
    return _DECODERS[tag](value, arrays)


def _decode_dataclass(value, arrays):
    module, _, name = value["$dataclass"].partition(":")
    if tuple(module.split(".")[:2]) not in _WITH_DATACLASSES:  # to import others may already run something
        raise ModelFileError(
            f"the model file names {module}, which is not part of this library's models. Do not use it."
        )
    kind = getattr(importlib.import_module(module), name)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module):
        raise ModelFileError(f"the model file names {name}, which is not a dataclass. Do not use it.")
    return kind(**{key: _decode(item, arrays) for key, item in value["fields"].items()})


def _decode_estimator(value, arrays):
    name = value["$estimator"]
    if name not in _ESTIMATORS:
        raise ModelFileError(
            f"the model file holds a {name}, unknown to this version. Upgrade sklearn-cryoem."
        )
    kind = getattr(importlib.import_module("sklearn_cryoem.estimators"), name)
    estimator = kind(**{key: _decode(item, arrays) for key, item in value["parameters"].items()})
    for key, item in value["learned"].items():
        if key.startswith("__"):
            raise ModelFileError(f"the model file sets {key}, which no model learns. Do not use it.")
        setattr(estimator, key, _decode(item, arrays))
    return estimator


_DECODERS = {
    "$array": lambda value, arrays: arrays[value["$array"]][()],  # a number from an array of no axes
    "$texts": lambda value, arrays: np.array(value["$texts"], dtype=object),
    "$tuple": lambda value, arrays: tuple(_decode(value["$tuple"], arrays)),
    "$dict": lambda value, arrays: {key: _decode(item, arrays) for key, item in value["$dict"].items()},
    "$pipeline": lambda value, arrays: Pipeline(
        [(n, _decode(step, arrays)) for n, step in value["$pipeline"]]
    ),
    "$frozen": lambda value, arrays: FrozenEstimator(_decode(value["$frozen"], arrays)),
    "$dataclass": _decode_dataclass,
    "$estimator": _decode_estimator,
}


def _plain(parameters):
    """Parameters as plain JSON values, arrays by name, for people to read."""
    return {key: next(iter(v.values())) if isinstance(v, dict) else v for key, v in parameters.items()}


# ---------------------------------------------------------------- the state of a fit in a file
class CheckpointFile(Checkpoint):
    """The state of one fit, of these parameters to these data.

    Parameters
    ----------
    path : path-like
        The file.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._last = time.monotonic()
        self._warned = False

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
            if not self._warned:  # a full disk would else be told with every state
                warn(
                    f"The state of the fit could not be kept: {error}. The fit goes on; if it is killed, it "
                    "will go on from the last state kept, or from the start.",
                    UserWarning,
                )
            self._warned = True
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
        return Checkpoint()
    name = type(estimator).__name__
    if not isinstance(estimator.random_state, int | np.integer):
        raise ValueError(
            f"{name}(checkpoint={str(estimator.checkpoint)!r}) needs random_state to be an int; it is "
            f"{estimator.random_state!r}. A fit that was interrupted is known again by its seed."
        )
    parameters = {k: v for k, v in estimator.get_params().items() if k not in NOT_PART_OF_A_RUN}
    if isinstance(data, ParticleStack):
        data = data._replace(images=as_made(data.images))
    key = json.dumps([__version__, name, joblib.hash(parameters), joblib.hash(data)])
    folder = Path(estimator.checkpoint)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{name}(checkpoint={str(folder)!r}): this is a file. Give a folder.")
    problem = f"{name}(checkpoint={str(folder)!r}): nothing can be written there"
    with explained(problem, "Give a folder of your own"):  # now, not after the first half minute
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return CheckpointFile(folder / f"{name.lower()}-{digest}.npz")


def fit_once(estimator, data, folder, known=()):
    """Fit an estimator, go on from where the same fit was killed, or load the result of the same fit.

    Parameters
    ----------
    estimator : estimator
        With its parameters; one without a parameter `checkpoint` is simply fitted.
    data : ParticleStack or ndarray
        What is fitted.
    folder : path-like or None
        Where states and results are kept; None for nowhere.
    known : sequence of estimators
        Results of earlier calls, as loaded from model files: that of the same fit is taken.

    Returns
    -------
    fitted : estimator
    checkpoint : Checkpoint
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
        return estimator.fit(data), Checkpoint()
    state = checkpoint_of(estimator.set_params(checkpoint=folder), data)
    result = CheckpointFile(state.path.with_suffix(".done.npz"))
    fitted, key = result.load(), state.path.stem
    known = [model for model in known if getattr(model, "_fit_key", None) == key]
    if fitted is None and not known:
        fitted = estimator.fit(data)
        if getattr(fitted, "_interrupted", False):  # it returns what it has reached
            raise KeyboardInterrupt
        fitted.set_params(checkpoint=own["checkpoint"])
        fitted._fit_key = key
        result.keep(fitted, now=True)
    elif fitted is None:
        fitted = known[0]
        result.keep(fitted, now=True)
    else:
        if isinstance(data, ParticleStack) and getattr(fitted, "mask_diameter", None) is not None:
            warn_if_mask_too_tight(fitted, data)
        repeat_warnings(fitted)
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
    checkpoints : list of Checkpoint
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
