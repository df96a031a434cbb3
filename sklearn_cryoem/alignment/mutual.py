"""Mutual alignment of references and their union into classes, Eq. (4.9)-(4.10)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from sklearn_cryoem._core.parallel import ordered_map
from sklearn_cryoem.alignment.known import to_image_frame, turned
from sklearn_cryoem.alignment.model import AlignmentModel, AlignmentSettings
from sklearn_cryoem.alignment.search import SearchSpace, search_space
from sklearn_cryoem.physics.fourier import Float64
from sklearn_cryoem.physics.polar import (
    angular_orders,
    from_angular_orders,
    polar_transform,
    translation_phase,
)

MOST_RINGS = 16.0  # finer detail does not tell views apart that coarser detail does not
SHIFT_FRACTION = 0.05  # of the box: references are centred, so they lie close to each other
ANGLES_PER_ORDER = 4
FINE_POINTS = 5  # per axis of the local grid of shifts


@dataclass(frozen=True)
class Frames:
    """Classes of references, and the move that takes each reference to the common frame.

    A reference A becomes A'(r, theta) = B(r, theta + `angle_rad`), or B(r, -theta - `angle_rad`) where it is
    mirrored, with B the reference displaced by `shift_px`.

    Attributes
    ----------
    group : ndarray of shape (n_references,), int
        Class of each reference, from 0; classes are numbered by falling mass.
    angle_rad : ndarray of shape (n_references,)
        Turn.
    shift_px : ndarray of shape (n_references, 2)
        Displacement (x, y) before the mirror and the turn.
    mirrored : ndarray of shape (n_references,), bool
        Which are mirrored, y -> -y, after the displacement; none by default.
    """

    group: NDArray[np.int64]
    angle_rad: Float64
    shift_px: Float64
    mirrored: NDArray[np.bool_] = False  # type: ignore[assignment]

    def __post_init__(self) -> None:
        mirrored = np.array(np.broadcast_to(self.mirrored, len(self.group)), dtype=bool)
        object.__setattr__(self, "mirrored", mirrored)

    @property
    def n_groups(self) -> int:
        """Number of classes."""
        return int(self.group.max()) + 1

    def moved(self, shift_px: Float64) -> Frames:
        """Frames of which each class is displaced by (n_groups, 2) pixels, as its average is seen."""
        frames = Frames(self.group, self.angle_rad.copy(), self.shift_px.copy(), self.mirrored)
        for leaf, group in enumerate(self.group):
            _move(frames, leaf, 0.0, shift_px[group], mirrored=False)
        return frames

    def poses(
        self, reference: NDArray[np.int64], angle_rad: Float64, shift_px: Float64
    ) -> tuple[Float64, Float64, NDArray[np.bool_]]:
        """Poses in the frames of the classes from poses in the frames of the references, without mirrors.

        Parameters
        ----------
        reference : ndarray of shape (n_images,), int
            Reference of each image.
        angle_rad, shift_px : ndarrays of shape (n_images,) and (n_images, 2)
            Pose of each image with respect to it.

        Returns
        -------
        angle_rad, shift_px, mirrored : ndarrays of shape (n_images,), (n_images, 2) and (n_images,)
            As `Poses` has them.
        """
        mirrored = self.mirrored[reference]
        moved = shift_px + to_image_frame(angle_rad, self.shift_px[reference])
        angle = np.where(mirrored, -angle_rad, angle_rad) - self.angle_rad[reference]
        return np.mod(angle, 2.0 * np.pi), moved, mirrored


def unite_references(
    model: AlignmentModel,
    seen: Float64,
    mass: Float64,
    settings: AlignmentSettings,
    n_groups: int,
    *,
    mirror: bool = False,
    n_jobs: int | None = None,
) -> Frames:
    """Unite references pair by pair, each time where the likelihood loses least, Eq. (4.9)-(4.10).

    The tree is followed to its root: the classes are its branches when `n_groups` are left, and the moves
    along the rest of it put the classes into one frame. With mirrors, they are set so that those of less than
    half the mass are mirrored.

    Parameters
    ----------
    model : AlignmentModel
        Its references, noise and resolution.
    seen : ndarray of shape (n_references, n_rings)
        Sum of w C^2 on each ring, the denominator of Eq. (4.2).
    mass : ndarray of shape (n_references,)
        Posterior mass of each reference.
    settings : AlignmentSettings
        Size of the references. If they keep to the frame of known poses, none is moved.
    n_groups : int
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
    forest = _Forest(model, seen, settings, mirror=mirror)
    losses = forest.all_losses(n_jobs)
    frames = Frames(np.arange(len(seen)), np.zeros(len(seen)), np.zeros((len(seen), 2)))
    members = {i: [i] for i in range(len(seen))}
    group = frames.group.copy()
    for n_left in range(len(seen), 1, -1):
        if n_left == n_groups:
            group = _numbered(members, mass)
        first, second = np.unravel_index(int(losses.argmin()), losses.shape)
        angle, shift, mirrored = forest.unite(int(first), int(second))
        for leaf in members[int(second)]:
            _move(frames, leaf, angle, shift, mirrored=mirrored)
        members[int(first)] += members.pop(int(second))
        losses[second, :] = losses[:, second] = np.inf
        others = np.array([i for i in members if i != first], dtype=np.int64)
        if not len(others):
            break
        new = forest.losses(int(first), others)
        low, high = np.minimum(first, others), np.maximum(first, others)
        losses[high, low] = new
    if n_groups == 1:
        group = np.zeros(len(seen), dtype=np.int64)
    if mass[frames.mirrored].sum() > 0.5 * mass.sum():
        for leaf in range(len(seen)):
            _move(frames, leaf, 0.0, np.zeros(2), mirrored=True)
    return Frames(group, frames.angle_rad, frames.shift_px, frames.mirrored)


def _move(frames: Frames, leaf: int, angle_rad: float, shift_px: Float64, *, mirrored: bool) -> None:
    """Follow the move of a leaf by one more: first the old one, then `shift_px`, the mirror, `angle_rad`."""
    before = frames.angle_rad[leaf]
    moved = turned(shift_px, np.asarray(before))
    frames.shift_px[leaf] += moved * (1.0, -1.0) if frames.mirrored[leaf] else moved
    frames.angle_rad[leaf] = angle_rad + (-before if mirrored else before)
    frames.mirrored[leaf] ^= mirrored


def _numbered(members: dict[int, list[int]], mass: Float64) -> NDArray[np.int64]:
    order = sorted(members, key=lambda i: -mass[members[i]].sum())
    group = np.empty(len(mass), dtype=np.int64)
    for number, branch in enumerate(order):
        group[members[branch]] = number
    return group


class _Forest:
    """References, united so far, on a coarse polar grid."""

    def __init__(
        self, model: AlignmentModel, seen: Float64, settings: AlignmentSettings, *, mirror: bool = False
    ) -> None:
        self.moves = settings.turns_freely
        self.n_ways = 2 if mirror and self.moves else 1  # as it is, and mirrored
        box = model.references.shape[-1]
        k_max = float(np.clip(seen.shape[1], 1.0, MOST_RINGS))
        self.space: SearchSpace = search_space(
            box,
            k_max,
            reference_radius_px=settings.mask_radius_px + settings.mask_edge_px,
            max_shift_px=SHIFT_FRACTION * box if self.moves else 0.0,
        )
        grid = self.space.grid
        self.values = polar_transform(model.references, grid)  # (n, n_rings, n_angles / 2)
        self.seen = np.maximum(seen[:, : grid.n_rings], 1e-9).astype(np.float64)  # (n, n_rings)
        self.weight = 2.0 * np.pi * grid.radius / model.noise[: grid.n_rings]  # (n_rings,)
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
        loss: Float64 = norm - cross.reshape(len(others), -1).max(axis=1)
        return loss

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
        own, other = self.seen[i][:, None], self.seen[j][:, None]
        self.values[i] = (own * self.values[i] + other * moved) / (own + other)
        self.seen[i] += self.seen[j]
        self._prepare(i)
        return angle, shift, mirrored

    def _shared(self, i: int, others: NDArray[np.int64]) -> Float64:
        own, other = self.seen[i], self.seen[others]
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
        for _ in range(3):
            axis = np.linspace(-0.5, 0.5, FINE_POINTS) * step
            x, y = (a.ravel() for a in np.meshgrid(axis, axis))
            shifts = shift + np.column_stack([x, y])
            phase = translation_phase(grid, shifts)
            bank = angular_orders(self.values[j] * phase, n_orders)  # (n, n_rings, n_orders)
            bank = bank.conj() if mirrored else bank
            c = np.einsum("mr,trm->tm", weighted, bank)
            psi = fft.irfft(c, 16 * n_orders, axis=-1, norm="forward", workers=1)
            at, turn = np.unravel_index(int(psi.argmax()), psi.shape)
            shift, angle = shifts[at], float(turn * 2.0 * np.pi / psi.shape[1])
            step /= FINE_POINTS - 1
        return angle, np.asarray(shift, dtype=np.float64)
