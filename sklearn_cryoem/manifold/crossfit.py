"""EM that never compares an image with templates it is part of, Eq. (3.12).

In ordinary EM the noise of an image is in the template of its class, and where classes are small it counts
more than what tells views apart: assignments hold on to themselves, and the map stays near its start.
Cross-fitted EM has no such pull. It finds the map, and ordinary EM only settles it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sklearn_cryoem._core.em import Checkpoint, NullCheckpoint
from sklearn_cryoem.manifold.blocks import Blocks, FeatureBlock, FeatureLayout, ReadBlocks, in_turn, shards
from sklearn_cryoem.manifold.coupling import TURN, Coupling
from sklearn_cryoem.manifold.expectation import Matcher, Statistics
from sklearn_cryoem.manifold.fit import StoppedEarly, interrupted_fit
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.maximisation import SMALLEST_VARIANCE, solve_weights, update_noise
from sklearn_cryoem.manifold.schedule import Schedule, Stage
from sklearn_cryoem.manifold.start import Start
from sklearn_cryoem.manifold.state import CrossFitState, FitState, Trace, say_interrupted
from sklearn_cryoem.manifold.sums import add_product, sum_in_place, transposed, with_digits_of

Sums = NDArray[Any]  # float32 or float64
Float64 = NDArray[np.float64]


class ShellNorms:
    """Blocks whose c^2 is averaged over each shell, in the M-step as if there were no astigmatism.

    With one system a shell the M-steps of all folds together cost less than one with a system for every
    coefficient. Images are still multiplied by their true CTF.

    Parameters
    ----------
    blocks : Blocks
        The data.
    """

    def __init__(self, blocks: Blocks) -> None:
        layout = blocks.layout
        self._blocks = blocks
        self.layout = dataclasses.replace(layout, norm_index=layout.shell)
        self.n_samples = blocks.n_samples
        shell = layout.shell[layout.norm_starts]  # of each column of c^2; (Q,)
        n_features = np.diff(layout.norm_starts, append=layout.n_features)  # of each column; (Q,)
        self._share = np.zeros((layout.n_norms, layout.n_shells), dtype=np.float32)  # (Q, S)
        self._share[np.arange(layout.n_norms), shell] = n_features / layout.shell_sizes[shell]

    def __len__(self) -> int:
        return len(self._blocks)

    def load(self, index: int, n_shells: int) -> FeatureBlock:
        """Return block `index`, its first `n_shells` shells, with c^2 (n, S)."""
        return self._pooled(partial(self._blocks.load, index, n_shells), n_shells)

    def fetch(self, index: int, n_shells: int) -> Callable[[], FeatureBlock]:
        """Read what block `index` is made of, if it comes from files."""
        if not isinstance(self._blocks, ReadBlocks):
            return partial(self.load, index, n_shells)
        return partial(self._pooled, self._blocks.fetch(index, n_shells), n_shells)

    def _pooled(self, make: Callable[[], FeatureBlock], n_shells: int) -> FeatureBlock:
        block = make()
        if block.norm is None:
            return block
        share = self._share[: block.norm.shape[1], :n_shells].astype(block.norm.dtype, copy=False)
        return FeatureBlock(block.data, block.norm @ share, block.power, block.log_noise)


@dataclass(frozen=True)
class FoldStatistics:
    """Statistics of Eq. (3.2) of every fold; they add over blocks in place."""

    folds: list[Statistics]

    def in_double(self) -> FoldStatistics:
        """Return the same sums in float64: the total that those of other shards are added to."""
        return FoldStatistics([part.in_double() for part in self.folds])

    def __iadd__(self, other: FoldStatistics) -> FoldStatistics:
        pairs = zip(self.folds, other.folds, strict=True)
        return FoldStatistics([mine.__iadd__(theirs) for mine, theirs in pairs])

    def total(self) -> Statistics:
        """Those of all images."""
        total = self.folds[0]
        for part in self.folds[1:]:
            total = total + part
        return total


def fold_statistics(
    blocks: Blocks, matchers: list[Matcher], n_shells: int, *, n_jobs: int | None = None
) -> FoldStatistics:
    """One pass over the data in which every fold has templates of its own, Eq. (3.12).

    Parameters
    ----------
    blocks : Blocks
        The data; row i of a block belongs to fold i modulo the number of folds.
    matchers : list of Matcher
        Templates for each fold, of the same shells.
    n_shells : int
        Shells of the statistics.
    n_jobs : int, optional
        Number of workers. The result is the same bits for any number.
    """
    return sum_in_place(partial(_shard_folds, blocks, matchers, n_shells), shards(blocks), n_jobs=n_jobs)


def _shard_folds(blocks: Blocks, matchers: list[Matcher], n_shells: int, shard: range) -> FoldStatistics:
    layout, n_nodes, n_folds = blocks.layout.truncate(n_shells), len(matchers[0].templates), len(matchers)
    dtype = matchers[0].factors.scaled.dtype
    cross: Sums = np.zeros((n_folds, n_nodes, layout.n_features), dtype)
    gram: Sums = np.zeros((n_folds, n_nodes, layout.n_norms), dtype)
    power, node_mass = np.zeros((n_folds, layout.n_shells)), np.zeros((n_folds, n_nodes))
    evidence, n_samples = [0.0] * n_folds, [0] * n_folds
    for block in in_turn(blocks, shard, n_shells):
        for fold, matcher in enumerate(matchers):
            part = matcher.in_enough_digits(block.take(slice(fold, None, n_folds)))
            weights, log_evidence = matcher.posterior(part.prefix(matcher.layout))
            left = transposed(weights, part.data.shape[1])
            cross, gram = with_digits_of(part.data, cross, gram)
            add_product(cross[fold], left, part.data)
            mass = weights.sum(axis=0, dtype=np.float64)
            gram[fold] += mass[:, None] if part.norm is None else left @ part.norm
            node_mass[fold] += mass
            power[fold] += part.power.sum(axis=0)
            evidence[fold] += float(log_evidence.sum())
            n_samples[fold] += len(part)
    sums = zip(cross, gram, power, node_mass, evidence, n_samples, strict=True)
    return FoldStatistics([Statistics(*each) for each in sums])


def cross_fit(
    blocks: Blocks,
    basis: LatentBasis,
    start: Start | None,
    mean: Float64,
    alpha: Float64,
    schedule: Schedule,
    n_iterations: int,
    *,
    n_folds: int,
    turn: float = TURN,
    noise: str = "shell",
    dtype: DTypeLike = np.float32,
    n_jobs: int | None = None,
    keeper: Checkpoint | None = None,
    found: CrossFitState | None = None,
    after_iteration: Callable[[Trace], None] | None = None,
) -> tuple[Start, Trace]:
    """Fit the manifold so that every image is compared with templates of other images alone, Eq. (3.12).

    Parameters
    ----------
    blocks : Blocks
        The data, of at least `n_folds` rows.
    basis : LatentBasis
        Nodes and Phi.
    start : Start or None
        Weights of the first shells and noise of all; None where `found` takes its place.
    mean : ndarray of shape (P,)
        CTF-corrected mean of the data.
    alpha : ndarray of shape (S,)
        Prior precision of the weights.
    schedule : Schedule
        Frequency marching and annealing.
    n_iterations : int
        Number of iterations, at least 1; all shells must be in at the last.
    n_folds : int
        Number of folds, at least 2.
    turn : float
        How far views turn until they differ: see `coupling.turn_of`.
    noise : {"white", "shell"}
        How noise variances are pooled, Eq. (3.4).
    dtype : dtype
        Precision of the matrix products: that of the blocks.
    n_jobs : int, optional
        Number of workers. The result is the same bits for any number.
    keeper : Checkpoint, optional
        Keeps the state from time to time.
    found : CrossFitState, optional
        A state of the same fit, to go on from in the place of `start`, with the same bits.
    after_iteration : callable, optional
        Called with the trace after each iteration.

    Returns
    -------
    start : Start
        Weights that all images together give, and the noise that is left of held-out ones: to go on from.
    trace : Trace
        Its objective is the mean log likelihood of held-out images.

    Raises
    ------
    StoppedEarly
        After Ctrl-C, with what was learnt.

    Notes
    -----
    One pass over the data and `n_folds` M-steps an iteration, with c^2 averaged over shells, and `n_folds`
    times the memory of the statistics. The likelihood of held-out images mostly rises, but need not.
    """
    blocks = ShellNorms(blocks)
    coupling = Coupling.of(basis, alpha, blocks.layout, mean, turn)
    keeper, state = keeper or NullCheckpoint(), found
    if state is None:
        if start is None:
            raise ValueError("A fit needs a start, or a state to go on from: give start= or found=.")
        floor, templates = SMALLEST_VARIANCE * start.noise_variance, [basis.phi @ start.weights] * n_folds
        state = CrossFitState(0, templates, start.noise_variance, floor, schedule.first_shells, Trace())
    try:
        while state.iteration < n_iterations:
            stage = schedule.stage(state.iteration)
            statistics = _held_out_pass(blocks, state, stage, dtype, n_jobs)
            before, total = state.variance[: stage.n_shells], statistics.total()
            state = _after_m_steps(statistics, total, coupling, state, stage, blocks.layout, noise, n_jobs)
            del statistics  # before those of the next pass are made
            if after_iteration is not None:
                after_iteration(state.trace)
            if state.iteration < n_iterations:  # the last is followed by what keeps the next state
                keeper.keep(state)
        used = slice(0, stage.n_shells)
        layout = blocks.layout.truncate(stage.n_shells)
        weights = solve_weights(total, basis, before, alpha[used], layout, n_jobs=n_jobs)
    except KeyboardInterrupt:
        if not state.iteration:  # nothing was learnt
            raise
        if state.iteration < n_iterations:
            keeper.keep(state, now=True)
        say_interrupted(state.trace)
        mean_of_folds = np.mean(state.templates, axis=0)
        weights = np.asarray(np.linalg.lstsq(basis.phi, mean_of_folds, rcond=None)[0], dtype=np.float64)
        reached = FitState(0, weights, state.variance, state.floor, state.n_matched, state.trace)
        raise StoppedEarly(interrupted_fit(basis, reached, alpha, blocks.layout)) from None
    return Start(weights, state.variance), state.trace


def _held_out_pass(
    blocks: Blocks, state: CrossFitState, stage: Stage, dtype: DTypeLike, n_jobs: int | None
) -> FoldStatistics:
    """E-step in which every fold is compared with its own templates."""
    n_matched = state.n_matched
    matched, variance = blocks.layout.truncate(n_matched), state.variance[:n_matched]
    matchers = [
        Matcher.of(mu, variance, matched, dtype=dtype, temperature=stage.temperature)
        for mu in state.templates
    ]
    return fold_statistics(blocks, matchers, stage.n_shells, n_jobs=n_jobs)


def _after_m_steps(
    statistics: FoldStatistics,
    total: Statistics,
    coupling: Coupling,
    state: CrossFitState,
    stage: Stage,
    layout: FeatureLayout,
    noise: str,
    n_jobs: int | None,
) -> CrossFitState:
    """State with the templates that each fold gets from the others, and the noise left of held-out images."""
    used, layout = slice(0, stage.n_shells), layout.truncate(stage.n_shells)
    variance, trace = state.variance.copy(), copy.deepcopy(state.trace)
    templates = [
        coupling.templates(without(total, part), state.variance[used], layout, n_jobs=n_jobs)
        for part in statistics.folds
    ]
    variance[used] = _held_out_noise(
        statistics, templates, layout=layout, noise=noise, floor=state.floor[used]
    )
    matched = Stage(state.n_matched, stage.temperature)
    trace.append(total.log_evidence / total.n_samples, matched, is_held_out=True)
    return CrossFitState(state.iteration + 1, templates, variance, state.floor, stage.n_shells, trace)


def without(total: Statistics, part: Statistics) -> Statistics:
    """Statistics of the images that are not in one fold."""
    return Statistics(
        total.cross - part.cross,
        np.maximum(total.gram - part.gram, 0.0),  # a sum of squares, whatever its last digits
        total.power - part.power,
        total.node_mass - part.node_mass,
        total.log_evidence - part.log_evidence,
        total.n_samples - part.n_samples,
    )


def _held_out_noise(statistics: FoldStatistics, templates: list[Float64], **options: object) -> Float64:
    """Noise variance of each shell, Eq. (3.4), about the templates without the image's fold; (S,)."""
    n_images = [part.n_samples for part in statistics.folds]
    parts = [
        update_noise(part, mu, **options)  # type: ignore[arg-type]
        for part, mu in zip(statistics.folds, templates, strict=True)
    ]
    return np.average(parts, axis=0, weights=n_images)
