"""The errors and warnings of the library, and checks of parameters and arrays.

Each message says what was found, what was expected, what to do. A warning about particle data ends with a
short name, under which the documentation has more of it.
"""

from __future__ import annotations

import inspect
import numbers
import re
import warnings
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_INSIDE = ("sklearn_cryoem", "sklearn", "joblib")  # scikit-learn calls methods for the user
_NOTICE_NAME = re.compile(r"\[([a-z]+(?:-[a-z]+)*)\]$")


class ParticleDataError(ValueError):
    """A particle file, its metadata or its pixels cannot be used as they are."""


class ModelFileError(ValueError):
    """A saved model cannot be read back."""


class OutOfMemoryError(MemoryError):
    """A fit found no memory for its next step; what it asked for is in the error that this one follows."""


class WorkerLostError(RuntimeError):
    """Worker processes ended before their task was done, most often because memory ran out."""


class ParticleDataWarning(UserWarning):
    """Particle data can be used, but something about them is suspicious or was left out.

    Attributes
    ----------
    name : str or None
        Short name of what was found, under which the documentation has more of it; the message ends with it.
    """

    @property
    def name(self) -> str | None:
        """Short name of what was found; None if it has none."""
        match = _NOTICE_NAME.search(str(self))
        return None if match is None else match[1]


def notice_text(name: str, text: str) -> str:
    """`text` with the name of its notice at the end, by which docs/guide/troubleshooting.md lists it.

    Parameters
    ----------
    name : str
        Short and stable.
    text : str
        What was found, with its numbers, and what to do.
    """
    return f"{text} [{name}]"


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, and blame the line from which this library was called.

    Parameters
    ----------
    message : str
        What was found, and what to do.
    category : type of Warning
        Its class.
    """
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def notify(name: str, text: str) -> None:
    """Warn by a `ParticleDataWarning` that ends with the name of its notice, see `notice_text`."""
    warn(notice_text(name, text), ParticleDataWarning)


def check_number(
    name: str,
    value: Any,
    *,
    owner: object | str,
    minimum: float | None = None,
    maximum: float | None = None,
    inclusive: bool = True,
    integer: bool = False,
    allow_none: bool = False,
) -> None:
    """Raise unless `value` is a finite number (an integer if so asked) between `minimum` and `maximum`.

    Parameters
    ----------
    name : str
        The parameter as the user wrote it.
    value : object
        What the user gave.
    owner : estimator or str
        Whose parameter it is; named in the message.
    minimum, maximum : float, optional
        Bounds; `inclusive` says whether the bounds themselves are allowed.
    inclusive : bool
        Whether the bounds belong to the interval.
    integer : bool
        Whether only integers are accepted. Booleans never are.
    allow_none : bool
        Whether ``None`` is accepted.

    Raises
    ------
    TypeError
        If the type is wrong.
    ValueError
        If the value is outside the interval.
    """
    if value is None and allow_none:
        return
    kind = "an int" if integer else "a finite number"
    left = "(" if minimum is None or not inclusive else "["
    right = ")" if maximum is None or not inclusive else "]"
    low, high = ("-inf" if minimum is None else minimum), ("inf" if maximum is None else maximum)
    expected = f"{kind} in {left}{low}, {high}{right}" + (" or None" if allow_none else "")
    message = f"The parameter {name!r} of {_name(owner)} must be {expected}. Got {value!r} instead."
    wanted = numbers.Integral if integer else numbers.Real
    if isinstance(value, bool | np.bool_) or not isinstance(value, wanted):
        raise TypeError(message)
    number = float(value)
    below = minimum is not None and (number < minimum or (not inclusive and number == minimum))
    above = maximum is not None and (number > maximum or (not inclusive and number == maximum))
    if not np.isfinite(number) or below or above:
        raise ValueError(message)


def check_choice(name: str, value: Any, choices: Collection[Any], *, owner: object | str) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if not isinstance(value, str | int | float | bool | type(None)) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"The parameter {name!r} of {_name(owner)} must be one of {listed}. Got {value!r} instead."
        )


def check_length(name: str, values: ArrayLike, n_rows: int, each: str) -> NDArray[Any]:
    """Return `values` as an array of one value for `each` of `n_rows` things, or raise ParticleDataError."""
    array = np.asarray(values)
    if array.shape != (n_rows,):
        raise ParticleDataError(
            f"{name} has shape {array.shape}, expected ({n_rows},): one value for each {each}. Take it from "
            "the same fit or file."
        )
    return array


def check_square(name: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `shape` is that of a stack of square images."""
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] < 4:
        raise ValueError(
            f"{name} has shape {shape}, expected (n_images, D, D) with D >= 4. "
            "Give one stack of square images; crop or pad them to a common box first."
        )


def check_images(images: ArrayLike, *, name: str = "images") -> NDArray[np.float32]:
    """Return `images` as C-contiguous float32 of shape (n_images, D, D).

    Raises
    ------
    ValueError
        If the shape is not (n_images, D, D) with D >= 4, or a value is NaN or infinite.
    """
    array: NDArray[np.float32] = np.ascontiguousarray(images, dtype=np.float32)
    check_square(name, array.shape)
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array).all(axis=(1, 2)))
        raise ValueError(
            f"{name} holds NaN or infinity in {bad.size} image(s), the first at index {bad[0]}. "
            "Remove those images, or read the file with permissive=True, which drops and reports them."
        )
    return array


def _name(owner: object | str) -> str:
    return owner if isinstance(owner, str) else type(owner).__name__
