"""Reference-free alignment: mini-batch online EM, then full passes, section 4 of the mathematics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.em import Checkpoint, RandomTuple, last_state, random_tuple
from sklearn_cryoem._core.memory import log_estimate
from sklearn_cryoem._core.parallel import single_blas_threads
from sklearn_cryoem._core.progress import progress
from sklearn_cryoem._core.validation import warn
from sklearn_cryoem.alignment.features import SharedFeatures
from sklearn_cryoem.alignment.maximisation import Statistics, blend
from sklearn_cryoem.alignment.model import AlignmentModel, log_noise_likelihood
from sklearn_cryoem.alignment.passes import BROAD, PassResult, memory_bound, run_pass
from sklearn_cryoem.alignment.poses import followed_shifts, placed_shifts
from sklearn_cryoem.alignment.search import AlignmentSettings, SearchSpace
from sklearn_cryoem.alignment.start import FREE, References, random_batches
from sklearn_cryoem.physics.fourier import Float64

logger = logging.getLogger(__name__)

Rows = NDArray[np.int64]

FIRST_STEP, LAST_STEP = 0.9, 0.1
FEW_CHANGES = 0.01  # of the images: labels and poses stand still
TOLERATED_STEPS = 1.5  # of the search, in angle and shift: neighbouring cells of one peak change for ever
SURE, SURE_BATCHES = 0.001, 60  # of all cells; batches that then reach what 200 do
NOTABLE_GROWTH = 1.5  # a memory bound so many times the last one is logged
HISTORY = ("log_evidence", "resolved", "n_references", "changed")  # what each mini-batch or pass came to


@dataclass(frozen=True)
class OnlineState:
    """Where mini-batches stand: all that the next one depends on.

    Attributes
    ----------
    model : AlignmentModel
        As the last batch left it.
    stats : Statistics or None
        The sums that it came from; None before the first batch.
    start_shift_px : ndarray of shape (n_images, 2)
        Shifts that the images are brought into next, Eq. (4.16).
    broad : bool
        Whether posteriors are broad, as they are before anything is known.
    label : ndarray of shape (n_images,)
        Reference of every image when it was seen last; -1 for none.
    history : ndarray of shape (n_steps, 4)
        A row for each batch, by `HISTORY`.
    n_done : int
        Batches done, or left out, of the schedule.
    drawn_from, rng : tuple
        State of the generator before the batches were drawn, and now.
    """

    model: AlignmentModel
    stats: Statistics | None
    start_shift_px: Float64
    broad: bool
    label: Rows
    history: Float64
    n_done: int
    drawn_from: RandomTuple
    rng: RandomTuple

    @classmethod
    def first(cls, model: AlignmentModel, shift_px: Float64, rng: np.random.RandomState) -> OnlineState:
        """State before the first batch; nothing is known, so posteriors will be broad."""
        now, label, history = random_tuple(rng), np.full(len(shift_px), -1), np.empty((0, len(HISTORY)))
        return cls(model, None, shift_px, True, label, history, n_done=0, drawn_from=now, rng=now)


@dataclass(frozen=True)
class PassState:
    """Where full passes stand, and in the end the outcome of an alignment.

    Attributes
    ----------
    model : AlignmentModel
        For the next pass.
    start_shift_px : ndarray of shape (n_images, 2)
        Shifts that the images are brought into next, Eq. (4.16).
    stats : Statistics or None
        Sums of the last pass, in the frames of the model's references; None before the first.
    k_max : float
        Resolution of the last pass.
    broad : bool
        Whether its posteriors were broad.
    label, angle_rad, found_shift_px : ndarrays of shape (n_images,), (n_images,) and (n_images, 2), or None
        Reference, angle and shift of every image by the last pass, as of `PassResult`.
    log_likelihood : list of float
        Mean log likelihood of an image in each full pass, up to the rings in use.
    history : ndarray of shape (n_steps, 4)
        A row for each batch and each pass.
    changed : float
        Part of the images whose reference or pose changed in the last pass.
    converged : bool
        Whether no further pass is needed.
    """

    model: AlignmentModel
    start_shift_px: Float64
    stats: Statistics | None = None
    k_max: float = 0.0
    broad: bool = False
    label: Rows | None = None
    angle_rad: Float64 | None = None
    found_shift_px: Float64 | None = None
    log_likelihood: list[float] = field(default_factory=list)
    history: Float64 = field(default_factory=lambda: np.empty((0, len(HISTORY))))
    changed: float = 1.0
    converged: bool = False

    @property
    def log_evidence(self) -> Float64:
        """Mean log evidence of an image in each full pass, against noise alone."""
        return self.history[len(self.history) - len(self.log_likelihood) :, 0]


def fit_alignment(
    features: SharedFeatures,
    settings: AlignmentSettings,
    rng: np.random.RandomState,
    *,
    start: AlignmentModel | None = None,
    checkpoint: Checkpoint | None = None,
    verbose: int | bool = 0,
    on_step: Callable[[int], None] | None = None,
    references: References = FREE,
) -> tuple[PassState, bool]:
    """Align a set of images without references, Eq. (4.2)-(4.5), (4.7)-(4.8).

    Parameters
    ----------
    features : SharedFeatures
        The images, and who works on them.
    settings : AlignmentSettings
        What to do.
    rng : RandomState
        First references and order of the batches.
    start : AlignmentModel or None
        A model to go on from: the full passes alone follow.
    checkpoint : Checkpoint or None
        Keeps the state from time to time; a state that it has is gone on from, with the same bits.
    verbose : int
        1 shows progress.
    on_step : callable or None
        Called with the number of mini-batches or passes that are done, as they are.
    references : References
        How references are made: free of one another, or as slices of volumes.

    Returns
    -------
    state : PassState
        After the last full pass.
    interrupted : bool
        Whether Ctrl-C ended the fit.

    Notes
    -----
    After Ctrl-C what was learnt is used: mini-batches are followed by one pass, whose state is not kept.
    Before the first pass ends there is nothing to use.
    """
    kept = Checkpoint() if checkpoint is None else checkpoint
    found, stopped = kept.load(), False
    box, n_batches = features.images.box, settings.n_batches if start is None else 0
    scale, unit = (1.0, "px") if features.images.pixel_size is None else (features.images.pixel_size, "A")
    announced = [0.0]  # the memory bound that was logged last
    visits = [settings.batch_size] * n_batches + [features.images.n_images] * settings.max_iter
    with (
        progress(len(visits), "aligning", verbose=verbose, on_step=on_step, costs=visits) as bar,
        single_blas_threads(),
    ):

        def show(state: OnlineState | PassState) -> None:
            model = state.model
            _log_memory(features, settings, model.k_max, announced)
            bar.update(state.n_done - bar.n_done if isinstance(state, OnlineState) else 1)
            bar.note(f"details to {box * scale / model.k_max:.3g} {unit}")

        _log_memory(features, settings, min(settings.growth * settings.k_start, settings.k_limit), announced)
        if isinstance(found, PassState):
            passes = found
            bar.resume(n_batches + len(found.log_likelihood))
        elif start is not None:
            passes = PassState(start, placed_shifts(features, start, settings))
        else:
            online = found
            if online is None:
                model = references.start(features, settings, rng)
                online = OnlineState.first(model, features.images.known.shift_px, rng)
            bar.resume(online.n_done)
            batches = mini_batches(features, settings, online, rng, references)
            online, stopped = last_state(batches, kept, show, online)
            if stopped:
                _warn_interrupted(f"after {len(online.history)} mini-batches")
                kept, settings = Checkpoint(), replace(settings, max_iter=1)
            even = replace(online.model, balance=np.zeros_like(online.model.balance))
            seen = {"broad": online.broad, "label": online.label, "history": online.history}
            passes = PassState(even, online.start_shift_px, **seen)
        rest = full_passes(features, settings, passes, references)
        passes, interrupted = last_state(rest, kept, show, passes if passes.log_likelihood else None)
    if interrupted:
        _warn_interrupted(f"after {len(passes.log_likelihood)} full passes")
    return passes, stopped or interrupted


def mini_batches(
    features: SharedFeatures,
    settings: AlignmentSettings,
    state: OnlineState,
    rng: np.random.RandomState,
    made: References,
) -> Iterator[OnlineState]:
    """States after each of many cheap updates from mini-batches, Eq. (4.8); `rng` goes on as in `state`."""
    images, n_workers = features.images, features.n_workers
    n_images, fraction, known_px = images.n_images, images.noise_fraction, images.known.shift_px
    rng.set_state(state.drawn_from)
    batches = random_batches(n_images, settings.batch_size, settings.n_batches, rng)
    if state.n_done:
        rng.set_state(state.rng)
    # One batch after the other: with two in flight, each searched with references one update old, the mutual
    # information with the true views fell from 0.66 to 0.58 at SNR 0.02.
    while (number := state.n_done) < len(batches):
        rows, model = batches[number], state.model
        space = settings.space(images.box, model.k_max, model.n_orders)
        batch = run_pass(features, rows, state.start_shift_px, model, space, broad=state.broad)
        is_sure = (share := batch.share_of_cells(space)) < SURE and made.tend is not None
        n_done = min(number + max(is_sure * len(batches) // SURE_BATCHES, 1), len(batches))
        whole_set = batch.statistics.scaled(n_images / len(rows))
        stats = blend(state.stats, whole_set, online_step(number, len(batches)))  # Eq. (4.8)
        model, stats = made.update(stats, model, space.grid, settings, fraction, n_workers)
        if made.tend is not None:
            given = space.grid, settings, fraction, rng
            model, stats = made.tend(model, stats, batch, given, number / len(batches))
        k_max = settings.next_k_max(model.resolution, n_done / len(batches))  # Eq. (4.7)
        shift_px = followed_shifts(
            known_px, settings, rows, state.start_shift_px, batch.shift_px, batch.log_evidence
        )  # Eq. (4.16)
        label = state.label.copy()
        label[rows] = batch.label
        state = OnlineState(
            replace(model, k_max=k_max),
            stats=stats,
            start_shift_px=shift_px,
            broad=share > BROAD,
            label=label,
            history=_with_step(state.history, model, stats, batch, state.label[rows]),
            n_done=n_done,
            drawn_from=state.drawn_from,
            rng=random_tuple(rng),
        )
        yield state


def full_passes(
    features: SharedFeatures, settings: AlignmentSettings, state: PassState, made: References = FREE
) -> Iterator[PassState]:
    """States after each pass over all images, until likelihood or labels and poses stand still, Eq. (3.5)."""
    images, rows = features.images, np.arange(features.images.n_images)
    while not state.converged and len(state.log_likelihood) < settings.max_iter:
        space = settings.space(images.box, state.model.k_max, state.model.n_orders)
        found = run_pass(features, rows, state.start_shift_px, state.model, space, broad=state.broad)
        stats, evidence = found.statistics, float(found.log_evidence.mean())
        power = stats.power / np.maximum(stats.n_images, 1e-9)  # (n_rings,)
        noise = state.model.noise[: len(power)], images.noise_fraction, settings.n_ignored
        likelihood = evidence + float(log_noise_likelihood(power[None].astype(np.float32), *noise)[0])
        changed, at_rest = 1.0, False
        if state.log_likelihood:
            changed = _changed(state, found, space)
            same_rings = space.n_rings == settings.space(images.box, state.k_max).n_rings
            # evidence is against noise, whose level each pass estimates anew: the likelihood is what compares
            gain = abs(likelihood - state.log_likelihood[-1])
            at_rest = same_rings and (changed <= FEW_CHANGES or gain <= settings.tol * abs(evidence))
        model, stats = made.update(
            stats, state.model, space.grid, settings, images.noise_fraction, features.n_workers
        )
        shift_px = followed_shifts(
            images.known.shift_px, settings, rows, state.start_shift_px, found.shift_px, found.log_evidence
        )  # Eq. (4.16)
        state = PassState(
            replace(model, k_max=settings.next_k_max(model.resolution)),  # Eq. (4.7)
            shift_px,
            stats=stats,
            k_max=state.model.k_max,
            broad=found.share_of_cells(space) > BROAD,
            label=found.label,
            angle_rad=found.angle_rad,
            found_shift_px=found.shift_px,
            log_likelihood=[*state.log_likelihood, likelihood],
            history=_with_step(state.history, model, stats, found, state.label),
            changed=changed,
            converged=at_rest,
        )
        yield state


def online_step(batch: int, n_batches: int) -> float:
    """Weight of the new batch in Eq. (4.8), falling from 0.9 to 0.1."""
    return LAST_STEP + (FIRST_STEP - LAST_STEP) * (1.0 - batch / n_batches)


def _with_step(
    history: Float64, model: AlignmentModel, stats: Statistics, found: PassResult, before: Rows | None
) -> Float64:
    """History with a row more, by `HISTORY`; `before` has the labels that the images had."""
    changed, n_references = np.nan, len(model.weight)
    if before is not None and (before >= 0).any():  # % : mirror images are of the same reference
        changed = float(np.mean((before % n_references != found.label % n_references)[before >= 0]))
    alive = np.count_nonzero(stats.mass >= 1.0)  # with at least one image
    step = float(found.log_evidence.mean()), float(model.resolution.max()), float(alive), changed
    return np.vstack([history, step])


def _changed(old: PassState, new: PassResult, space: SearchSpace) -> float:
    """Fraction of the images with another reference, or a pose more than a step of the search away."""
    if old.label is None or old.angle_rad is None or old.found_shift_px is None:
        return 1.0
    turn = np.angle(np.exp(1j * (old.angle_rad - new.angle_rad)))
    same = (
        (old.label == new.label)
        & (np.abs(turn) <= TOLERATED_STEPS * space.angle_step_rad)
        & (np.hypot(*(old.found_shift_px - new.shift_px).T) <= TOLERATED_STEPS * space.shift_step_px)
    )
    return float(np.mean(~same))


def _log_memory(
    features: SharedFeatures, settings: AlignmentSettings, k_max: float, announced: list[float]
) -> None:
    """Log what a resolution may need, if that is notably more than was announced."""
    bound = memory_bound(features, settings.n_references, settings.space(features.images.box, k_max))
    if bound > NOTABLE_GROWTH * announced[0]:
        rings = f"{k_max:.0f} of {settings.k_limit:.0f} Fourier pixels"
        log_estimate(logger, f"MAPAligner, up to {rings},", bound)
        announced[0] = bound


def _warn_interrupted(when: str) -> None:
    warn(
        f"The alignment was interrupted {when} and ends with what it learnt; Ctrl-C again leaves at once. "
        "To go on, fit again with warm_start=True, or with the same checkpoint from the last state kept.",
    )
