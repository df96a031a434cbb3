"""What a long run needs to survive being killed: somebody who keeps its state."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

RandomTuple = tuple[str, np.ndarray, int, int, float]


class Keeper(Protocol):
    """Keeps the last state of a run: a dataclass of numbers, text, arrays and other dataclasses."""

    def load(self) -> Any:
        """Return the last state kept, or None."""

    def keep(self, state: Any, *, now: bool = False) -> None:
        """Keep `state`, if the last one is old enough or it must be `now`."""


class ForgetfulKeeper:
    """Keeps nothing."""

    def load(self) -> None:
        """Nothing was kept."""
        return

    def keep(self, state: Any, *, now: bool = False) -> None:
        """Forget it."""


def random_tuple(rng: np.random.RandomState) -> RandomTuple:
    """State of a generator as plain values; ``rng.set_state`` takes them back."""
    name, keys, position, has_gauss, cached = rng.get_state(legacy=True)
    return str(name), np.asarray(keys), int(position), int(has_gauss), float(cached)
