"""The order in which frequencies enter and the temperature falls: frequency marching and annealing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

MOST_MARCHING_ITERATIONS = 20
MOST_CROSS_FITTED_ITERATIONS = 60  # all of them march: each shell is settled before the next comes
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
        """Use at most 20 iterations, and at most half of `max_iter`, for marching and annealing."""
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

    @classmethod
    def cross_fitted(
        cls, first_shells: int, n_shells: int, initial_temperature: float, max_iter: int
    ) -> Schedule:
        """Schedule of cross-fitted EM, Eq. (3.12): it marches all the time; the last iteration has it all."""
        needed = first_shells < n_shells or initial_temperature > 1.0
        n_iterations = max(cross_fitted_iterations(max_iter) - 1, 0) if needed else 0
        return cls(min(first_shells, n_shells), n_shells, initial_temperature, n_iterations)


def cross_fitted_iterations(max_iter: int) -> int:
    """Count cross-fitted iterations, Eq. (3.12): 60, a fifth of `max_iter` being left; 0 if too few."""
    left = max(FEWEST_ORDINARY_ITERATIONS, max_iter // 5)
    return max(min(MOST_CROSS_FITTED_ITERATIONS, max_iter - left), 0)
