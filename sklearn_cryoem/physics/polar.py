"""Images on a polar Fourier grid and their angular orders, where all rotations are one transform, Eq. (4.3).

A real image has F(r, theta + pi) = conj F(r, theta), so half a circle holds everything. With
h = Re F + Im F (a Hartley transform) the even angular orders of h are those of Re F and the odd ones those
of Im F: h is real, and correlating two images over all rotations is correlating two real functions.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import finufft
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, special

from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64
from sklearn_cryoem.physics.rotation import NUFFT_TOLERANCE

MAX_PLANS = 12  # in each thread, half a megabyte each at 64 pixels


@dataclass(frozen=True)
class PolarGrid:
    """Rings one Fourier pixel apart with equally spaced angles on each.

    Attributes
    ----------
    box : int
        Side D of the images in pixels.
    n_rings : int
        Rings at radii 1 .. n_rings Fourier pixels.
    n_angles : int
        Angles on the whole circle, even; angle 0 lies along +x, the next ones towards +y. Values are kept on
        the first half only.
    """

    box: int
    n_rings: int
    n_angles: int

    def __post_init__(self) -> None:
        if self.n_angles % 2 or self.n_angles < 4 or not 1 <= self.n_rings < self.box / 2:
            raise ValueError(
                f"PolarGrid(box={self.box}, n_rings={self.n_rings}, n_angles={self.n_angles}): expected "
                "1 <= n_rings < box / 2 and an even n_angles >= 4. Use polar_grid(box, k_max, radius_px)."
            )

    @cached_property
    def radius(self) -> Float64:
        """Radius of each ring in Fourier pixels; (n_rings,)."""
        return np.arange(1.0, self.n_rings + 1.0)

    @cached_property
    def azimuth(self) -> Float64:
        """Angles of the kept half circle in radians, in [0, pi); (n_angles / 2,)."""
        return np.asarray(np.arange(self.n_angles // 2) * (2.0 * np.pi / self.n_angles), dtype=np.float64)

    @cached_property
    def ring_weight(self) -> Float64:
        """Area of the Fourier plane of one sample of each ring, 2 pi r / n_angles; (n_rings,)."""
        return 2.0 * np.pi * self.radius / self.n_angles

    @property
    def kx(self) -> Float64:
        """Horizontal frequency of each sample in Fourier pixels; (n_rings, n_angles / 2)."""
        return self.radius[:, None] * np.cos(self.azimuth)

    @property
    def ky(self) -> Float64:
        """Vertical frequency of each sample in Fourier pixels; (n_rings, n_angles / 2)."""
        return self.radius[:, None] * np.sin(self.azimuth)


def n_angular_orders(box: int, k_max: float, radius_px: float) -> int:
    """How many angular orders an object of the given radius has up to `k_max`, order 0 included.

    On the ring r the orders of an object of radius R end at x = 2 pi r R / D (where the Bessel functions
    J_m(x) vanish), with a tail of about 2 x^(1/3).
    """
    reach = 2.0 * np.pi * k_max * radius_px / box
    return int(np.ceil(reach + 2.0 * np.cbrt(reach))) + 2


def polar_grid(box: int, k_max: float, radius_px: float, n_orders: int | None = None) -> PolarGrid:
    """Return the polar grid for objects of radius `radius_px` up to `k_max` Fourier pixels.

    Parameters
    ----------
    box : int
        Side D of the images in pixels.
    k_max : float
        Largest radius in Fourier pixels; rings end at floor(k_max), at most (D - 1) // 2.
    radius_px : float
        Radius in pixels outside which the images are zero.
    n_orders : int, optional
        Angular orders that will be used; by default all that the object has. Orders beyond these may alias
        among themselves, so fewer angles are needed.
    """
    n_rings = int(np.clip(np.floor(k_max + 1e-9), 1, (box - 1) // 2))
    present = n_angular_orders(box, n_rings, radius_px)
    wanted = present if n_orders is None else min(n_orders, present)
    half = max(int(np.ceil((present + wanted) / 2)), wanted, 2)
    return PolarGrid(box, n_rings, 2 * int(fft.next_fast_len(half, real=True)))


def polar_transform(images: Float32, grid: PolarGrid) -> Complex64:
    """Fourier transform of `images` about the centre pixel on a polar grid, Eq. (1.1) and (4.3).

    Parameters
    ----------
    images : ndarray of shape (n_images, D, D)
        Real images.
    grid : PolarGrid
        Rings and angles; of the same box.

    Returns
    -------
    values : ndarray of shape (n_images, n_rings, n_angles / 2), complex64
        Scaled as ``rfft2(norm="ortho")``: white noise of variance s2 has E|F|^2 = s2.

    Notes
    -----
    One batched type-2 NUFFT with fixed points: about 0.1 ms for an image of 64 pixels.
    """
    n_images, box = len(images), grid.box
    if n_images == 0:
        return np.empty((0, grid.n_rings, grid.n_angles // 2), dtype=np.complex64)
    plan = _plan(2, n_images, -1, grid)
    values = plan.execute(np.ascontiguousarray(images, dtype=np.complex64))
    values = values.reshape(n_images, grid.n_rings, grid.n_angles // 2)
    values *= np.float32(1.0 / box)
    return np.asarray(values)


def images_from_polar(values: Complex64, grid: PolarGrid) -> Float32:
    """Images with the given polar transform: the quadrature over rings and angles, without the mean.

    The inverse of `polar_transform` for band-limited objects well inside the box; the disc |k| < 1/2 is
    missing, so the background is a constant other than 0 (masking the background restores it).

    Parameters
    ----------
    values : ndarray of shape (n_images, n_rings, n_angles / 2)
        As returned by `polar_transform`.
    grid : PolarGrid
        Rings and angles.

    Returns
    -------
    images : ndarray of shape (n_images, D, D), float32
    """
    n_images, box = len(values), grid.box
    if n_images == 0:
        return np.empty((0, box, box), dtype=np.float32)
    # the other half circle is the complex conjugate: twice the real part counts it
    weighted = values * (2.0 * grid.ring_weight[:, None] / box).astype(np.float32)
    plan = _plan(1, n_images, 1, grid)
    images = plan.execute(np.ascontiguousarray(weighted.reshape(n_images, -1), dtype=np.complex64))
    return np.ascontiguousarray(images.reshape(n_images, box, box).real)


def translation_phase(grid: PolarGrid, move_px: ArrayLike) -> Complex64:
    """Factor exp(-2 pi i k.u / D) that moves the content of an image by u.

    Parameters
    ----------
    grid : PolarGrid
        Rings and angles.
    move_px : array_like of shape (n_shifts, 2)
        Moves (x, y) in pixels.

    Returns
    -------
    phase : ndarray of shape (n_shifts, n_rings, n_angles / 2), complex64
    """
    move = np.asarray(move_px, dtype=np.float64).reshape(-1, 2)
    along = move[:, 0, None] * np.cos(grid.azimuth) + move[:, 1, None] * np.sin(
        grid.azimuth
    )  # (n_shifts, n_angles / 2)
    first = np.exp((-2j * np.pi / grid.box) * along)[:, None, :]  # at radius 1; the others are its powers
    powers = np.broadcast_to(first, (len(move), grid.n_rings, along.shape[1]))
    phase: Complex64 = np.multiply.accumulate(powers, axis=1).astype(np.complex64)
    return phase


def angular_orders(values: Complex64, n_orders: int) -> Complex64:
    """Fourier coefficients a_m, 0 <= m < n_orders, of h = Re F + Im F round every ring.

    Parameters
    ----------
    values : ndarray of shape (..., n_angles / 2), complex
        Values on the half circle, as returned by `polar_transform`.
    n_orders : int
        Orders kept; at most n_angles / 2.

    Returns
    -------
    orders : ndarray of shape (..., n_orders), complex64
        h(theta) = sum over all m of a_m exp(i m theta), with a_-m = conj a_m. They do not depend on n_angles.
        Rotating, F'(theta) = F(theta + psi), multiplies a_m by exp(i m psi).
    """
    half = values.shape[-1]
    hartley = np.empty((*values.shape[:-1], 2 * half), dtype=np.float32)
    np.add(values.real, values.imag, out=hartley[..., :half])
    np.subtract(values.real, values.imag, out=hartley[..., half:])
    orders: Complex64 = fft.rfft(hartley, axis=-1, workers=1)[..., :n_orders] * np.float32(0.5 / half)
    return orders


def from_angular_orders(orders: Complex64, n_angles: int) -> Complex64:
    """Inverse of `angular_orders`: values (..., n_angles / 2) on the half circle of `n_angles` angles."""
    half = n_angles // 2
    if orders.shape[-1] > half:
        raise ValueError(
            f"{orders.shape[-1]} angular orders need more than {n_angles} angles. "
            f"Use at least {2 * orders.shape[-1]}."
        )
    hartley = fft.irfft(orders, n_angles, axis=-1, norm="forward", workers=1)  # (..., n_angles)
    values = np.empty((*orders.shape[:-1], half), dtype=np.complex64)
    values.real = np.float32(0.5) * (hartley[..., :half] + hartley[..., half:])
    values.imag = np.float32(0.5) * (hartley[..., :half] - hartley[..., half:])
    return values


def order_shares(grid: PolarGrid, radius_px: float, n_orders: int) -> Float64:
    """Parts of the power of white noise in a disc that lie in each order and its negative, Eq. (4.24).

    Parameters
    ----------
    grid : PolarGrid
        Rings.
    radius_px : float
        Of the disc.
    n_orders : int
        Orders 0, 1, ..

    Returns
    -------
    share : ndarray of shape (n_orders, n_rings)
        Over all orders each ring sums to 1.
    """
    x = 2.0 * np.pi * radius_px / grid.box * grid.radius
    j = special.jv(np.arange(-1.0, n_orders + 1.0)[:, None], x)
    share: Float64 = j[1:-1] ** 2 - j[:-2] * j[2:]
    share[1:] *= 2.0
    return share


def even_orders(values: NDArray[np.floating], n_even: int) -> Complex64:
    """Fourier coefficients of orders 0, 2, .., 2 (n_even - 1) of a function of period pi.

    Parameters
    ----------
    values : ndarray of shape (..., n_angles / 2), real
        The function on the half circle, for example the square of a CTF or of |F|.
    n_even : int
        Orders kept; at most n_angles / 4 + 1.

    Returns
    -------
    orders : ndarray of shape (..., n_even), complex64
    """
    half = values.shape[-1]
    orders: Complex64 = fft.rfft(values.astype(np.float32, copy=False), axis=-1, workers=1)[..., :n_even]
    return orders * np.float32(1.0 / half)


_planned = threading.local()  # plans of each thread: making one takes as long as a dozen transforms


def _plan(kind: int, n_images: int, sign: int, grid: PolarGrid) -> finufft.Plan:
    """A plan made before, or a new one in the place of the one used least recently."""
    plans: OrderedDict[Any, finufft.Plan] = vars(_planned).setdefault("plans", OrderedDict())
    key = (os.getpid(), kind, n_images, sign, grid)
    if key in plans:
        plans.move_to_end(key)
        return plans[key]
    while len(plans) >= MAX_PLANS:
        plans.popitem(last=False)
    plans[key] = _new_plan(kind, n_images, sign, grid)
    return plans[key]


def _new_plan(kind: int, n_images: int, sign: int, grid: PolarGrid) -> finufft.Plan:
    # upsampling by 1.25 instead of 2: a smaller FFT for a wider kernel, faster at these sizes
    plan = finufft.Plan(
        kind, (grid.box, grid.box), n_trans=n_images, eps=NUFFT_TOLERANCE, isign=sign, dtype="complex64",
        nthreads=1, upsampfac=1.25,
    )  # fmt: skip
    turn = 2.0 * np.pi / grid.box
    plan.setpts((turn * grid.ky).ravel().astype(np.float32), (turn * grid.kx).ravel().astype(np.float32))
    return plan
