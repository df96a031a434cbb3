"""When what is done: batches, steps, resolution limit, balance between classes, Eq. (4.7)-(4.8)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem.alignment.model import AlignmentModel, AlignmentSettings

FIRST_STEP, LAST_STEP = 0.9, 0.1
RINGS_BEYOND_SIGNAL = 3.0  # the search uses this many rings more than the references resolve
ONLINE_GROWTH = 2.0  # mini-batches raise the resolution limit from k_start to at most this multiple
BALANCE_STEP = 1.0
BALANCE_FLOOR = 0.3  # of the mean class size: an empty class gains at most log(1.3 / 0.3) a batch


def random_batches(
    n_images: int, batch_size: int, n_batches: int, rng: np.random.RandomState
) -> list[NDArray[np.int64]]:
    """Rows of each mini-batch: every image once before any comes again; sorted, for reading in order."""
    size = min(batch_size, n_images)
    rounds = -(-size * n_batches // n_images)
    order = np.concatenate([rng.permutation(n_images) for _ in range(max(rounds, 1))])
    return [np.sort(order[i * size : (i + 1) * size]) for i in range(n_batches)]


def online_step(batch: int, n_batches: int) -> float:
    """Weight of the new batch in Eq. (4.8), falling from 0.9 to 0.1."""
    return LAST_STEP + (FIRST_STEP - LAST_STEP) * (1.0 - batch / n_batches)


def online_limit(settings: AlignmentSettings) -> float:
    """Finest resolution that mini-batches come to, in Fourier pixels."""
    return min(ONLINE_GROWTH * settings.k_start, settings.k_limit)


def next_k_max(model: AlignmentModel, settings: AlignmentSettings, progress: float | None) -> float:
    """Resolution of the next iteration, Eq. (4.7): what the best reference resolves, and a little more.

    Parameters
    ----------
    model : AlignmentModel
        Its `resolution` decides.
    settings : AlignmentSettings
        First and last resolution.
    progress : float or None
        Fraction of the mini-batches done, which limits the growth; None for full passes.
    """
    wanted = float(model.resolution.max()) + RINGS_BEYOND_SIGNAL
    if progress is not None:
        wanted = min(wanted, settings.k_start * (1.0 + (ONLINE_GROWTH - 1.0) * progress))
    return float(np.clip(wanted, settings.k_start, settings.k_limit))


def rebalanced(model: AlignmentModel, mass: NDArray[np.float64]) -> AlignmentModel:
    """Tilt the prior against classes with more than their share of a batch, and towards the others.

    While references are still vague, the vaguest explains every image fairly and takes them all; the tilt
    grows until it does not. It is a device of the start only: full passes run without it.
    """
    share = mass / mass.mean()
    balance = model.balance - BALANCE_STEP * np.log((share + BALANCE_FLOOR) / (1.0 + BALANCE_FLOOR))
    return replace(model, balance=balance - balance.mean())
