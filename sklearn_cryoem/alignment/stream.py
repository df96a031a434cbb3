"""Further chunks of particles: older sums decay, new views found references, Eq. (4.25)-(4.26)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.parallel import even_blocks
from sklearn_cryoem.alignment.classes import Forest
from sklearn_cryoem.alignment.em import fit_alignment
from sklearn_cryoem.alignment.features import SharedFeatures
from sklearn_cryoem.alignment.frames import Frames
from sklearn_cryoem.alignment.maximisation import Statistics, blend, own_nats
from sklearn_cryoem.alignment.model import (
    AlignmentModel,
    noise_share,
    plain_power,
    polar_statistics,
    spectral_prior,
    update_model,
)
from sklearn_cryoem.alignment.poses import ImagePoses, find_poses
from sklearn_cryoem.alignment.products import ring_power
from sklearn_cryoem.alignment.search import AlignmentSettings
from sklearn_cryoem.alignment.start import IMAGES_PER_TASK, mean_ctf_power
from sklearn_cryoem.physics.fourier import Float64
from sklearn_cryoem.physics.polar import PolarGrid

Rows = NDArray[np.int64]

DECAY = 0.7  # exponent of Eq. (4.25), as of Eq. (3.20)
N_PASSES = 2  # over a chunk
UNLIKELY, BY_CHANCE = 2.0, 0.023  # robust standard deviations below the usual match; images further below it
FEWEST = 20  # images that found a reference,
IMAGES_PER_REFERENCE = 100  # and as many to each further one: each is a class, and a view may not be divided


@dataclass(frozen=True)
class Stream:
    """What is remembered of the images that have gone by.

    Attributes
    ----------
    stats : Statistics
        Decayed sums over them, in the frames of the references.
    n_seen : int
        How many they are.
    usual_match : ndarray of shape (2,)
        Median and robust standard deviation of their match, Eq. (4.26), had they taken no part.
    """

    stats: Statistics
    n_seen: int
    usual_match: Float64

    def update(
        self,
        stats: Statistics,
        model: AlignmentModel,
        grid: PolarGrid,
        settings: AlignmentSettings,
        noise_fraction: float,
        n_jobs: int | None = None,
    ) -> tuple[AlignmentModel, Statistics]:
        """`update_model` from the sums of a chunk and the decayed sums of all before it, Eq. (4.25)."""
        n_new, n_worth = stats.mass.sum(), self.stats.mass.sum()
        step = (n_new / (self.n_seen + n_new)) ** DECAY
        worth = 1.0 / ((1.0 - step) ** 2 / n_worth + step**2 / n_new)
        both = blend(self.stats.scaled(worth / n_worth), stats.scaled(worth / n_new), step)
        still = replace(both, shift_sum=np.zeros_like(both.shift_sum))  # no reference moves: frames stay
        return update_model(still, model, grid, settings, noise_fraction, n_jobs)


def match_of(
    features: SharedFeatures,
    rows: Rows,
    found: ImagePoses,
    model: AlignmentModel,
    settings: AlignmentSettings,
) -> Float64:
    """How much more evidence some images have than their references promise, Eq. (4.26); (n_rows,).

    In units of the spread that noise gives it.
    """
    space = settings.space(features.images.box, model.k_max, model.n_orders)
    area = 2.0 * np.pi * space.grid.radius * model.precision(space)
    blocks = [rows[block] for block in even_blocks(len(rows), IMAGES_PER_TASK)]
    ctf_power = np.concatenate(list(features.map(mean_ctf_power, blocks, space.n_rings)))  # (n_rows, n_rings)
    power = ring_power(model.polar(space.grid))[found.reference % len(model.weight)]
    norm = np.maximum(0.5 * (ctf_power * power) @ area, 1e-9)
    return np.asarray((found.log_evidence - norm) / np.sqrt(2.0 * norm))


def usual_match(match: Float64) -> Float64:
    """Median and robust standard deviation, which noise alone makes 1; (2,)."""
    median = np.median(match)
    return np.array([median, max(1.4826 * float(np.median(np.abs(match - median))), 1.0)])


def unexplained(match: Float64, usual: Float64) -> Rows:
    """Images that match no reference as is usual; none, if they are no more than chance makes."""
    low = np.flatnonzero(match < usual[0] - UNLIKELY * usual[1])
    return low if len(low) >= max(FEWEST, 2.0 * BY_CHANCE * len(match)) else low[:0]


def with_new_references(
    features: SharedFeatures,
    model: AlignmentModel,
    frames: Frames,
    stream: Stream,
    before: ImagePoses,
    settings: AlignmentSettings,
    rng: np.random.RandomState,
) -> tuple[AlignmentModel, Frames, Stream]:
    """Align images that no reference explains by themselves; add references that explain them, Eq. (4.26).

    Parameters
    ----------
    features : SharedFeatures
        These images alone.
    model, frames, stream : AlignmentModel, Frames, Stream
        What is known. Each further reference is a class of its own, turned like the one most like it.
    before : ImagePoses
        Of these images under `model`.
    settings : AlignmentSettings
        Of the fit.
    rng : RandomState
        Source of the first references.
    """
    images, n_old = features.images, len(model.weight)
    n_new = max(images.n_images // IMAGES_PER_REFERENCE, 1)
    own = replace(settings, n_references=n_new, batch_size=min(settings.batch_size, images.n_images))
    state, _ = fit_alignment(features, own, rng)
    if (sums := state.stats) is None:  # interrupted
        return model, frames, stream
    grid = settings.space(images.box, state.k_max).grid
    nats = nats_of_own_part(sums, state.model, grid, settings, images.noise_fraction)
    found = find_poses(features, _joined(model, state.model, np.arange(n_new)), settings, refine=False)
    reference = found.reference % (n_old + n_new) - n_old
    gain = [(found.log_evidence - before.log_evidence)[reference == j] for j in range(n_new)]
    is_worth = [len(part) >= FEWEST // 2 and part.mean() > nats[j] for j, part in enumerate(gain)]
    kept = np.flatnonzero(is_worth)
    old, joined = stream.stats, _joined(model, state.model, kept)
    names = ("numerator", "denominator", "mass", "shift_sum", "turn_sum")
    room = {name: _padded(getattr(old, name), len(kept)) for name in names}
    both = old.denominator[:, 0].real, sums.denominator[kept, 0].real
    n_rings = min(part.shape[1] for part in both)
    ctf_power = np.concatenate([part[:, :n_rings] for part in both])  # (n_references, n_rings)
    stream = replace(stream, stats=replace(old, **room))
    return joined, _placed(joined, ctf_power, frames, settings), stream


def _padded(sums: NDArray[Any], n: int) -> NDArray[Any]:
    return np.pad(sums, [(0, n), *[(0, 0)] * (sums.ndim - 1)])


def _joined(model: AlignmentModel, new: AlignmentModel, chosen: Rows) -> AlignmentModel:
    """A model with some references of another, all as likely as the mean."""
    weight = np.append(model.weight, np.full(len(chosen), model.weight.mean()))
    return replace(
        model,
        references=np.concatenate([model.references, new.references[chosen]]),
        weight=weight / weight.sum(),
        balance=np.append(model.balance, np.zeros(len(chosen))),
        resolution=np.append(model.resolution, new.resolution[chosen]),
        n_orders=max(model.n_orders or 0, new.n_orders or 0) or None,
    )


def _placed(model: AlignmentModel, ctf_power: Float64, frames: Frames, settings: AlignmentSettings) -> Frames:
    """Frames of the last references, each by that of the old one that it is most like, Eq. (4.9)."""
    n_old, n = len(frames.label), len(model.weight)
    if n == n_old:
        return frames
    forest = Forest(model, ctf_power, settings, mirror=settings.mirror)
    grown = Frames.identity(np.append(frames.label, frames.n_classes + np.arange(n - n_old)))
    for j in range(n_old, n):
        like = int(forest.losses(j, np.arange(n_old)).argmin())
        angle, shift, mirrored = forest.unite(like, j)
        one = np.array([j])
        grown = grown.moved(one, shift, angle_rad=angle, mirrored=mirrored)
        angle, mirrored = float(frames.angle_rad[like]), bool(frames.mirrored[like])
        grown = grown.moved(one, frames.shift_px[like], angle_rad=angle, mirrored=mirrored)
    return replace(
        grown,
        angle_rad=np.append(frames.angle_rad, grown.angle_rad[n_old:]),
        shift_px=np.concatenate([frames.shift_px, grown.shift_px[n_old:]]),
        mirrored=np.append(frames.mirrored, grown.mirrored[n_old:]),
    )


def nats_of_own_part(
    stats: Statistics, model: AlignmentModel, grid: PolarGrid, settings: AlignmentSettings, fraction: float
) -> Float64:
    """`own_nats` of references from their sums; `fraction` of the noise passes the mask; (n_references,)."""
    plain = plain_power(polar_statistics(stats, grid))
    noise = fraction * model.noise[: grid.n_rings]
    share = noise_share(stats, grid, settings)
    inverse_prior, _ = spectral_prior(plain, stats.mass, noise, settings.tau_fudge, share)
    radius = grid.radius * (grid.radius > settings.n_ignored)
    return own_nats(plain[1], inverse_prior, float(stats.mass.sum()), radius)
