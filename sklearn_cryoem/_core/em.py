"""What the EM fits of alignment and manifold share: sums that add, checkpoints, and the way to the end."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable
from typing import Any, Self, TypeVar

import numpy as np

RandomTuple = tuple[str, np.ndarray, int, int, float]
State = TypeVar("State")


class Additive:
    """A dataclass of sums over images. They add field by field, over blocks, workers and machines.

    Fields are arrays or numbers, or lists, which are joined.
    """

    def __add__(self, other: Self) -> Self:
        return self._combined(operator.add, other)

    def __iadd__(self, other: Self) -> Self:
        # Arrays change in place: no third array of their size is made.
        return self._combined(operator.iadd, other)

    def _combined(self, add: Callable[[Any, Any], Any], other: Self) -> Self:
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        return type(self)(**{name: add(getattr(self, name), getattr(other, name)) for name in names})

    def in_double(self) -> Self:
        """Return the same sums with float32 arrays as float64: the total that other sums are added to."""
        values = vars(self).items()
        arrays = {name: value for name, value in values if isinstance(value, np.ndarray)}
        double = {
            name: value.astype(np.float64) for name, value in arrays.items() if value.dtype == np.float32
        }
        return dataclasses.replace(self, **double)  # type: ignore[type-var]


class Checkpoint:
    """Keeps the last state of a fit, a dataclass of numbers, text and arrays: here nowhere."""

    def load(self) -> Any:
        """Return the last state kept, or None."""

    def keep(self, state: Any, *, now: bool = False) -> None:
        """Keep `state`, if the last one is old enough or it must be `now`."""

    def remove(self) -> None:
        """Keep nothing any longer: the fit has ended."""


def last_state(
    states: Iterable[State],
    checkpoint: Checkpoint,
    after_state: Callable[[State], None],
    found: State | None = None,
) -> tuple[State, bool]:
    """Go through the states of a fit to the last one, or to the one that Ctrl-C leaves.

    Parameters
    ----------
    states : iterable
        States after each iteration, such as ``em(...)`` yields.
    checkpoint : Checkpoint
        Keeps states from time to time and the last one in any case; the same fit can go on from there.
    after_state : callable
        Called with each state: what shows progress.
    found : object, optional
        The state that the fit goes on from, if it was begun before.

    Returns
    -------
    state : object
        The last one.
    interrupted : bool
        Whether Ctrl-C ended the fit.

    Raises
    ------
    KeyboardInterrupt
        If no iteration was done before Ctrl-C: there is nothing to use.
    """
    state, interrupted = found, False
    try:
        for state in states:
            checkpoint.keep(state)
            after_state(state)
    except KeyboardInterrupt:
        if state is None:
            raise
        interrupted = True
    if state is None:
        raise ValueError("The fit has no state: give it at least one iteration, or a state to go on from.")
    checkpoint.keep(state, now=True)  # an interruption of what follows leaves no state of its own
    return state, interrupted


def random_tuple(rng: np.random.RandomState) -> RandomTuple:
    """State of a generator as plain values; ``rng.set_state`` takes them back."""
    name, keys, position, has_gauss, cached = rng.get_state(legacy=True)
    return str(name), np.asarray(keys), int(position), int(has_gauss), float(cached)
