"""The order in which frequencies enter and the temperature falls: frequency marching and annealing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

MOST_MARCHING_ITERATIONS = 40
MOST_CROSS_FITTED_ITERATIONS = 80  # the map keeps getting better to about here
FEWEST_ORDINARY_ITERATIONS = 4  # all shells are in at the second, and a gain can be told at the fourth


class Stage(NamedTuple):
    """What one iteration uses."""

    n_shells: int
    temperature: float


@dataclass(frozen=True)
class Schedule:
    """Shells and temperature of every iteration.

    Attributes
    ----------
    first_shells : int
        Shells of the initial resolution.
    n_shells : int
        All shells.
    initial_temperature : float
        At the first iteration; it falls linearly to 1.
    n_iterations : int
        Iterations until all shells are in and the temperature is 1; 0 if both are so from the start.
    """

    first_shells: int
    n_shells: int
    initial_temperature: float
    n_iterations: int

    @classmethod
    def of(cls, first_shells: int, n_shells: int, initial_temperature: float, max_iter: int) -> Schedule:
        """Use at most 40 iterations, and at most half of `max_iter`, for marching and annealing."""
        needed = first_shells < n_shells or initial_temperature > 1.0
        n_iterations = min(MOST_MARCHING_ITERATIONS, max_iter // 2) if needed else 0
        return cls(min(first_shells, n_shells), n_shells, initial_temperature, n_iterations)

    def stage(self, iteration: int) -> Stage:
        """Stage of an iteration, counted from 0: shells grow by equal factors, the last stage is for good."""
        if iteration >= self.n_iterations:
            return Stage(self.n_shells, 1.0)
        done = iteration / self.n_iterations
        n_shells = round(self.first_shells * (self.n_shells / self.first_shells) ** done)
        return Stage(n_shells, 1.0 + (self.initial_temperature - 1.0) * (1.0 - done))

    def cross_fitted_iterations(self, max_iter: int) -> int:
        """Count cross-fitted iterations, Eq. (3.12): 80, 1/5 of `max_iter` being left; 0 if too few."""
        left = max(FEWEST_ORDINARY_ITERATIONS, max_iter // 5)
        n_iterations = min(MOST_CROSS_FITTED_ITERATIONS, max_iter - left)
        return n_iterations if n_iterations > self.n_iterations else 0
