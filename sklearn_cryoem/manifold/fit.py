"""The stages of a fit: cross-fitted EM, moves of nodes, ordinary EM; Eq. (3.12), Eq. (3.22), Eq. (3.5).

Expectation maximisation moves a node no further than the images that it holds. A map that begins with a fold,
or with two nodes for one view and one for two, keeps it, however many iterations there are. So nodes move.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order
from sklearn.metrics.pairwise import euclidean_distances

from sklearn_cryoem.manifold.blocks import Blocks
from sklearn_cryoem.manifold.derived_blocks import ShellNorms
from sklearn_cryoem.manifold.em import MIN_ORDINARY_ITERATIONS, EStep, HeldOutMStep, MStep, Schedule, em
from sklearn_cryoem.manifold.expectation import sweep
from sklearn_cryoem.manifold.maximisation import Coupling
from sklearn_cryoem.manifold.prior import TURN
from sklearn_cryoem.manifold.state import EMState

Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

FIXED_COST = 100.0  # of an iteration, in squared shells
MOVED_SHARE = 0.05  # of the nodes at a time
STEPS_OF_ROUND = 2  # of EM, until it shows what moves are worth
MAX_ROUNDS = 10  # that held-out images like
NEIGHBOURS = 6  # of a node on a surface
SPLIT = 0.25  # of the way to a neighbour, in both directions
TINY = 1e-300


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """What a fit does, beside its data and its start.

    Attributes
    ----------
    m_step : MStep
        That of ordinary EM.
    ordinary : Schedule
        Of ordinary EM.
    n_folds : int
        Folds of the cross-fitted EM before it; 1 where there is none.
    crossed : Schedule
        Of cross-fitted EM.
    mean : ndarray of shape (P,)
        CTF-corrected mean of the data.
    blur : float
        How much further than usual views turn until they differ, Eq. (3.19). Nodes move where it is 1.
    """

    m_step: MStep
    ordinary: Schedule
    n_folds: int
    crossed: Schedule
    mean: Float64
    blur: float

    @property
    def n_rounds(self) -> int:
        """Rounds of moves, at most."""
        may_move = self.n_folds > 1 and self.blur == 1.0
        return min(MAX_ROUNDS, self.ordinary.max_iter - MIN_ORDINARY_ITERATIONS) * may_move

    @property
    def costs(self) -> list[float]:
        """What each iteration takes, up to where ordinary EM may end: a constant and the coefficients."""
        n_crossed = self.crossed.max_iter if self.n_folds > 1 else 0
        n_ordinary = min(self.ordinary.max_iter, max(MIN_ORDINARY_ITERATIONS, self.ordinary.n_marching))
        crossed = [FIXED_COST + self.crossed.shells_at(number) ** 2 for number in range(n_crossed)]
        rounds = [(STEPS_OF_ROUND + 1) * (FIXED_COST + self.crossed.n_shells**2)] * self.n_rounds
        return (
            crossed
            + rounds
            + [FIXED_COST + self.ordinary.shells_at(number) ** 2 for number in range(n_ordinary)]
        )


def fit_states(blocks: Blocks, plan: FitPlan, state: EMState) -> Iterator[EMState]:
    """Yield the states of a fit: cross-fitted EM, Eq. (3.12), moves, then ordinary EM until it stands still.

    Parameters
    ----------
    blocks : Blocks
        The data, of at least `n_folds` rows.
    plan : FitPlan
        What to do.
    state : EMState
        From `first_state`, or where the same fit was left.
    """
    m_step, crossed, ordinary = plan.m_step, plan.crossed, plan.ordinary
    if state.templates:
        shells, last = ShellNorms(blocks), state
        coupled = replace(m_step, layout=shells.layout)
        coupling = Coupling.of(m_step.basis, m_step.alpha, shells.layout, plan.mean, TURN * plan.blur)
        folds = partial(sweep, shells, split="folds", n_jobs=m_step.n_jobs)
        for last in em(folds, HeldOutMStep.of(coupled, coupling), crossed, state):
            yield last
        # Nodes that move are unlike their neighbours: no more coupling than in ordinary EM.
        narrow = Coupling([m_step.basis.phi] * shells.layout.n_shells, m_step.alpha, plan.mean)
        alone = HeldOutMStep.of(coupled, narrow)
        rounds = rearranged(folds, alone, last, crossed.max_iter + plan.n_rounds * STEPS_OF_ROUND)
        for last in rounds:
            yield last
        if last.weights is None:
            statistics = folds(alone.matchers(last), n_shells=last.n_shells)
            last = alone(last, statistics, last.n_shells, is_last=True)
        state = replace(last, iteration=0, templates=[])
    n_rounds = max(sum(state.trace.is_held_out) - crossed.max_iter, 0)
    left = replace(ordinary, max_iter=ordinary.max_iter - n_rounds)
    yield from em(partial(sweep, blocks, n_jobs=m_step.n_jobs), m_step, left, state)


def rearranged(e_step: EStep, m_step: HeldOutMStep, state: EMState, limit: int) -> Iterator[EMState]:
    """Yield the state after each round of moves; one that held-out images do not like is undone, Eq. (3.22).

    Parameters
    ----------
    e_step : callable
        The images, by folds.
    m_step : HeldOutMStep
        That couples nodes no more than ordinary EM does: what has moved is unlike its neighbours.
    state : EMState
        The end of cross-fitted EM; `n_moved` nodes move at a time, half of them after a failure.
    limit : int
        M-steps, at most.

    Notes
    -----
    Three passes over the data a round.
    """
    n_shells, basis, before = state.n_shells, m_step.basis, None
    n_moved = state.n_moved
    if n_moved is None:
        n_moved = max(1, round(MOVED_SHARE * len(basis.nodes)))
    layout, pairs = m_step.layout.truncate(n_shells), basis.space.pairs(basis.grid_shape)
    while n_moved and state.iteration < limit:
        before = before or _held_out(e_step, m_step, state)  # a state may have been kept
        precision = (layout.counts / state.noise_variance[:n_shells])[layout.shell]  # (P,), Eq. (3.31)
        trial = replace(state, templates=with_moves(state.templates, before[1], precision, pairs, n_moved))
        for _ in range(STEPS_OF_ROUND):
            statistics = e_step(m_step.matchers(trial), n_shells=n_shells)
            trial = m_step(trial, statistics, n_shells, is_last=False)
            del statistics
        after = _held_out(e_step, m_step, trial)
        if after[0][0] > before[0][0]:
            before, state = after, replace(trial, trace=trial.trace.extended(*after[0]))
        else:
            n_moved //= 2
        state = replace(state, n_moved=n_moved)
        yield state


def _held_out(e_step: EStep, m_step: HeldOutMStep, state: EMState) -> tuple[tuple[Any, ...], Float64]:
    """Entry of a state in the trace, the likelihood of held-out images first, and the mass of nodes, (K,)."""
    statistics = e_step(m_step.matchers(state), n_shells=state.n_shells)
    return m_step.entry(state, statistics), statistics.mass.sum(axis=0)


def with_moves(
    templates: list[Float64], mass: Float64, precision: Float64, pairs: Int, n_moved: int
) -> list[Float64]:
    """Templates after moves of nodes, Eq. (3.22).

    Parameters
    ----------
    templates : list of ndarray of shape (K, P)
        Of each fold; all move alike.
    mass : ndarray of shape (K,)
        Images of each node.
    precision : ndarray of shape (P,)
        Of the noise.
    pairs : ndarray of shape (n_pairs, 2)
        Nodes that are neighbours in the latent space.
    n_moved : int
        Moves, at most.
    """
    found, moves = [mu.copy() for mu in templates], list[tuple[int, int]]()
    distance = euclidean_distances(np.mean(templates, axis=0) * np.sqrt(precision), squared=True)  # (K, K)
    loss = distance * mass / np.maximum(1.0 + mass / np.maximum(mass[:, None], TINY), TINY)  # of two in one
    np.fill_diagonal(loss, np.inf)
    at_rest = list(np.argsort(-mass, kind="stable"))  # the heaviest comes first
    for node in np.argsort(loss.min(axis=1), kind="stable"):
        twin = loss[node].argmin()
        if len(moves) == n_moved or len(at_rest) < 3:
            break
        if not {node, twin} <= set(at_rest):
            continue
        at_rest = [other for other in at_rest if other not in (node, twin)]
        crowded = at_rest.pop(0)
        near = np.argsort(distance[crowded], kind="stable")[1 : 1 + NEIGHBOURS]
        partner = near[mass[near].argmax()]
        share = mass[[node, twin]] / max(mass[node] + mass[twin], TINY)
        for mu, new in zip(templates, found, strict=True):
            new[twin], apart = share @ mu[[node, twin]], SPLIT * (mu[partner] - mu[crowded])
            new[node], new[crowded] = mu[crowded] + apart, mu[crowded] - apart
        moves.append((int(node), int(crowded)))
    occupant = occupants(moves, pairs, len(mass))
    return [mu[occupant] for mu in found]


def occupants(moves: list[tuple[int, int]], pairs: Int, n_nodes: int) -> Int:
    """Which template each place of the map gets when nodes move beside others, so that neighbours stay.

    All templates on the way to the new place go one place back.
    """
    occupant = np.arange(n_nodes)
    graph = coo_matrix((np.ones(len(pairs)), pairs.T), (n_nodes, n_nodes)).tocsr()
    for node, beside in moves:
        start, place = (int(np.flatnonzero(occupant == wanted)[0]) for wanted in (node, beside))
        before = breadth_first_order(graph, start, directed=False)[1]
        way: list[int] = []
        while place != start:
            place = int(before[place])
            way.insert(0, place)
        occupant[way] = np.append(occupant[way[1:]], node)
    return occupant
