"""What is asked of an alignment, and what it searches at a resolution: shifts, angles, orders, Eq. (4.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem.physics.fourier import Float32, Float64
from sklearn_cryoem.physics.polar import PolarGrid, n_angular_orders, polar_grid

CLASS_PRIORS = ("uniform", "estimated", "balanced")

MIN_COARSE_GAIN = 2.5  # no adaptive search where the coarse one is not this many times less work
RINGS_BEYOND_SIGNAL = 3.0  # the search uses this many rings more than the references resolve
COARSE_FRACTION = 0.6  # of k_max: the coarse pass of the adaptive search
MAX_COARSE_RINGS = 16.0  # finer detail hardly tells classes apart that coarser detail does not
# Poses are refined below the step of the search in the end, so that a finer one only costs time.
SHIFTS_PER_PERIOD = 3.0  # of the finest period in use; a step is never below 1 pixel


@dataclass(frozen=True)
class AlignmentSettings:
    """Everything that is chosen before an alignment, lengths in pixels and frequencies in Fourier pixels.

    Attributes
    ----------
    n_references : int
        Number of references.
    mask_radius_px, mask_edge_px : float
        Soft mask of the references.
    max_shift_px : float
        Longest shift of one search, from where an image is taken to lie.
    reach_px : float
        Longest shift in all, Eq. (4.16); `max_shift_px` where it is shorter.
    k_start, k_limit : float
        Resolution to start from and never to exceed.
    n_ignored : int
        First rings, which no likelihood counts, Eq. (4.21).
    growth : float
        Mini-batches raise the resolution from `k_start` to at most this multiple.
    angle_range_rad : float or None
        How far from the known poses of the images angles are searched; None for the whole circle.
    kappa : float
        Of the prior of angles about the known ones and half a turn from these, Eq. (4.23); 0 for none.
    rise_px : float or None
        Shifts along a filament, the x-axis of the references, stay within half of it; None for no such limit.
    tau_fudge : float
        Factor on the prior variance of the references, Eq. (4.2).
    class_prior : {"uniform", "estimated", "balanced"}
        Prior weight of the references, Eq. (4.14).
    n_batches, batch_size : int
        Mini-batches of online EM before the full passes, Eq. (4.8).
    mirror : bool
        Whether mirror images of the references are searched as well, Eq. (4.18).
    max_iter : int
        Full passes, at most.
    tol : float
        Full passes stop once the log likelihood changes by no more than this fraction of the log evidence.
    """

    n_references: int
    mask_radius_px: float
    mask_edge_px: float
    max_shift_px: float
    k_start: float
    k_limit: float
    n_ignored: int = 0
    growth: float = 2.0
    reach_px: float = 0.0
    angle_range_rad: float | None = None
    kappa: float = 0.0
    rise_px: float | None = None
    tau_fudge: float = 2.0
    class_prior: str = "uniform"
    n_batches: int = 60
    batch_size: int = 200
    mirror: bool = False
    max_iter: int = 5
    tol: float = 1e-2

    @property
    def turns_freely(self) -> bool:
        """Whether all in-plane angles are searched; otherwise known poses fix the frame of everything."""
        return self.angle_range_rad is None or self.angle_range_rad >= np.pi

    def space(self, box: int, k_max: float, n_orders: int | None = None) -> SearchSpace:
        """Search space at the resolution `k_max`, with at most `n_orders` angular orders."""
        space = search_space(
            box,
            k_max,
            reference_radius_px=self.mask_radius_px + self.mask_edge_px,
            max_shift_px=self.max_shift_px,
            angle_range_rad=self.angle_range_rad,
            coarsest_k=self.k_start,
            most_orders=n_orders,
        )
        return replace(self.along_filaments(space), mirror=self.mirror, n_ignored=self.n_ignored)

    def along_filaments(self, space: SearchSpace) -> SearchSpace:
        """The same space with the prior of angles, and the limit of shifts along x, of filaments."""
        coarse = space.coarse and self.along_filaments(space.coarse)
        shifts = space.shifts_px
        if self.rise_px is not None:
            shifts = shifts[np.abs(shifts[:, 0]) <= 0.5 * self.rise_px]
        return replace(space, coarse=coarse, shifts_px=shifts, kappa=self.kappa)

    def next_k_max(self, resolution: NDArray[np.int64], done: float | None = None) -> float:
        """Resolution of the next iteration, Eq. (4.7): what the best reference resolves, and a little more.

        `resolution` has the last ring that each reference resolves, `done` is the fraction of the
        mini-batches done, which limits the growth; None for full passes.
        """
        wanted = float(resolution.max()) + RINGS_BEYOND_SIGNAL
        if done is not None:
            wanted = min(wanted, self.k_start * (1.0 + (self.growth - 1.0) * done))
        return float(np.clip(wanted, self.k_start, self.k_limit))


@dataclass(frozen=True)
class SearchSpace:
    """One resolution's grid of poses and the transforms between angular orders and angles.

    Orders are kept with the even ones first: L(psi) and L(psi + pi) share the even part and differ in the
    sign of the odd part; L(psi) and L(-psi) share the cosines and differ in the sign of the sines. So a
    quarter of the circle of each of these four suffices. A search round known poses has a window of angles
    about 0 instead, of which the half from 0 on suffices.

    Attributes
    ----------
    grid : PolarGrid
        Polar grid of the references.
    n_orders : int
        Angular orders M in use, 0 .. M - 1.
    n_angles : int
        In-plane angles searched: a multiple of 4 on the whole circle, an odd number in a window.
    shifts_px : ndarray of shape (n_shifts, 2)
        Shifts (x, y) searched, in the frame of the reference: the image shift is R_-psi u.
    shift_step_px : float
        Distance of neighbouring shifts.
    coarse : SearchSpace or None
        A coarser space that rules references out beforehand, Eq. (4.6); None for an exhaustive search.
    angle_range_rad : float or None
        Half the window of angles, whose ends are searched; None for the whole circle.
    mirror : bool
        Whether mirror images of the references are searched as well, Eq. (4.18).
    n_ignored : int
        First rings, which no likelihood counts, Eq. (4.21).
    kappa : float
        Of the prior of angles, Eq. (4.23).
    """

    grid: PolarGrid
    n_orders: int
    n_angles: int
    shifts_px: Float64
    shift_step_px: float
    coarse: SearchSpace | None = None
    angle_range_rad: float | None = None
    mirror: bool = False
    n_ignored: int = 0
    kappa: float = 0.0

    @property
    def n_rings(self) -> int:
        """Rings in use, 1 .. n_rings Fourier pixels."""
        return self.grid.n_rings

    @property
    def n_shifts(self) -> int:
        """Shifts searched."""
        return len(self.shifts_px)

    @property
    def work(self) -> int:
        """Multiplications for an image and a reference: products over rings, then over orders."""
        window = self.angle_range_rad is not None  # of which half has to be made and not a quarter
        return self.n_shifts * self.n_orders * (8 * self.n_rings + 2 * (1 + window) * self.n_angles)

    @property
    def shifted_bytes(self) -> int:
        """Bytes of one reference at every shift."""
        return 8 * self.n_orders * self.n_rings * self.n_shifts

    @property
    def n_even(self) -> int:
        """How many of the orders are even."""
        return (self.n_orders + 1) // 2

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """The angular orders as they are stored, even ones first; (n_orders,)."""
        m = np.arange(self.n_orders)
        return np.concatenate([m[::2], m[1::2]])

    @property
    def angle_step_rad(self) -> float:
        """Distance of neighbouring angles; 0 if there is only one."""
        if self.angle_range_rad is None:
            return 2.0 * np.pi / self.n_angles
        return 2.0 * self.angle_range_rad / max(self.n_angles - 1, 1)

    @cached_property
    def angles_rad(self) -> Float64:
        """In-plane angles psi searched; (n_angles,).

        On the circle they are half a step off zero, so that they mirror each other; in a window the known
        angle 0 is the middle one.
        """
        first = 0.5 if self.angle_range_rad is None else -(self.n_angles // 2)
        return np.asarray((np.arange(self.n_angles) + first) * self.angle_step_rad, dtype=np.float64)

    @cached_property
    def synthesis(self) -> Float32:
        """Matrices from orders to the angles made, Eq. (4.3).

        L(psi) = sum over m >= 0 of g_m (Re c_m cos(m psi) - Im c_m sin(m psi)), g_0 = 1, g_m = 2 otherwise.
        The first axis is for Re (cosines) and Im (sines). On the circle the shape is
        (2, 2, n_angles / 4, n_even): second axis even orders and odd ones, these padded with an order of
        weight 0 where there is one less. In a window it is (2, (n_angles + 1) / 2, 2 n_even).
        """
        gain = np.where(self.order == 0, 1.0, 2.0)
        turn = np.abs(self.angles_rad)[self.mirrored_angles[: self._n_made], None] * self.order
        matrix = np.zeros((2, len(turn), 2 * self.n_even), dtype=np.float32)
        matrix[..., : self.n_orders] = gain * np.cos(turn), -gain * np.sin(turn)
        if self.angle_range_rad is not None:
            return matrix
        parts = matrix.reshape(2, len(turn), 2, self.n_even).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(parts)

    @property
    def _n_made(self) -> int:
        """Angles whose cosines and sines are made; the others mirror them."""
        return self.n_angles // 4 if self.angle_range_rad is None else self.n_angles // 2 + 1

    @cached_property
    def mirrored_angles(self) -> NDArray[np.int32]:
        """Index of each angle in the order in which the search makes them; (n_angles,).

        On the circle psi, -psi, psi + pi and pi - psi for each psi of the first quarter; in a window each psi
        from 0 on, then each -psi below 0.
        """
        j = np.arange(self._n_made, dtype=np.int32)
        half = self.n_angles // 2
        if self.angle_range_rad is not None:
            return np.concatenate([half + j, half - j[1:]]).astype(np.int32)
        return np.concatenate([j, self.n_angles - 1 - j, j + half, half - 1 - j]).astype(np.int32)

    @cached_property
    def analysis(self) -> Float32:
        """Matrix from a posterior over all angles to (Re, Im) of sum P(psi) exp(-i m psi), Eq. (4.5).

        Shape (n_angles, 2 n_orders); Re and Im are neighbours, so that the product views as complex64.
        """
        turn = self.angles_rad[:, None] * self.order
        matrix = np.stack([np.cos(turn), -np.sin(turn)], axis=-1).astype(np.float32)
        return matrix.reshape(len(turn), -1)

    def log_shift_prior(self, sigma_px: float) -> Float64:
        """Log of the Gaussian prior of Eq. (4.1), normalised over the shifts searched; (n_shifts,)."""
        log_prior = -0.5 * (self.shifts_px**2).sum(axis=1) / sigma_px**2
        normalised: Float64 = log_prior - np.logaddexp.reduce(log_prior)
        return normalised


def search_space(
    box: int,
    k_max: float,
    *,
    reference_radius_px: float,
    max_shift_px: float,
    angle_range_rad: float | None = None,
    coarsest_k: float | None = None,
    most_orders: int | None = None,
) -> SearchSpace:
    """Choose orders, angles and shifts for references of a given radius up to `k_max`.

    Parameters
    ----------
    box : int
        Side D of the images in pixels.
    k_max : float
        Largest radius in Fourier pixels.
    reference_radius_px : float
        Radius outside which the references are zero.
    max_shift_px : float
        Longest shift searched.
    angle_range_rad : float, optional
        Angles are searched only this far from 0, at steps that reach both ends; by default, and from pi on,
        the whole circle is.
    coarsest_k : float, optional
        Resolution below which no coarse search is made; by default none is made at any resolution.
    most_orders : int, optional
        Angular orders, at most, Eq. (4.24); by default all that a reference can have.
    """
    radius_px = min(reference_radius_px + max_shift_px, box / 2)
    present = n_angular_orders(box, k_max, reference_radius_px)
    n_orders = present if most_orders is None else min(present, most_orders)
    grid = polar_grid(box, k_max, radius_px, n_orders)
    # at least 2 n_orders (Nyquist), more where orders are left out, and a multiple of 4
    n_angles = 4 * -(-min(present, n_orders + n_orders // 5) // 2)
    if angle_range_rad is not None and angle_range_rad >= np.pi:
        angle_range_rad = None
    if angle_range_rad is not None:
        n_angles = 2 * int(np.ceil(angle_range_rad * n_angles / (2.0 * np.pi) - 1e-6)) + 1
    step_px = max(1.0, box / k_max / SHIFTS_PER_PERIOD)
    space = SearchSpace(
        grid,
        min(n_orders, grid.n_angles // 2),
        n_angles,
        shift_grid(max_shift_px, step_px),
        step_px,
        angle_range_rad=angle_range_rad,
    )
    if coarsest_k is None:
        return space
    coarse = search_space(
        box,
        max(min(COARSE_FRACTION * k_max, MAX_COARSE_RINGS), coarsest_k),
        reference_radius_px=reference_radius_px,
        max_shift_px=max_shift_px,
        angle_range_rad=angle_range_rad,
        most_orders=most_orders,
    )
    worth_it = MIN_COARSE_GAIN * coarse.work <= space.work
    return replace(space, coarse=coarse) if worth_it else space


def shift_grid(max_shift_px: float, step_px: float) -> Float64:
    """Square grid of shifts inside a disc, the origin first, then by length; (n_shifts, 2)."""
    n_steps = int(np.floor(max_shift_px / step_px + 1e-9))
    axis = np.arange(-n_steps, n_steps + 1) * step_px
    x, y = (a.ravel() for a in np.meshgrid(axis, axis))
    length = np.hypot(x, y)
    kept = length <= max_shift_px + 1e-9
    order = np.lexsort((x[kept], y[kept], length[kept].round(9)))
    return np.column_stack([x[kept], y[kept]])[order]
