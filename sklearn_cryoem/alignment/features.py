"""Images as angular orders on polar rings, Eq. (4.3), computed once and kept while memory allows."""

from __future__ import annotations

import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.files import room_for
from sklearn_cryoem._core.parallel import TaskPool
from sklearn_cryoem.alignment.frames import KnownPoses
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64
from sklearn_cryoem.physics.masks import mask_background, soft_disc
from sklearn_cryoem.physics.polar import (
    PolarGrid,
    angular_orders,
    even_orders,
    n_angular_orders,
    polar_grid,
    polar_transform,
)

Rows = NDArray[np.int64]
ReadImages = Callable[[Rows], Float32]
EvaluateCTF = Callable[[Rows, Float64, Float64], Float32]
Task = TypeVar("Task")
Result = TypeVar("Result")

ALIGNED = 64  # bytes: where arrays of a workspace begin
GROWTH, ROOM_SHARE = 1.5, 0.5  # a new workspace takes more than is needed, and a part of the room at most
EVEN_ORDER_TOLERANCE = 1e-3  # orders of the squared CTF below this fraction of the largest are left out


@dataclass(frozen=True)
class ImageFeatures:
    """What the kernels need of a block of images; none of it depends on references or noise.

    Attributes
    ----------
    orders : ndarray of shape (n_images, n_orders, n_rings), complex64
        Angular orders of CTF times image.
    ctf_power : ndarray of shape (n_images, n_even, n_rings), complex64
        Even angular orders 0, 2, .. of the squared CTF.
    power : ndarray of shape (n_images, n_rings), float32
        Mean of |F|^2 round each ring.
    """

    orders: Complex64
    ctf_power: Complex64
    power: Float32

    def __len__(self) -> int:
        return len(self.orders)

    def take(self, rows: Rows | slice, n_rings: int, n_orders: int) -> ImageFeatures:
        """Rows, rings and orders of these features."""
        n_even = min(self.ctf_power.shape[1], (n_orders + 1) // 2)
        return ImageFeatures(
            self.orders[rows, :n_orders, :n_rings],
            self.ctf_power[rows, :n_even, :n_rings],
            self.power[rows, :n_rings],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Features of the images of all parts, in their order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.orders for part in parts]),
            np.concatenate([part.ctf_power for part in parts]),
            np.concatenate([part.power for part in parts]),
        )


@dataclass(frozen=True)
class AlignmentImages:
    """The images of an alignment and what is known of them beforehand.

    Attributes
    ----------
    n_images, box : int
        Size of the set.
    read : callable
        ``read(rows)`` returns images (n, D, D).
    ctf : callable or None
        ``ctf(rows, radius, azimuth)`` returns the CTF (n, J) at radii in Fourier pixels; None for 1.
    known : KnownPoses
        Poses that the images are brought into, so that what is searched is what remains; their masks go with
        them. `KnownPoses.identity` leaves the images as they are.
    mask_radius_px, mask_edge_px : float
        Soft mask of the images about the centre pixel.
    reference_radius_px : float
        Radius of the references: fixes the orders needed.
    k_limit : float
        Highest resolution that will ever be asked for, in Fourier pixels.
    pixel_size : float or None
        Angstrom per pixel, for what is said of a fit.
    """

    n_images: int
    box: int
    read: ReadImages
    ctf: EvaluateCTF | None
    known: KnownPoses
    mask_radius_px: float
    mask_edge_px: float
    reference_radius_px: float
    k_limit: float
    pixel_size: float | None = None

    @cached_property
    def noise_fraction(self) -> float:
        """Part of the noise power that passes the mask of the images."""
        disc = soft_disc(self.box, self.mask_radius_px, self.mask_edge_px)
        return float(np.mean(disc.astype(np.float64) ** 2))

    def grid(self, k_max: float) -> tuple[PolarGrid, int]:
        """Polar grid for the images up to `k_max`, and the angular orders that references have there."""
        radius_px = min(self.mask_radius_px + self.mask_edge_px, self.box / 2)
        n_orders = n_angular_orders(self.box, k_max, self.reference_radius_px)
        grid = polar_grid(self.box, k_max, radius_px, n_orders)
        return grid, min(n_orders, grid.n_angles // 2)

    def n_rings(self, k_max: float) -> int:
        """Rings up to `k_max`, at most those of the limit."""
        return min(self.grid(k_max)[0].n_rings, self.grid(self.k_limit)[0].n_rings)

    @cached_property
    def n_even(self) -> int:
        """Even orders that matter in any squared CTF on the outermost ring, where astigmatism is largest."""
        if self.ctf is None:
            return 1
        grid, n_orders = self.grid(self.k_limit)
        n_largest = (n_orders + 1) // 2
        radius = np.full(grid.n_angles // 2, float(grid.n_rings))
        strength = np.zeros(n_largest)
        for start in range(0, self.n_images, 1024):
            rows = np.arange(start, min(start + 1024, self.n_images))
            orders = even_orders(self.ctf(rows, radius, grid.azimuth) ** 2, n_largest)  # (n, n_largest)
            strength = np.maximum(strength, np.abs(orders).max(axis=0))
        return int(np.flatnonzero(strength > EVEN_ORDER_TOLERANCE * strength.max())[-1]) + 1

    def masked(self, rows: Rows, shift_px: Float64) -> Float32:
        """Images of `rows` with their background removed, which `shift_px` (n, 2) would centre."""
        centres = -shift_px if shift_px.any() else None
        return mask_background(self.read(rows), self.mask_radius_px, self.mask_edge_px, centres)

    def ctf_on(self, rows: Rows, grid: PolarGrid) -> Float32 | None:
        """CTF of `rows` on the half circle of `grid`; (n, n_rings, n_angles / 2)."""
        if self.ctf is None:
            return None
        shape = (grid.n_rings, grid.n_angles // 2)
        radius = np.broadcast_to(grid.radius[:, None], shape).ravel()
        azimuth = np.broadcast_to(grid.azimuth, shape).ravel()
        return self.ctf(rows, radius, azimuth).reshape(len(rows), *shape)

    def power(self, rows: Rows, shift_px: Float64, n_rings: int) -> Float32:
        """Mean power of `rows` on each of `n_rings` rings, without the rest of the features; (n, n_rings)."""
        return _mean_power(polar_transform(self.masked(rows, shift_px), self.grid(n_rings)[0]))

    def features(self, rows: Rows, shift_px: Float64, grid: PolarGrid, n_orders: int) -> ImageFeatures:
        """Features of `rows`, each moved by `shift_px` (n, 2) and brought into its known angle, Eq. (4.3)."""
        poses, n_even = self.known.take(rows, shift_px), min(self.n_even, (n_orders + 1) // 2)
        values = polar_transform(self.masked(rows, shift_px), grid)  # (n, n_rings, n_angles / 2)
        power = _mean_power(values)  # (n, n_rings)
        ctf = self.ctf_on(rows, grid)
        if ctf is None:
            ctf_power = np.zeros((len(rows), n_even, grid.n_rings), dtype=np.complex64)
            ctf_power[:, 0] = 1.0
        else:
            values *= ctf
            ctf_power = even_orders(ctf**2, n_even).transpose(0, 2, 1)
        values *= poses.centring(grid)
        orders = angular_orders(values, n_orders).transpose(0, 2, 1)
        orders, ctf_power = poses.turned(orders), poses.turned(ctf_power, step=2)
        return ImageFeatures(np.ascontiguousarray(orders), np.ascontiguousarray(ctf_power), power)


def _mean_power(values: Complex64) -> Float32:
    """Mean of |F|^2 over each ring of values (n_images, n_rings, n_angles / 2); (n_images, n_rings)."""
    return np.asarray(np.mean(values.real**2 + values.imag**2, axis=-1))


class FeatureCache:
    """Features of any images at any resolution; each image is computed once if all of them fit in memory.

    Parameters
    ----------
    images : AlignmentImages
        The images.
    max_bytes : float
        Features are kept if those of all images, up to the finest resolution, need no more than this.
    folder : Path or None
        Where they are kept in files, which every process that unpickles the cache maps: what one process has
        computed all can read. Two that compute the same image write the same bits. None keeps them in the
        memory of this process; the cache then arrives empty elsewhere.
    """

    def __init__(self, images: AlignmentImages, max_bytes: float = 0.0, folder: Path | None = None) -> None:
        grid, n_orders = images.grid(images.k_limit)
        n, n_even, n_rings = images.n_images, images.n_even, grid.n_rings
        n_bytes = n * 8 * n_rings * (n_orders + n_even + 0.5)
        self.images = images
        self.n_bytes = n_bytes if n_bytes <= max_bytes else 0.0
        self._grid, self._n_orders, self._folder = grid, n_orders, folder
        self._shapes: dict[str, tuple[tuple[int, ...], type]] = {
            "orders": ((n, n_orders, n_rings), np.complex64),
            "ctf_power": ((n, n_even, n_rings), np.complex64),
            "power": ((n, n_rings), np.float32),
            "made_at": ((n, 2), np.float64),  # shift of the image when its features were made, NaN before
        }
        if self.n_bytes and folder is not None:
            for name, (shape, dtype) in self._shapes.items():
                _make_file(folder / name, math.prod(shape) * np.dtype(dtype).itemsize)
        self._arrays = self._open()
        if self.n_bytes:
            self._arrays["made_at"][:] = np.nan

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._arrays = self._open()
        if self.n_bytes and self._folder is None:
            self._arrays["made_at"][:] = np.nan

    def __call__(self, rows: Rows, shift_px: Float64, n_rings: int, n_orders: int) -> ImageFeatures:
        """Features of `rows`, moved by `shift_px` (n, 2), at some rings and angular orders."""
        if not self.n_bytes:
            return self.images.features(rows, shift_px, self.images.grid(n_rings)[0], n_orders)
        kept = self._arrays
        missing = (kept["made_at"][rows] != shift_px).any(axis=1)
        if missing.any():
            new_rows, new_shift = rows[missing], shift_px[missing]
            new = self.images.features(new_rows, new_shift, self._grid, self._n_orders)
            kept["orders"][new_rows], kept["ctf_power"][new_rows] = new.orders, new.ctf_power
            kept["power"][new_rows] = new.power
            kept["made_at"][new_rows] = new_shift
        features = ImageFeatures(kept["orders"], kept["ctf_power"], kept["power"])
        return features.take(rows, n_rings, n_orders)

    def power(self, rows: Rows, shift_px: Float64, n_rings: int) -> Float32:
        """Mean power of `rows` on each of `n_rings` rings; (n, n_rings)."""
        if self.n_bytes:
            return self(rows, shift_px, n_rings, 1).power
        return self.images.power(rows, shift_px, n_rings)

    def _open(self) -> dict[str, NDArray[Any]]:
        if not self.n_bytes:
            return {}
        if self._folder is None:
            return {name: np.empty(shape, dtype) for name, (shape, dtype) in self._shapes.items()}
        return {
            name: np.asarray(np.memmap(self._folder / name, dtype, "r+", shape=shape))
            for name, (shape, dtype) in self._shapes.items()
        }


class SharedFeatures:
    """The features of all images in the hands of a pool of workers.

    Parameters
    ----------
    images : AlignmentImages
        The images.
    pool : TaskPool
        Who works on them; it must stay open.
    max_bytes : float
        As of `FeatureCache`.
    """

    def __init__(self, images: AlignmentImages, pool: TaskPool, max_bytes: float = 0.0) -> None:
        cache = FeatureCache(images, max_bytes, pool.folder)
        self.images, self.n_bytes, self._pool = images, cache.n_bytes, pool
        self._cache, self._room = pool.share(cache, mapped=True), 0  # bytes of the workspace

    @property
    def n_workers(self) -> int:
        """How many tasks run at a time."""
        return self._pool.n_workers

    def map(
        self,
        function: Callable[..., Result],
        tasks: Iterable[Task],
        value: Any,
        first: tuple[Callable[..., None], Iterable[Any]] | None = None,
    ) -> Iterator[Result]:
        """Yield ``function(task, cache, value)`` for every task, in order; `value` is sent once.

        All of `first`, a function and its tasks, is done before.
        """
        shared = self._pool.share(value)
        if first is not None:
            deque(self._pool.map(*first, self._cache, shared), maxlen=0)
        yield from self._pool.map(function, tasks, self._cache, shared)
        self._pool.discard(shared)

    def workspace(self, n_bytes: int) -> Path | None:
        """File of at least `n_bytes`, the same again and again, for arrays that workers make for each other.

        None where workers are not processes of this machine, or there is no room.
        """
        folder = self._pool.folder
        if folder is not None and n_bytes > self._room:
            if GROWTH * n_bytes > ROOM_SHARE * shutil.disk_usage(folder).free:
                return None
            (folder / f"workspace{self._room}").unlink(missing_ok=True)
            self._room = int(GROWTH * n_bytes)
            _make_file(folder / f"workspace{self._room}", self._room)
        return folder and folder / f"workspace{self._room}"


def arrays_in(path: Path, shapes: Iterable[tuple[tuple[int, ...], type]]) -> list[NDArray[Any]]:
    """Arrays of these shapes and types, one after the other, that a file holds which is mapped."""
    arrays: list[NDArray[Any]] = []
    at = 0
    for shape, dtype in shapes:
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        arrays.append(_mapped(path)[at : at + n_bytes].view(dtype).reshape(shape))
        at += ALIGNED * -(-n_bytes // ALIGNED)
    return arrays


@lru_cache(maxsize=1)
def _mapped(path: Path) -> NDArray[np.uint8]:
    return np.asarray(np.memmap(path, np.uint8, "r+"))


def _make_file(path: Path, n_bytes: int) -> None:
    """A file of zeros that has its place on the disk: a map of one that has not kills who writes beyond."""
    remedy = "Point JOBLIB_TEMP_FOLDER to a folder with more room, or take n_jobs=1."
    with room_for(f"{n_bytes / 1e6:.0f} MB of features in {path.parent}", remedy), open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        else:
            file.truncate(n_bytes)
