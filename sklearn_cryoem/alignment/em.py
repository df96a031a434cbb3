"""Reference-free alignment: mini-batch online EM, then full passes, section 4 of the mathematics."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.em import Checkpoint, NullCheckpoint, random_tuple
from sklearn_cryoem._core.parallel import single_blas_threads
from sklearn_cryoem._core.progress import Progress, progress
from sklearn_cryoem.alignment.features import FeatureSource
from sklearn_cryoem.alignment.maximisation import Statistics, blend
from sklearn_cryoem.alignment.memory import announce, memory_needed
from sklearn_cryoem.alignment.model import AlignmentModel, AlignmentSettings
from sklearn_cryoem.alignment.passes import PassResult, run_pass
from sklearn_cryoem.alignment.poses import follow_images, place_images
from sklearn_cryoem.alignment.reseed import mean_evidence, reseed
from sklearn_cryoem.alignment.residuals import log_noise_likelihood
from sklearn_cryoem.alignment.schedule import (
    next_k_max,
    online_limit,
    online_step,
    random_batches,
    rebalanced,
)
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.alignment.start import starting_model
from sklearn_cryoem.alignment.state import FittedAlignment, OnlineState, PassState
from sklearn_cryoem.alignment.update import update_model
from sklearn_cryoem.physics.fourier import Float64

logger = logging.getLogger(__name__)

Rows = NDArray[np.int64]

LAST_RESEEDING = 0.8  # of the mini-batches: dead references start again only before
IMAGES_TO_COMPARE = 1000  # seen by every start before the best is chosen
FEW_CHANGES = 0.01  # of the images: labels and poses stand still
TOLERATED_STEPS = 1.5  # of the search, in angle and shift: neighbouring cells of one peak


class StoppedEarly(Exception):
    """Mini-batches were interrupted; carries the model that they had reached."""

    def __init__(self, model: AlignmentModel) -> None:
        super().__init__("The mini-batches were interrupted.")
        self.model = model


def fit_alignment(
    source: FeatureSource,
    settings: AlignmentSettings,
    rng: np.random.RandomState,
    *,
    start: AlignmentModel | None = None,
    keeper: Checkpoint | None = None,
    verbose: int | bool = 0,
    on_step: Callable[[int], None] | None = None,
) -> FittedAlignment:
    """Align a set of images without references, Eq. (4.2)-(4.5), (4.7)-(4.8).

    Parameters
    ----------
    source : FeatureSource
        The images, and who works on them.
    settings : AlignmentSettings
        What to do.
    rng : RandomState
        First references and order of the batches.
    start : AlignmentModel or None
        A model to go on from: the full passes alone follow.
    keeper : Checkpoint or None
        Keeps the state from time to time; a state that it has is gone on from, with the same bits.
    verbose : int
        1 shows progress.
    on_step : callable or None
        Called with the number of mini-batches or passes that are done, as they are.

    Notes
    -----
    Ctrl-C ends the mini-batches or the passes, and what was learnt is used. Before the first pass ends there
    is nothing to use.
    """
    keeper = keeper or NullCheckpoint()
    found = keeper.load()
    n_online = settings.n_batches * settings.n_init if start is None else 0
    total = n_online + settings.max_iter
    announce(source, settings, online_limit(settings), logger)
    with progress(total, "aligning", verbose=verbose, on_step=on_step) as bar, single_blas_threads():
        if isinstance(found, PassState):
            bar.update(n_online + len(found.evidence))
            return full_passes(source, settings, found, keeper=keeper, bar=bar)
        try:
            if start is None:
                model = best_start(source, settings, rng, keeper=keeper, found=found, bar=bar)
            else:
                model = start
                place_images(source, model, settings)
        except StoppedEarly as early:  # one pass, to use what was learnt; the state kept is that before
            state = PassState(early.model, scale=source.scale, shift_px=source.shift_px)
            return replace(
                full_passes(source, replace(settings, max_iter=1), state, bar=bar), interrupted=True
            )
        state = PassState(model, scale=source.scale, shift_px=source.shift_px)
        return full_passes(source, settings, state, keeper=keeper, bar=bar)


def best_start(
    source: FeatureSource,
    settings: AlignmentSettings,
    rng: np.random.RandomState,
    *,
    bar: Progress,
    keeper: Checkpoint | None = None,
    found: OnlineState | None = None,
) -> AlignmentModel:
    """The model of the online phase that explains a random subset best, of `settings.n_init`.

    All are compared at the lowest resolution and with the mean noise that they reach.
    """
    candidates = [] if found is None else list(found.candidates)
    bar.update(settings.n_batches * len(candidates))
    while len(candidates) < settings.n_init:
        if found is None:
            source.shift_px = source.known.shift_px
            first = starting_model(source, settings, rng)
            state = OnlineState.before(first, rng, tuple(candidates))
        else:
            state, found = found, None
        model = online_phase(source, settings, state, rng, keeper=keeper, bar=bar)
        candidates.append((model, source.shift_px))
    models = [model for model, _ in candidates]
    if len(models) == 1:
        return models[0]
    rows = np.sort(rng.permutation(source.n_images)[:IMAGES_TO_COMPARE])
    k_max = min(model.k_max for model in models)
    noise = np.mean([model.noise for model in models], axis=0)
    space = settings.space(source.box, k_max)
    evidence = []
    for number, model in enumerate(models, start=1):
        same = replace(model, noise=noise, k_max=k_max)
        source.shift_px = candidates[number - 1][1]
        evidence.append(run_pass(source, rows, same, space).log_evidence.mean())
        logger.info("start %d of %d: log evidence %.3f", number, len(models), evidence[-1])
    model, source.shift_px = candidates[int(np.argmax(evidence))]
    return model


def online_phase(
    source: FeatureSource,
    settings: AlignmentSettings,
    state: OnlineState,
    rng: np.random.RandomState,
    *,
    bar: Progress,
    keeper: Checkpoint | None = None,
) -> AlignmentModel:
    """Many cheap updates from mini-batches, Eq. (4.8); `rng` is taken to where `state` left it."""
    rng.set_state(state.drawn_with)
    batches = random_batches(source.n_images, settings.batch_size, settings.n_batches, rng)
    source.shift_px = source.known.shift_px if state.shift_px is None else state.shift_px
    if state.number:
        rng.set_state(state.rng)
        bar.update(state.number)
    try:
        for number in range(state.number, len(batches)):
            model, stats, broad = _after_batch(source, settings, state, batches[number], rng, len(batches))
            state = replace(
                state, rng=random_tuple(rng), number=number + 1, model=model, stats=stats, broad=broad,
                shift_px=source.shift_px,
            )  # fmt: skip
            if keeper is not None:
                keeper.keep(state)
            _report(bar, f"batch {number + 1}", model, source.box)
    except KeyboardInterrupt:
        if keeper is not None:
            keeper.keep(state, now=True)
        _say_interrupted(f"after {state.number} of {len(batches)} mini-batches")
        raise StoppedEarly(replace(state.model, balance=np.zeros_like(state.model.balance))) from None
    return replace(state.model, balance=np.zeros_like(state.model.balance))


def _after_batch(
    source: FeatureSource,
    settings: AlignmentSettings,
    state: OnlineState,
    rows: Rows,
    rng: np.random.RandomState,
    n_batches: int,
) -> tuple[AlignmentModel, Statistics, bool]:
    """Model and statistics after one more mini-batch, and whether its posteriors were broad."""
    model, number = state.model, state.number
    space = settings.space(source.box, model.k_max)
    result = run_pass(source, rows, model, space, broad=state.broad)
    batch = result.statistics
    step = online_step(number, n_batches)
    stats = blend(state.stats, batch.scaled(source.n_images / len(rows)), step)
    model, stats = update_model(
        stats, model, space.grid, settings, source.noise_fraction, source.pool.n_workers
    )
    model = rebalanced(model, batch.mass)
    if number < LAST_RESEEDING * n_batches:
        explained = mean_evidence(result.label, result.log_evidence, settings.n_references)
        model, stats = reseed(model, stats, space.grid, settings, source.noise_fraction, rng, explained)
    model = replace(model, k_max=next_k_max(model, settings, (number + 1) / n_batches))
    follow_images(source, settings, rows, result.lies_px(source, rows, space), result.log_evidence)
    return model, stats, result.is_broad


def full_passes(
    source: FeatureSource,
    settings: AlignmentSettings,
    state: PassState,
    *,
    bar: Progress,
    keeper: Checkpoint | None = None,
) -> FittedAlignment:
    """Passes over all images until their likelihood, or labels and poses, stand still, Eq. (3.5)."""
    source.scale = state.scale
    if state.shift_px is not None:
        source.shift_px = state.shift_px
    interrupted, said = False, memory_needed(source, settings, online_limit(settings))
    if keeper is not None:
        keeper.keep(state, now=True)
    try:
        while not state.converged and len(state.evidence) < settings.max_iter:
            said = announce(source, settings, state.model.k_max, logger, said=said, broad=state.broad)
            state = _after_pass(source, settings, state)
            if keeper is not None:
                keeper.keep(state, now=True)
            _report(bar, f"pass {len(state.evidence)}", state.model, source.box)
    except KeyboardInterrupt:
        if state.stats is None:
            raise
        interrupted = True
        _say_interrupted(f"after {len(state.evidence)} full passes")
    if state.stats is None:
        raise ValueError("An alignment needs at least one full pass. Set max_iter to 1 or more.")
    grid = settings.space(source.box, state.k_max).grid
    figures = np.array(state.evidence), np.array(state.likelihood), np.array(state.resolved)
    n_iter = len(state.evidence)
    return FittedAlignment(
        state.model, state.stats, grid, *figures, n_iter, state.converged, state.changed, interrupted
    )


def _after_pass(source: FeatureSource, settings: AlignmentSettings, state: PassState) -> PassState:
    """One more pass over all images, and the update of the model."""
    rows = np.arange(source.n_images)
    space = settings.space(source.box, state.model.k_max)
    result = run_pass(source, rows, state.model, space, broad=state.broad)
    source.learn_scale(rows, result.scale)
    evidence = [*state.evidence, float(result.log_evidence.mean())]
    noise = _log_noise(result.statistics, state.model, source.noise_fraction)
    likelihood = [*state.likelihood, evidence[-1] + noise]
    changed, same_rings = 1.0, False
    lies_px = result.lies_px(source, rows, space)
    if state.evidence:
        last_space = settings.space(source.box, state.k_max)
        changed = _changed(state, last_space, result, space, lies_px)
        same_rings = space.n_rings == last_space.n_rings
    model, stats = update_model(
        result.statistics, state.model, space.grid, settings, source.noise_fraction, source.pool.n_workers
    )
    converged = same_rings and (
        abs(likelihood[-1] - likelihood[-2]) <= settings.tol * abs(evidence[-1]) or changed <= FEW_CHANGES
    )
    follow_images(source, settings, rows, lies_px, result.log_evidence)
    return PassState(
        replace(model, k_max=next_k_max(model, settings, None)),
        stats,
        evidence,
        likelihood,
        [*state.resolved, int(model.resolution.max())],
        state.model.k_max,
        result.label,
        lies_px,
        result.best_angle,
        result.is_broad,
        changed,
        converged,
        source.scale,
        source.shift_px,
    )


def _say_interrupted(when: str) -> None:
    warnings.warn(
        f"The alignment was interrupted {when} and ends with what it has learnt; Ctrl-C again leaves at "
        "once. Fit again with warm_start=True to go on from here, or with the same checkpoint to go on from "
        "the last state kept there.",
        UserWarning,
        stacklevel=2,
    )


def _log_noise(stats: Statistics, model: AlignmentModel, noise_fraction: float) -> float:
    """Mean of log p(image | noise alone): evidence is against noise, whose level changes between passes."""
    power = stats.power / np.maximum(stats.n_images, 1e-9)  # (n_rings,)
    return float(
        log_noise_likelihood(power[None].astype(np.float32), model.noise[: len(power)], noise_fraction)[0]
    )


def _changed(
    old: PassState, old_space: SearchSpace, new: PassResult, space: SearchSpace, lies_px: Float64
) -> float:
    """Fraction of the images with another reference, or a pose more than a step of the search away."""
    if old.label is None or old.lies_px is None or old.best_angle is None:
        return 1.0
    turn = old_space.angles_rad[old.best_angle] - space.angles_rad[new.best_angle]
    moved = old.lies_px - lies_px
    same = (
        (old.label == new.label)
        & (np.abs(np.angle(np.exp(1j * turn))) <= TOLERATED_STEPS * space.angle_step_rad)
        & (np.hypot(*moved.T) <= TOLERATED_STEPS * space.shift_step_px)
    )
    return float(np.mean(~same))


def _report(bar: Progress, what: str, model: AlignmentModel, box: int) -> None:
    bar.update()
    bar.note(f"{what}: {model.k_max:.1f} of {box // 2} rings, resolved {model.resolution.max()}")
    logger.debug("%s: k_max %.1f, resolved ring %d", what, model.k_max, model.resolution.max())
