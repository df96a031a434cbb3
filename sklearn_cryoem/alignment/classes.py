"""From references to classes: mutual alignment, union, averages, Eq. (4.2), (4.9)-(4.10), (4.17)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from sklearn_cryoem._core.parallel import ordered_map
from sklearn_cryoem.alignment.frames import Frames
from sklearn_cryoem.alignment.maximisation import Statistics
from sklearn_cryoem.alignment.model import (
    AlignmentModel,
    masked_references,
    noise_share,
    plain_power,
    polar_statistics,
    resolved_ring,
    solve_references,
    spectral_prior,
)
from sklearn_cryoem.alignment.search import AlignmentSettings, SearchSpace, search_space
from sklearn_cryoem.physics.fourier import Float32, Float64
from sklearn_cryoem.physics.polar import (
    PolarGrid,
    angular_orders,
    from_angular_orders,
    images_from_polar,
    polar_transform,
    translation_phase,
)

MAX_RINGS = 16.0  # that count; finer detail does not tell views apart that coarser detail does not
SHIFT_FRACTION = 0.05  # of the box: references are centred, so they lie close to each other
ANGLES_PER_ORDER = 4
FINE_ROUNDS = 3  # of a local search of shift and angle,
FINE_POINTS = 5  # with so many points per axis of the shifts
FINE_ANGLES_PER_ORDER = 16
CENTRINGS = 3  # each time the mask follows
FAINT = 0.1  # of the brightest pixel


def unite_references(
    model: AlignmentModel,
    ctf_power: Float64,
    mass: Float64,
    settings: AlignmentSettings,
    n_classes: int,
    *,
    mirror: bool = False,
    n_jobs: int | None = None,
) -> Frames:
    """Unite references pair by pair, each time where the likelihood loses least, Eq. (4.9)-(4.10).

    Merging goes on to a single group. Classes are read off when `n_classes` groups are left; the later merges
    only give a common frame. Where mirrors are allowed, the frame is that in which less than half of the mass
    is mirrored.

    Parameters
    ----------
    model : AlignmentModel
        Its references, noise and resolution.
    ctf_power : ndarray of shape (n_references, n_rings)
        Sum of w C^2 on each ring, the denominator of Eq. (4.2).
    mass : ndarray of shape (n_references,)
        Posterior mass of each reference.
    settings : AlignmentSettings
        Size of the references. If they keep to the frame of known poses, none is moved.
    n_classes : int
        Number of classes wanted.
    mirror : bool
        Whether each reference is also compared with the mirror image of the other.
    n_jobs : int or None
        Workers; the result does not depend on it.

    Notes
    -----
    n_references^2 correlations over all angles and a few shifts: about 1 ms each at 64 pixels, with mirrors
    twice that.
    """
    forest = Forest(model, ctf_power, settings, mirror=mirror)
    losses = forest.all_losses(n_jobs)
    frames = Frames.identity(np.arange(len(mass)))
    members = {i: [i] for i in range(len(mass))}
    label = np.zeros(len(mass), dtype=np.int64)  # of one class
    for n_left in range(len(mass), 1, -1):
        if n_left == n_classes:
            label = _numbered(members, mass)
        first, second = (int(at) for at in np.unravel_index(int(losses.argmin()), losses.shape))
        angle, shift, mirrored = forest.unite(first, second)
        frames = frames.moved(np.array(members[second]), shift, angle_rad=angle, mirrored=mirrored)
        members[first] += members.pop(second)
        losses[second, :] = losses[:, second] = np.inf
        others = np.array([i for i in members if i != first], dtype=np.int64)
        if len(others):
            low, high = np.minimum(first, others), np.maximum(first, others)
            losses[high, low] = forest.losses(first, others)
    if mass[frames.mirrored].sum() > 0.5 * mass.sum():
        frames = frames.moved(np.arange(len(mass)), np.zeros(2), mirrored=True)
    return replace(frames, label=label)


def _numbered(members: dict[int, list[int]], mass: Float64) -> NDArray[np.int64]:
    """Class of each reference; classes are numbered by falling mass."""
    order = sorted(members, key=lambda i: -mass[members[i]].sum())
    label = np.empty(len(mass), dtype=np.int64)
    for number, branch in enumerate(order):
        label[members[branch]] = number
    return label


class Forest:
    """References, united so far, on a coarse polar grid."""

    def __init__(
        self, model: AlignmentModel, ctf_power: Float64, settings: AlignmentSettings, *, mirror: bool = False
    ) -> None:
        self.moves, self.is_filament = settings.turns_freely, settings.kappa > 0
        self.n_ways = 2 if mirror and self.moves else 1  # as it is, and mirrored
        box = model.references.shape[-1]
        k_max = float(np.clip(ctf_power.shape[1], 1.0, MAX_RINGS + settings.n_ignored))
        space = search_space(
            box,
            k_max,
            reference_radius_px=settings.mask_radius_px + settings.mask_edge_px,
            max_shift_px=SHIFT_FRACTION * box if self.moves else 0.0,
        )
        along = None if settings.rise_px is None else 0.0  # images have used up the freedom along filaments
        self.space: SearchSpace = replace(settings, rise_px=along).along_filaments(space)
        self._axes = (along is None, True)
        grid = self.space.grid
        self.values = polar_transform(model.references, grid)  # (n, n_rings, n_angles / 2)
        self.ctf_power = np.maximum(ctf_power[:, : grid.n_rings], 1e-9).astype(np.float64)  # (n, n_rings)
        counts = grid.radius > settings.n_ignored  # Eq. (4.21)
        self.weight = counts * 2.0 * np.pi * grid.radius / model.noise[: grid.n_rings]  # (n_rings,)
        self._phase = translation_phase(grid, self.space.shifts_px)  # (n_shifts, n_rings, n_angles / 2)
        n, n_orders = len(self.values), self.space.n_orders
        self.orders = np.empty((n, n_orders, grid.n_rings), dtype=np.complex64)
        self.bank = np.empty((n, n_orders, grid.n_rings, self.space.n_shifts), dtype=np.complex64)
        self.power = np.empty((n, grid.n_rings))
        for i in range(n):
            self._prepare(i)

    def _prepare(self, i: int) -> None:
        n_orders = self.space.n_orders
        self.orders[i] = angular_orders(self.values[i], n_orders).T
        self.bank[i] = angular_orders(self.values[i] * self._phase, n_orders).transpose(2, 1, 0)
        self.power[i] = np.mean(np.abs(self.values[i]) ** 2, axis=-1)

    def all_losses(self, n_jobs: int | None) -> Float64:
        """Loss of uniting every pair, below the diagonal; infinite elsewhere."""
        n = len(self.values)
        table = np.full((n, n), np.inf)
        rows = ordered_map(
            lambda i: self.losses(i, np.arange(i)), list(range(1, n)), n_jobs=n_jobs, threads_only=True
        )
        for i, row in enumerate(rows, start=1):
            table[i, :i] = row
        return table

    def losses(self, i: int, others: NDArray[np.int64]) -> Float64:
        """What the log likelihood loses at most if i is united with each of `others`, Eq. (4.9)."""
        shared = self._shared(i, others)  # (n_others, n_rings)
        norm = 0.5 * (shared * (self.power[i] + self.power[others])).sum(axis=1)
        cross = self._cross(i, others, shared)
        return np.asarray(norm - cross.reshape(len(others), -1).max(axis=1))

    def unite(self, i: int, j: int) -> tuple[float, Float64, bool]:
        """Move j onto i and unite them, Eq. (4.10); returns turn and displacement of j, and if mirrored."""
        shared = self._shared(i, np.array([j]))
        cross = self._cross(i, np.array([j]), shared)[0]  # (n_ways, n_shifts, n_psi)
        way, shift_at, _ = np.unravel_index(int(cross.argmax()), cross.shape)
        mirrored = bool(way)
        start = self.space.shifts_px[shift_at]
        angle, shift = self._refined(i, j, shared[0], start, mirrored=mirrored)
        grid, n_orders = self.space.grid, self.space.n_orders
        phase = translation_phase(grid, shift[None])[0]
        turn = np.exp(1j * np.arange(n_orders) * angle)
        orders = angular_orders(self.values[j] * phase, n_orders)
        orders = orders.conj() if mirrored else orders
        moved = from_angular_orders((orders * turn).astype(np.complex64), grid.n_angles)
        own, other = self.ctf_power[i][:, None], self.ctf_power[j][:, None]
        self.values[i] = (own * self.values[i] + other * moved) / (own + other)
        self.ctf_power[i] += self.ctf_power[j]
        self._prepare(i)
        return angle, shift, mirrored

    def _shared(self, i: int, others: NDArray[np.int64]) -> Float64:
        own, other = self.ctf_power[i], self.ctf_power[others]
        shared: Float64 = self.weight * own * other / (own + other)
        return shared

    def _cross(self, i: int, others: NDArray[np.int64], shared: Float64) -> NDArray[np.float32]:
        """Correlation of i with each of `others`, as it is and mirrored, at every shift and angle.

        Of shape (n_others, n_ways, n_shifts, n_psi). The orders of a mirrored image are their conjugates.
        """
        own = np.stack([self.orders[i].conj(), self.orders[i]][: self.n_ways], axis=1)
        weighted = own * shared[:, None, None, :].astype(np.float32)  # (n_others, n_orders, n_ways, n_rings)
        c = np.matmul(weighted, self.bank[others])  # (n_others, n_orders, n_ways, n_shifts)
        np.conjugate(c[:, :, 1:], out=c[:, :, 1:])
        n_psi = ANGLES_PER_ORDER * self.space.n_orders
        cross: NDArray[np.float32] = fft.irfft(
            c.transpose(0, 2, 3, 1), n_psi, axis=-1, norm="forward", workers=1
        )
        if self.is_filament:  # angles 0 and pi
            return cross[..., :: n_psi // 2]
        return cross if self.moves else cross[..., :1]  # angle 0

    def _refined(
        self, i: int, j: int, shared: Float64, shift: Float64, *, mirrored: bool
    ) -> tuple[float, Float64]:
        """Best turn and displacement near the best shift of the grid, by ever finer local grids."""
        if not self.moves:
            return 0.0, np.zeros(2)
        grid, n_orders = self.space.grid, self.space.n_orders
        weighted = self.orders[i].conj() * shared  # (n_orders, n_rings)
        angle, step = 0.0, self.space.shift_step_px
        for _ in range(FINE_ROUNDS):
            axis = np.linspace(-0.5, 0.5, FINE_POINTS) * step
            x, y = (a.ravel() for a in np.meshgrid(axis, axis))
            shifts = shift + np.column_stack([x, y]) * self._axes
            phase = translation_phase(grid, shifts)
            bank = angular_orders(self.values[j] * phase, n_orders)  # (n, n_rings, n_orders)
            bank = bank.conj() if mirrored else bank
            c = np.einsum("mr,trm->tm", weighted, bank)
            psi = fft.irfft(c, FINE_ANGLES_PER_ORDER * n_orders, axis=-1, norm="forward", workers=1)
            psi = psi[:, :: psi.shape[1] // 2] if self.is_filament else psi
            at, turn = np.unravel_index(int(psi.argmax()), psi.shape)
            shift, angle = shifts[at], float(turn * 2.0 * np.pi / psi.shape[1])
            step /= FINE_POINTS - 1
        return angle, np.asarray(shift, dtype=np.float64)


@dataclass(frozen=True)
class AlignedClasses:
    """Averages of the classes in their common frame.

    Attributes
    ----------
    averages : ndarray of shape (n_classes, D, D), float32
        Masked, CTF-corrected, regularised.
    resolution : ndarray of shape (n_classes,), int
        Last ring up to which the signal of each exceeds its noise, Eq. (4.7).
    mass : ndarray of shape (n_classes,)
        Posterior mass of each.
    """

    averages: Float32
    resolution: NDArray[np.int64]
    mass: Float64


def aligned_classes(
    stats: Statistics,
    frames: Frames,
    model: AlignmentModel,
    grid: PolarGrid,
    settings: AlignmentSettings,
    noise_fraction: float,
) -> AlignedClasses:
    """Averages of groups of references from the statistics of the last pass, Eq. (4.2).

    Parameters
    ----------
    stats : Statistics
        Sums of the references, in the frames of the references.
    frames : Frames
        Which references form a class, and how they are moved.
    model : AlignmentModel
        Its noise.
    grid : PolarGrid
        Polar grid of the statistics.
    settings : AlignmentSettings
        Masks, priors.
    noise_fraction : float
        Part of the noise power that passes the mask of the images.
    """
    polar = polar_statistics(stats, grid)
    n_orders = stats.numerator.shape[1]
    turn = np.exp(1j * np.arange(n_orders) * frames.angle_rad[:, None])  # (n_references, n_orders)
    phase = translation_phase(grid, frames.shift_px)  # (n_references, n_rings, n_angles / 2)
    shifted = angular_orders(polar.numerator * phase, n_orders)  # (n_references, n_rings, n_orders)
    shifted = _mirrored(shifted, frames.mirrored)
    numerator = (shifted * turn[:, None, :]).transpose(0, 2, 1)
    even = np.exp(2j * np.arange(stats.denominator.shape[1]) * frames.angle_rad[:, None])
    denominator = _mirrored(stats.denominator, frames.mirrored) * even[:, :, None]
    member = np.equal.outer(np.arange(frames.n_classes), frames.label).astype(np.float64)
    united = replace(
        stats,
        numerator=np.tensordot(member, numerator, 1),
        denominator=np.tensordot(member, denominator, 1),
        mass=member @ stats.mass,
        shift_sum=member @ stats.shift_sum,
        turn_sum=member @ stats.turn_sum,
    )
    polar = polar_statistics(united, grid)
    noise = noise_fraction * model.noise[: grid.n_rings]
    share, plain = noise_share(stats, grid, settings), plain_power(polar)
    inverse_prior, ratio = spectral_prior(plain, united.mass, noise, settings.tau_fudge, share)
    averages = masked_references(images_from_polar(solve_references(polar, inverse_prior), grid), settings)
    return AlignedClasses(averages, resolved_ring(ratio, settings.n_ignored), united.mass)


def centred_classes(
    stats: Statistics,
    frames: Frames,
    model: AlignmentModel,
    grid: PolarGrid,
    settings: AlignmentSettings,
    noise_fraction: float,
    moving: NDArray[np.int64] | None = None,
) -> tuple[Frames, AlignedClasses]:
    """Frames in which the average of every class has its centre of mass in the centre, Eq. (4.17), and these.

    Parameters as in `aligned_classes`; `moving` are the references that may move, by default all. Classes in
    the frame of known poses are left where they are.
    """
    classes = aligned_classes(stats, frames, model, grid, settings, noise_fraction)
    moving = np.arange(len(frames.label)) if moving is None else moving
    for _ in range(CENTRINGS if settings.turns_freely and len(moving) else 0):
        # filaments have no centre along x
        centre = centre_of_mass(classes.averages) * (settings.rise_px is None, True)
        frames = frames.moved(moving, -centre[frames.label[moving]])
        classes = aligned_classes(stats, frames, model, grid, settings, noise_fraction)
    return frames, classes


def centre_of_mass(averages: Float32) -> Float64:
    """Centre of mass (x, y) of what is bright in each of some pictures, from the centre pixel; (n, 2).

    What is less than about a tenth as bright as the brightest pixel does not count: noise, and the dark halo
    that missing low frequencies leave. What counts sets in gradually, so that the centre never jumps.
    """
    brightest = averages.max(axis=(1, 2), keepdims=True)
    level = averages / np.maximum(brightest, np.finfo(np.float32).tiny)
    mass = level.astype(np.float64) * np.clip(level / FAINT - 0.5, 0.0, 1.0)
    axis = np.arange(averages.shape[-1]) - averages.shape[-1] // 2
    sums = np.column_stack([mass.sum(axis=1) @ axis, mass.sum(axis=2) @ axis])
    return np.asarray(sums / np.maximum(mass.sum(axis=(1, 2)), 1e-12)[:, None])


def _mirrored(orders: NDArray[Any], mirrored: NDArray[np.bool_]) -> NDArray[Any]:
    """Angular orders (n_references, ..) of functions of which some are mirrored: those become conjugates."""
    return np.where(mirrored[:, None, None], orders.conj(), orders)
