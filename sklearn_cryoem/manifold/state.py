"""Where a fit of the manifold stands: all that its next iteration depends on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem.manifold.schedule import Stage

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """How the fit went; the lists hold one entry for each iteration.

    Attributes
    ----------
    objective : list of float
        Objective (3.5) after the iteration, divided by the number of images.
    n_shells : list of int
        Shells it was measured on.
    temperature : list of float
        Temperature it was measured at.
    is_held_out : list of bool
        Whether it is the likelihood of held-out images, Eq. (3.12), which every iteration is a stage of its
        own for.
    """

    objective: list[float] = field(default_factory=list)
    n_shells: list[int] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)
    is_held_out: list[bool] = field(default_factory=list)

    def append(self, objective: float, stage: Stage, *, is_held_out: bool = False) -> None:
        """Add an iteration."""
        self.objective.append(objective)
        self.n_shells.append(stage.n_shells)
        self.temperature.append(stage.temperature)
        self.is_held_out.append(is_held_out)

    @property
    def stage(self) -> NDArray[np.int64]:
        """Number of the stage of each iteration; objectives can be compared inside a stage alone."""
        pairs = list(zip(self.n_shells, self.temperature, strict=True))
        changes = [i > 0 and (pairs[i] != pairs[i - 1] or self.is_held_out[i - 1]) for i in range(len(pairs))]
        return np.cumsum(changes, dtype=np.int64)

    @property
    def last_gain(self) -> float:
        """Gain of the last iteration over the one before; infinite where they cannot be compared."""
        stage = self.stage
        if len(stage) < 2 or stage[-1] != stage[-2]:
            return float("inf")
        return self.objective[-1] - self.objective[-2]


@dataclass(frozen=True)
class CrossFitState:
    """Where cross-fitted EM stands, Eq. (3.12).

    Attributes
    ----------
    iteration : int
        Iterations made.
    templates : list of n_folds ndarrays of shape (K, P)
        For the images of each fold.
    variance, floor : ndarrays of shape (S,)
        Noise, and the least that it may be.
    n_matched : int
        Shells of the templates.
    trace : Trace
        Of the iterations made.
    """

    iteration: int
    templates: list[Float64]
    variance: Float64
    floor: Float64
    n_matched: int
    trace: Trace


@dataclass(frozen=True)
class FitState:
    """Where EM stands.

    Attributes
    ----------
    iteration : int
        M-steps made.
    weights : ndarray of shape (M + 1, P)
        W of Eq. (2.2), of the shells in use.
    noise_variance, floor : ndarrays of shape (S,)
        Noise of all shells, and the least that it may be.
    n_matched : int
        Shells of the weights.
    trace : Trace
        Of the iterations made, those of cross-fitted EM first.
    """

    iteration: int
    weights: Float64
    noise_variance: Float64
    floor: Float64
    n_matched: int
    trace: Trace


def say_interrupted(trace: Trace) -> None:
    """Warn that Ctrl-C ended a fit, and say how to go on."""
    n_iter = len(trace.objective)
    warnings.warn(
        f"The fit was interrupted after {n_iter} iteration{'s' if n_iter != 1 else ''} and ends with what it "
        "has learnt; Ctrl-C again leaves at once. Fit again with the same checkpoint to go on from here.",
        UserWarning,
        stacklevel=2,
    )
