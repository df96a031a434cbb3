"""Central slices of volumes, their adjoint, and the volume that follows from sums, Eq. (8.1)-(8.4)."""

from __future__ import annotations

from functools import lru_cache

import finufft
import numpy as np
from numpy.typing import NDArray
from scipy import fft

from sklearn_cryoem.physics.fourier import Float64
from sklearn_cryoem.physics.polar import PolarGrid
from sklearn_cryoem.physics.rotation import NUFFT_TOLERANCE

POINTS_AT_ONCE = 500_000  # of a non-uniform FFT
CONJUGATE_STEPS = 10  # of the linear system, from the last volume on
OUTSIDE = 1e-4  # of the last ring's prior variance: that of frequencies beyond it


def lattice_size(n_rings: int) -> int:
    """Side, even and good for FFTs, of a volume in the box that holds frequencies up to `n_rings`."""
    return 2 * int(fft.next_fast_len(n_rings + 2, real=True))


def radius_of(n: int) -> Float64:
    """Frequency radius of every coefficient of ``rfftn`` of a volume of side n, in Fourier pixels."""
    k = np.fft.fftfreq(n, 1.0 / n)
    return np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.arange(n // 2 + 1) ** 2)


@lru_cache(maxsize=8)
def soft_ball(n: int, radius: float, edge: float) -> Float64:
    """Ball of ones with a raised-cosine edge in a volume of side n; radius and edge as parts of the side."""
    x = (np.arange(n) - n // 2) / n
    r = np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2)
    ball: Float64 = 0.5 + 0.5 * np.cos(np.pi * np.clip((r - radius) / max(edge, 1e-9), 0.0, 1.0))
    ball.setflags(write=False)
    return ball


def resized(volume: Float64, n: int) -> Float64:
    """The same function of space on a lattice of side n: Fourier coefficients are cut off, or are zero."""
    old = len(volume)
    if old == n:
        return volume
    k = np.arange(-(min(old, n) // 2 - 1), min(old, n) // 2)
    spectrum = fft.rfftn(fft.ifftshift(volume), norm="ortho", workers=1)
    result = np.zeros((n, n, n // 2 + 1), dtype=spectrum.dtype)
    index = np.ix_(k, k, k[k >= 0])
    result[index] = spectrum[index]
    found: Float64 = fft.fftshift(fft.irfftn(result, s=(n, n, n), norm="ortho", workers=1))
    return found


def _points(rotations: Float64, grid: PolarGrid, n: int, dtype: type) -> list[NDArray[np.floating]]:
    """z, y and x of the samples of slices, in radians a voxel of a volume of side n; each (n_points,)."""
    in_plane = np.stack([grid.kx.ravel(), grid.ky.ravel()])  # (2, J)
    points = np.einsum("vij,ik->jvk", rotations[:, :2] * (2.0 * np.pi / n), in_plane)  # x, y, z
    return [np.ascontiguousarray(points[axis].ravel(), dtype=dtype) for axis in (2, 1, 0)]


def _blocks(n_views: int, grid: PolarGrid) -> list[slice]:
    step = max(1, POINTS_AT_ONCE // (grid.n_rings * grid.n_angles // 2))
    return [slice(start, start + step) for start in range(0, n_views, step)]


def slices(volume: NDArray[np.floating], rotations: Float64, grid: PolarGrid) -> NDArray[np.complexfloating]:
    """Central slices of a volume on a polar grid, Eq. (8.1); (n_views, n_rings, n_angles / 2).

    Parameters
    ----------
    volume : ndarray of shape (n, n, n), float32 or float64
        Axes z, y, x, about the centre voxel; side of the box of the images, in unitary units.
    rotations : ndarray of shape (n_views, 3, 3)
        As of `euler_matrices`.
    grid : PolarGrid
        Rings and angles; fewer rings than n / 2.

    Notes
    -----
    One type-2 NUFFT: about 4 million samples a second.
    """
    n = len(volume)
    real = volume.dtype.type
    dense = volume.astype(np.result_type(real, np.complex64))
    parts = []
    for block in _blocks(len(rotations), grid):
        points = _points(rotations[block], grid, n, real)
        parts.append(finufft.nufft3d2(*points, dense, eps=NUFFT_TOLERANCE, isign=-1, nthreads=1))
    values: NDArray[np.complexfloating] = np.concatenate(parts) * real(n**-1.5)
    return values.reshape(len(rotations), grid.n_rings, -1)


def gridded(values: NDArray[np.complexfloating], rotations: Float64, grid: PolarGrid, n: int) -> Float64:
    """Adjoint of `slices` as a real map: samples and their conjugates are added up in a volume of side n.

    Parameters
    ----------
    values : ndarray of shape (n_views, n_rings, n_angles / 2), complex64 or complex128
        Samples of slices.
    rotations, grid : ndarray, PolarGrid
        As of `slices`.
    n : int
        Side of the volume.

    Returns
    -------
    volume : ndarray of shape (n, n, n)
        The gradient of the sum of Re conj(values) slices(volume).
    """
    real = values.real.dtype.type
    total = np.zeros((n, n, n))
    for block in _blocks(len(rotations), grid):
        points = _points(rotations[block], grid, n, real)
        dense = np.ascontiguousarray(values[block].ravel())
        total += finufft.nufft3d1(*points, dense, (n, n, n), eps=NUFFT_TOLERANCE, isign=1, nthreads=1).real
    total *= n**-1.5
    return total


def normal_kernel(weight: NDArray[np.floating], rotations: Float64, grid: PolarGrid, n: int) -> Float64:
    """Kernel of slicing, weighting and gridding: for volumes of side n that is a convolution, Eq. (8.3).

    Parameters
    ----------
    weight : ndarray of shape (n_views, n_rings, n_angles / 2)
        Weight of each sample.
    rotations, grid, n
        As of `gridded`.

    Returns
    -------
    kernel : ndarray of shape (2 n, 2 n, n + 1)
        ``rfftn`` of the kernel on a lattice of twice the field, so that nothing wraps round.
    """
    field = np.zeros((2 * n,) * 3)
    for block in _blocks(len(rotations), grid):
        points = _points(rotations[block], grid, n, np.float32)
        dense = np.ascontiguousarray(weight[block].ravel(), dtype=np.complex64)
        field += finufft.nufft3d1(*points, dense, (2 * n,) * 3, eps=NUFFT_TOLERANCE, isign=1, nthreads=1).real
    kernel: Float64 = fft.rfftn(fft.ifftshift(field), workers=1).real * float(n) ** -3
    return kernel


def convolve(kernel: Float64, volume: Float64) -> Float64:
    """Product of the matrix that `normal_kernel` stands for and a volume of side n."""
    n = len(volume)
    spectrum = fft.rfftn(volume, s=(2 * n,) * 3, workers=1) * kernel
    product: Float64 = fft.irfftn(spectrum, s=(2 * n,) * 3, workers=1)[:n, :n, :n]
    return product


def filtered(volume: Float64, gain: Float64) -> Float64:
    """Multiply the Fourier coefficients of a volume, as ``rfftn`` has them, by `gain`."""
    result: Float64 = fft.irfftn(fft.rfftn(volume, workers=1) * gain, s=volume.shape, workers=1)
    return result


def prior_variance(signal: Float64, n: int) -> Float64:
    """Prior variance of coefficients of ``rfftn`` of a volume, from that of rings 1, 2, ..; Eq. (8.4)."""
    radius = radius_of(n)
    rings = np.arange(1.0, len(signal) + 1.0)
    variance: Float64 = np.interp(radius, rings, signal)
    variance[radius > len(signal) + 0.5] = OUTSIDE * signal[-1]
    return variance


def solve_volume(
    gradient: Float64, kernel: Float64, variance: Float64, mask: Float64, start: Float64
) -> Float64:
    """Volume that maximises the posterior, Eq. (8.4): a few conjugate gradients from the last one.

    Parameters
    ----------
    gradient : ndarray of shape (n, n, n)
        Weighted data, gridded.
    kernel : ndarray of shape (2 n, 2 n, n + 1)
        From `normal_kernel`.
    variance : ndarray of shape (n, n, n / 2 + 1)
        From `prior_variance`.
    mask : ndarray of shape (n, n, n)
        The density is `mask` times the volume that is returned.
    start : ndarray of shape (n, n, n)
        Where to start; no step makes the posterior smaller.
    """
    share = float(np.mean(mask**2))
    n = len(mask)
    shell = np.rint(radius_of(n)).astype(np.int64)
    size = np.bincount(shell.ravel())
    level = np.bincount(shell.ravel(), np.maximum(kernel[::2, ::2, : n + 1 : 2], 0.0).ravel()) / size
    preconditioner = 1.0 / (share * level[shell] + 1.0 / variance)

    def times(volume: Float64) -> Float64:
        return mask * convolve(kernel, mask * volume) + filtered(volume, 1.0 / variance)

    volume = start.copy()
    residual = mask * gradient - times(volume)
    direction, last = np.zeros_like(volume), np.inf
    for _ in range(CONJUGATE_STEPS):
        step = filtered(residual, preconditioner)
        size_now = float(np.vdot(residual, step))
        if size_now <= 0.0:
            break
        direction = step + (size_now / last) * direction
        product = times(direction)
        length = size_now / float(np.vdot(direction, product))
        volume += length * direction
        residual -= length * product
        last = size_now
    return volume


def shell_correlation(one: Float64, other: Float64, n_rings: int) -> Float64:
    """Fourier shell correlation of two volumes on shells 1 .. n_rings; (n_rings,)."""
    a, b = (fft.rfftn(volume, workers=1) for volume in (one, other))
    shell = np.rint(radius_of(len(one))).astype(np.int64).ravel()
    cross, first, second = (
        np.bincount(shell, part.real.ravel())[1 : n_rings + 1]
        for part in (a * b.conj(), a * a.conj(), b * b.conj())
    )
    correlation: Float64 = cross / np.maximum(np.sqrt(first * second), 1e-300)
    return correlation
