"""Images as angular orders on polar rings, made once and kept while memory allows, Eq. (4.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.parallel import TaskPool
from sklearn_cryoem.alignment.known import KnownPoses
from sklearn_cryoem.alignment.store import FeatureStore
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

FOLLOW_FROM = 0.5  # of the range of a search: images found further out are followed
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

    def weighted(self, weight: Float64) -> ImageFeatures:
        """Every term of every ring times a weight (n_images, n_rings), as Eq. (4.12) sums them."""
        factor = weight.astype(np.float32)
        each = factor[:, None, :]
        return ImageFeatures(self.orders * each, self.ctf_power * each, self.power * factor)

    def scaled(self, scale: Float64) -> ImageFeatures:
        """Features of images whose CTF is `scale` (n_images,) times as strong, Eq. (4.13)."""
        factor = scale.astype(np.float32)[:, None, None]
        return ImageFeatures(self.orders * factor, self.ctf_power * factor**2, self.power)

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


def image_features(
    images: Float32,
    ctf: Float32 | None,
    grid: PolarGrid,
    n_orders: int,
    n_even: int,
    known: KnownPoses | None = None,
) -> ImageFeatures:
    """Features of masked images whose CTF is given on the polar grid, Eq. (4.3).

    Parameters
    ----------
    images : ndarray of shape (n_images, D, D)
        Images, background removed.
    ctf : ndarray of shape (n_images, n_rings, n_angles / 2) or None
        CTF of every image on the half circle, astigmatism and all; None for 1.
    grid : PolarGrid
        Polar grid that the images are evaluated on.
    n_orders : int
        Angular orders kept of the images.
    n_even : int
        Even angular orders kept of the squared CTF.
    known : KnownPoses or None
        Poses that the images, with their CTFs, are brought into; None leaves them as they are.

    Returns
    -------
    features : ImageFeatures
    """
    values = polar_transform(images, grid)  # (n_images, n_rings, n_angles / 2)
    power = mean_power(values)  # (n_images, n_rings)
    if ctf is None:
        ctf_power = np.zeros((len(images), n_even, grid.n_rings), dtype=np.complex64)
        ctf_power[:, 0] = 1.0
    else:
        values *= ctf
        ctf_power = even_orders(ctf**2, n_even).transpose(0, 2, 1)
    if known is not None:
        values *= known.centring(grid)
    orders = angular_orders(values, n_orders).transpose(0, 2, 1)
    if known is not None:
        orders, ctf_power = known.turned(orders), known.turned(ctf_power, step=2)
    return ImageFeatures(np.ascontiguousarray(orders), np.ascontiguousarray(ctf_power), power)


def mean_power(values: Complex64) -> Float32:
    """Mean of |F|^2 over each ring of values (n_images, n_rings, n_angles / 2); (n_images, n_rings)."""
    return np.asarray(np.mean(values.real**2 + values.imag**2, axis=-1))


class FeatureSource:
    """Serves features of any rows at any resolution; computed once and kept if all of them fit in memory.

    Parameters
    ----------
    n_images, box : int
        Size of the set.
    read : callable
        ``read(rows)`` returns images (n, D, D).
    ctf : callable or None
        ``ctf(rows, radius, azimuth)`` returns the CTF (n, J) at radii in Fourier pixels; None for 1.
    mask_radius_px, mask_edge_px : float
        Soft mask of the images about the centre pixel.
    k_max : float
        Highest resolution that will ever be asked for, in Fourier pixels.
    reference_radius_px : float
        Radius of the references: fixes the orders needed.
    cache_bytes : float
        Features of all images are kept if they need no more than this.
    group : ndarray of shape (n_images,), int, or None
        Noise group of every image, counted from 0, -1 for one unknown; None if all share one noise spectrum.
    scale : ndarray of shape (n_images,), or None
        Factor on the CTF of every image, Eq. (4.13); None for 1. It may be set anew at any time.
    known : KnownPoses or None
        Poses that all images are brought into, so that what is searched is what remains; their masks go with
        them. None leaves the images as they are.

    Attributes
    ----------
    shift_px : ndarray of shape (n_images, 2)
        Shift that every image is brought into: at first the known one, then wherever it was found to lie,
        Eq. (4.16). It may be set anew at any time.
    """

    def __init__(
        self,
        n_images: int,
        box: int,
        read: ReadImages,
        ctf: EvaluateCTF | None,
        *,
        mask_radius_px: float,
        mask_edge_px: float,
        k_max: float,
        reference_radius_px: float,
        cache_bytes: float = 256e6,
        group: Rows | None = None,
        scale: Float64 | None = None,
        known: KnownPoses | None = None,
    ) -> None:
        self.n_images, self.box = n_images, box
        self._read, self._ctf = read, ctf
        self.n_groups = 0 if group is None else int(group.max()) + 1
        self.scale = scale
        self.known = KnownPoses.identity(n_images) if known is None else known
        self.shift_px = self.known.shift_px
        self.group: Rows = np.full(n_images, -1) if group is None else group
        self.mask_radius_px, self.mask_edge_px = mask_radius_px, mask_edge_px
        self.k_max, self.reference_radius_px = k_max, reference_radius_px
        self._full_grid, self._full_orders = self._grid(k_max)
        self.n_even = self._count_even_orders()
        per_image = 8 * self._full_grid.n_rings * (self._full_orders + self.n_even + 0.5)
        self.kept_bytes = n_images * per_image if n_images * per_image <= cache_bytes else 0.0
        self._kept: FeatureStore | None = None
        if self.kept_bytes:
            n_rings = self._full_grid.n_rings
            self._kept = FeatureStore(
                {
                    "orders": ((n_images, self._full_orders, n_rings), np.complex64),
                    "ctf_power": ((n_images, self.n_even, n_rings), np.complex64),
                    "power": ((n_images, n_rings), np.float32),
                }
            )
        self.employ(TaskPool())

    def employ(self, pool: TaskPool) -> None:
        """Let the workers of `pool` do the passes over these images, as long as the pool is open."""
        self.pool = pool
        if self._kept is not None and pool.folder is not None:
            self._kept.move_to(pool.folder)
        self.shared = pool.share(self, mapped=True)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("pool", "shared")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.shift_px = np.array(self.shift_px)  # a worker's own: arrays from a mapped file are read-only

    @property
    def noise_fraction(self) -> float:
        """Part of the noise power that passes the mask of the images."""
        disc = soft_disc(self.box, self.mask_radius_px, self.mask_edge_px)
        return float(np.mean(disc.astype(np.float64) ** 2))

    def n_rings(self, k_max: float) -> int:
        """Rings up to `k_max`, at most those of the limit given."""
        return min(self._grid(k_max)[0].n_rings, self._full_grid.n_rings)

    def __call__(self, rows: Rows, n_rings: int, n_orders: int) -> ImageFeatures:
        """Features of `rows` up to `n_rings` rings and `n_orders` angular orders."""
        features = self._unscaled(rows, n_rings, n_orders)
        return features if self.scale is None else features.scaled(self.scale[rows])

    def poses(self, rows: Rows) -> KnownPoses:
        """Poses that some images are brought into."""
        return KnownPoses(self.known.angle_rad[rows], self.shift_px[rows], self.known.mirrored[rows])

    def place(self, rows: Rows, shift_px: Float64) -> None:
        """Set the shifts (n, 2) that some images are brought into; a worker has not seen them move."""
        if not np.array_equal(self.shift_px[rows], shift_px):
            self.shift_px[rows] = shift_px  # in place: other threads of a worker place other rows

    def follow(self, rows: Rows, lies_px: Float64, range_px: float, reach_px: float) -> Rows:
        """Bring images that were found far out in their search to where they lie, Eq. (4.16).

        Parameters
        ----------
        rows : ndarray of shape (n,), int
            Images that were searched.
        lies_px : ndarray of shape (n, 2)
            Shift at which each was found.
        range_px : float
            Longest shift of a search, counted from `shift_px`.
        reach_px : float
            Longest shift in all, counted from the known poses.

        Returns
        -------
        moved : ndarray of int
            Those of `rows` whose shift has changed.
        """
        far = np.hypot(*(lies_px - self.shift_px[rows]).T) > FOLLOW_FROM * range_px
        rows, first = rows[far], self.known.shift_px[rows[far]]
        way = lies_px[far] - first
        most = max(reach_px - range_px, 0.0)
        way *= np.minimum(1.0, most / np.maximum(np.hypot(*way.T), 1e-12))[:, None]
        moved: Rows = rows[(self.shift_px[rows] != first + way).any(axis=1)]
        updated = self.shift_px.copy()  # states of the alignment hold the old one
        updated[rows] = first + way
        self.shift_px = updated
        return moved

    def power(self, rows: Rows, n_rings: int) -> Float32:
        """Mean power of `rows` on each of `n_rings` rings, (n, n_rings), without the rest of the features."""
        if self._kept is not None:
            return self(rows, n_rings, 1).power
        return mean_power(polar_transform(self.masked_images(rows), self._grid(n_rings)[0]))

    def learn_scale(self, rows: Rows, scale: Float64 | None) -> None:
        """Take new scales for `rows`, if any, and bring the mean of all images back to 1, Eq. (4.13)."""
        if self.scale is None or scale is None:
            return
        updated = self.scale.copy()
        updated[rows] = scale
        self.scale = updated / updated.mean()

    def _unscaled(self, rows: Rows, n_rings: int, n_orders: int) -> ImageFeatures:
        if self._kept is None:
            grid, _ = self._grid(n_rings)
            return self._compute(rows, grid, n_orders)
        missing = self._kept.missing(rows, self.shift_px)
        if missing.size:
            new = self._compute(missing, self._full_grid, self._full_orders)
            self._kept.fill(
                missing, self.shift_px, orders=new.orders, ctf_power=new.ctf_power, power=new.power
            )
        kept = (self._kept[name] for name in ("orders", "ctf_power", "power"))
        return ImageFeatures(*kept).take(rows, n_rings, n_orders)

    def masked_images(self, rows: Rows) -> Float32:
        """Images of `rows` with their background removed."""
        shift_px = self.shift_px[rows]
        centres = -shift_px if shift_px.any() else None
        return mask_background(self._read(rows), self.mask_radius_px, self.mask_edge_px, centres)

    def ctf_on(self, rows: Rows, grid: PolarGrid) -> Float32 | None:
        """CTF of `rows` on the half circle of `grid`; (n, n_rings, n_angles / 2)."""
        if self._ctf is None:
            return None
        shape = (grid.n_rings, grid.n_angles // 2)
        radius = np.broadcast_to(grid.radius[:, None], shape).ravel()
        azimuth = np.broadcast_to(grid.azimuth, shape).ravel()
        return self._ctf(rows, radius, azimuth).reshape(len(rows), *shape)

    def _compute(self, rows: Rows, grid: PolarGrid, n_orders: int) -> ImageFeatures:
        n_even = min(self.n_even, (n_orders + 1) // 2)
        return image_features(
            self.masked_images(rows), self.ctf_on(rows, grid), grid, n_orders, n_even, self.poses(rows)
        )

    def _grid(self, k_max: float) -> tuple[PolarGrid, int]:
        radius_px = min(self.mask_radius_px + self.mask_edge_px, self.box / 2)
        n_orders = n_angular_orders(self.box, k_max, self.reference_radius_px)
        grid = polar_grid(self.box, k_max, radius_px, n_orders)
        return grid, min(n_orders, grid.n_angles // 2)

    def _count_even_orders(self) -> int:
        """Even orders that matter in any squared CTF on the outermost ring, where astigmatism is largest."""
        if self._ctf is None:
            return 1
        ring, largest = self._full_grid, (self._full_orders + 1) // 2
        radius = np.full(ring.n_angles // 2, float(ring.n_rings))
        strength = np.zeros(largest)
        for start in range(0, self.n_images, 1024):
            rows = np.arange(start, min(start + 1024, self.n_images))
            orders = even_orders(self._ctf(rows, radius, ring.azimuth) ** 2, largest)  # (n, largest)
            strength = np.maximum(strength, np.abs(orders).max(axis=0))
        return int(np.flatnonzero(strength > EVEN_ORDER_TOLERANCE * strength.max())[-1]) + 1
