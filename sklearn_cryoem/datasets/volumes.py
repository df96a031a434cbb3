"""Densities on a cubic grid: read from an MRC file, or made in code as sums of Gaussian blobs.

Those made in code need no file, have a known symmetry (or none), and their Fourier transform is known
exactly. They are caricatures with the size and outline of the complexes they are named after, not models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from sklearn_cryoem._core.validation import ParticleDataError, check_number
from sklearn_cryoem.datasets.draws import random_directions
from sklearn_cryoem.particles.mrc_files import read_whole_mrc
from sklearn_cryoem.physics.fourier import Float32, Float64

DIAMETER_POWER = 0.98  # share of the density's power inside the particle's diameter


@dataclass(frozen=True, eq=False)
class Volume:
    """A density sampled on a cube.

    Attributes
    ----------
    array : ndarray of shape (D, D, D), float32
        ``array[z, y, x]``, as in an MRC file; the origin is the voxel D // 2 along every axis.
    pixel_size : float
        Side of a voxel in Angstrom.

    Raises
    ------
    ValueError
        If the array is not a finite cube of at least 4 voxels a side, or the pixel size is not positive.
    """

    array: Float32
    pixel_size: float

    def __post_init__(self) -> None:
        array = np.ascontiguousarray(self.array, dtype=np.float32)
        if array.ndim != 3 or len(set(array.shape)) != 1 or array.shape[0] < 4:
            raise ValueError(
                f"The volume has shape {array.shape}, expected (D, D, D) with D >= 4. "
                "Pad or crop it to a cube."
            )
        if not np.isfinite(array).all():
            raise ValueError("The volume holds NaN or infinity. Replace those voxels by 0.")
        if not (np.isfinite(self.pixel_size) and self.pixel_size > 0):
            raise ValueError(
                f"The pixel size of the volume is {self.pixel_size!r}, expected a positive number of "
                "Angstrom. Give pixel_size=."
            )
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "pixel_size", float(self.pixel_size))

    def __repr__(self) -> str:
        side = self.box * self.pixel_size
        return f"Volume({self.box}^3 voxels of {self.pixel_size:g} A, side {side:g} A)"

    @property
    def box(self) -> int:
        """Side D in voxels."""
        return int(self.array.shape[0])


def load_volume(path: str | Path, *, pixel_size: float | None = None) -> Volume:
    """Read a density map from an MRC file.

    Parameters
    ----------
    path : str or Path
        A cubic map in .mrc, .map or .ccp4 format.
    pixel_size : float, optional
        Side of a voxel in Angstrom; by default what the file's header says.

    Returns
    -------
    volume : Volume

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ParticleDataError
        If the file is not a cubic map, or its header holds no usable pixel size and none was given.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise FileNotFoundError(f"The volume {path} {what}. Give the path of an .mrc map.")
    array, voxel = read_whole_mrc(path)  # (D, D, D), (3,)
    if pixel_size is None:
        if not np.isfinite(voxel).all() or np.ptp(voxel) > 1e-3 * voxel.mean():
            raise ParticleDataError(
                f"{path}: the header gives a voxel of {voxel[0]:g} x {voxel[1]:g} x {voxel[2]:g} A, "
                "expected a positive cube. Give pixel_size= in Angstrom."
            )
        pixel_size = round(float(voxel[0]), 6)  # headers hold float32
    try:
        return Volume(array, pixel_size)
    except ValueError as error:
        raise ParticleDataError(f"{path}: {error}") from error


def centred(volume: Volume) -> Volume:
    """Return the volume with the centre of mass of its positive density at its centre voxel."""
    mass = np.clip(volume.array, 0.0, None).astype(np.float64)
    off = np.array(ndimage.center_of_mass(mass)) - volume.box // 2  # voxels, (z, y, x)
    moved = ndimage.fourier_shift(np.fft.fftn(volume.array.astype(np.float64)), -off)
    return Volume(np.fft.ifftn(moved).real.astype(np.float32), volume.pixel_size)


def squared_radius(box: int) -> Float64:
    """Squared distance of every voxel from the centre voxel, in voxels; (D, D, D)."""
    axis = (np.arange(box) - box // 2).astype(np.float64) ** 2
    return np.asarray(axis[:, None, None] + axis[:, None] + axis)


def diameter_angstrom(volume: Volume) -> float:
    """Diameter of the sphere about the centre voxel that holds 98 % of the density's power."""
    radius = np.sqrt(squared_radius(volume.box)).ravel()  # voxels
    order = np.argsort(radius, kind="stable")
    power = np.cumsum(volume.array.ravel()[order].astype(np.float64) ** 2)
    return float(2.0 * volume.pixel_size * radius[order][np.searchsorted(power, DIAMETER_POWER * power[-1])])


def volume_of_blobs(blobs: Float64, box: int, pixel_size: float) -> Volume:
    """Sum of Gaussian blobs on a grid; O(n_blobs * box^3) in one matrix product.

    Parameters
    ----------
    blobs : array of shape (n_blobs, 5)
        x, y, z, standard deviation (all in Angstrom, from the centre voxel) and height of each blob.
    box : int
        Side of the volume in voxels.
    pixel_size : float
        Side of a voxel in Angstrom.

    Returns
    -------
    volume : Volume
    """
    blobs = np.asarray(blobs, dtype=np.float64)
    check_number("box", box, owner="volume_of_blobs", minimum=4, integer=True)
    check_number("pixel_size", pixel_size, owner="volume_of_blobs", minimum=0.0, inclusive=False)
    axis = (np.arange(box) - box // 2) * pixel_size  # (box,)
    offsets = axis[None, None, :] - blobs[:, :3, None]  # (n_blobs, 3, box)
    profiles = np.exp(-0.5 * (offsets / blobs[:, 3, None, None]) ** 2)
    in_plane = profiles[:, 1, :, None] * profiles[:, 0, None, :]  # (n_blobs, box, box): y, x
    along_z = (blobs[:, 4, None] * profiles[:, 2]).T  # (box, n_blobs)
    array = along_z @ in_plane.reshape(len(blobs), -1)  # (box, box * box)
    return Volume(array.reshape(box, box, box).astype(np.float32), pixel_size)


def make_ribosome_phantom(box: int = 64, pixel_size: float = 5.0) -> Volume:
    """Build an asymmetric particle like a 70S ribosome: two subunits, head, beak, protuberance, two stalks.

    Parameters
    ----------
    box : int
        Side of the volume in voxels.
    pixel_size : float
        Side of a voxel in Angstrom. The particle is about 260 A long.

    Returns
    -------
    volume : Volume
    """
    # x, y, z of the centre and the three half axes, in Angstrom
    large = [
        (-5, 30, -10, 92, 62, 78),  # body of the large subunit
        (5, 35, 78, 26, 26, 28),  # central protuberance
        (-102, 22, 48, 17, 17, 26),  # L1 stalk
        (104, 12, 22, 30, 13, 13),  # L7/L12 stalk
    ]
    small = [
        (-4, -62, -32, 50, 36, 74),  # body of the small subunit
        (12, -66, 66, 46, 34, 32),  # head
        (66, -76, 72, 22, 14, 14),  # beak
        (-56, -50, -5, 24, 22, 28),  # platform
    ]
    rng = np.random.default_rng(70)
    blobs = [_filled_ellipsoid(rng, half, spacing=14.0, sd=8.0) for half in (*large, *small)]
    return volume_of_blobs(_centred(np.concatenate(blobs)), box, pixel_size)


def make_rings(n_fold: int = 11, box: int = 64, pixel_size: float = 6.0) -> Volume:
    """Build a disc of `n_fold` subunits, like the 10-, 11- and 12-fold discs of the inflammasome.

    Neighbours are 64 A apart, so the disc is wider the more subunits it has: 304, 324 and 344 A across
    for 10, 11 and 12. That is how its side views tell the fold. Axis along z; its two faces differ.

    Parameters
    ----------
    n_fold : int
        Number of subunits, at least 3.
    box : int
        Side of the volume in voxels.
    pixel_size : float
        Side of a voxel in Angstrom.

    Returns
    -------
    volume : Volume
    """
    check_number("n_fold", n_fold, owner="make_rings", minimum=3, integer=True)
    # radial and tangential offset from the ring's mid-line, height, standard deviation, density
    subunit = np.array(
        [
            (-52.0, 4.0, -6.0, 9.0, 0.7),  # CARD, towards the hub
            (-26.0, 0.0, 4.0, 13.0, 1.1),  # nucleotide-binding domain
            (-4.0, -8.0, 22.0, 12.0, 1.0),
            (2.0, 10.0, -20.0, 13.0, 1.0),
            (22.0, -10.0, 34.0, 11.0, 0.9),  # the leucine-rich repeat curls up at the rim
            (28.0, 2.0, 10.0, 11.0, 0.9),
            (24.0, 12.0, -14.0, 11.0, 0.9),
        ]
    )
    middle = 0.5 * 64.0 / np.sin(np.pi / n_fold)  # subunits 64 A apart along the ring
    turns = 2.0 * np.pi * np.arange(n_fold)[:, None] / n_fold  # (n_fold, 1)
    radial, tangential = middle + subunit[:, 0], subunit[:, 1]
    x = radial * np.cos(turns) - tangential * np.sin(turns)  # (n_fold, 7)
    y = radial * np.sin(turns) + tangential * np.cos(turns)
    rest = np.broadcast_to(subunit[:, 2:], (n_fold, *subunit[:, 2:].shape))
    blobs = np.concatenate([x[..., None], y[..., None], rest], axis=2).reshape(-1, 5)
    return volume_of_blobs(_centred(blobs), box, pixel_size)


def make_proteasome_phantoms(box: int = 64, pixel_size: float = 6.0) -> tuple[Volume, Volume]:
    """Build the pair that the paper tells apart: a free regulatory particle, and one on its core particle.

    Parameters
    ----------
    box : int
        Side of the volumes in voxels.
    pixel_size : float
        Side of a voxel in Angstrom. The RP is about 210 A long, the RP-CP about 320 A.

    Returns
    -------
    rp, rp_cp : Volume
        Each centred on its own centre of mass, as a particle picker would centre it.
    """
    rp = _regulatory_particle()
    rp_cp = np.concatenate([rp, _core_particle()])
    return volume_of_blobs(_centred(rp), box, pixel_size), volume_of_blobs(_centred(rp_cp), box, pixel_size)


def _core_particle() -> Float64:
    """Blobs of a barrel of four seven-fold rings, axis along z, its top ring at z = 0."""
    blobs = []
    for level, (height, radius) in enumerate([(0.0, 37.0), (-40.0, 40.0), (-80.0, 40.0), (-120.0, 37.0)]):
        for inward, sd, density in [(0.0, 12.0, 1.2), (-14.0, 8.0, 0.6)]:
            blobs.append(_ring(7, radius + inward, height, sd, density, 0.25 * level))
    return np.concatenate(blobs)


def _regulatory_particle() -> Float64:
    """Blobs of a six-fold base above z = 0 and an asymmetric lid that leans over one side."""
    base = []
    for height, radius, sd in [(38.0, 33.0, 13.0), (72.0, 24.0, 10.0)]:
        ring = _ring(6, radius, height, sd, 1.1)
        ring[:, 2] += 4.0 * np.arange(6)  # a spiral staircase
        base.append(ring)
    rng = np.random.default_rng(26)
    lid = [
        (62, 10, 62, 22, 38, 52),  # the horseshoe of PCI subunits
        (30, -22, 128, 40, 26, 24),
        (-18, 14, 140, 34, 30, 26),  # Rpn2
        (-62, -18, 58, 20, 24, 30),  # Rpn1
        (84, 34, 22, 14, 14, 24),  # Rpn5 and Rpn6 reach down to the core
    ]
    return np.concatenate(base + [_filled_ellipsoid(rng, part, spacing=15.0, sd=8.5) for part in lid])


def _ring(n: int, radius: float, z: float, sd: float, height: float, turned: float = 0.0) -> Float64:
    """Blobs at equal angles about the z axis, turned by a part of the angle between two; (n, 5)."""
    angle = 2.0 * np.pi * (np.arange(n) + turned) / n
    same = np.broadcast_to([z, sd, height], (n, 3))
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle), same])


def _filled_ellipsoid(
    rng: np.random.Generator, ellipsoid: tuple[float, ...], *, spacing: float, sd: float
) -> Float64:
    """Fill an ellipsoid with blobs of random height, about `spacing` Angstrom apart; shape (n_blobs, 5)."""
    centre, half = np.array(ellipsoid[:3], dtype=float), np.array(ellipsoid[3:], dtype=float)
    n_blobs = max(6, round(4.0 / 3.0 * np.pi * half.prod() / spacing**3))
    inside = random_directions(n_blobs, rng)
    inside *= rng.random((n_blobs, 1)) ** (1.0 / 3.0)  # uniform in the unit ball
    # heights such that the mean density inside is 1, whatever the spacing and the width
    height = rng.uniform(0.3, 1.7, size=(n_blobs, 1)) * (spacing / (np.sqrt(2.0 * np.pi) * sd)) ** 3
    return np.hstack([centre + half * inside, np.full((n_blobs, 1), sd), height])


def _centred(blobs: Float64) -> Float64:
    """The same blobs with their centre of mass at the origin."""
    mass = blobs[:, 4] * blobs[:, 3] ** 3
    return np.hstack([blobs[:, :3] - np.average(blobs[:, :3], axis=0, weights=mass), blobs[:, 3:]])


# name: (builder, side of the box in Angstrom that holds the particle with room around it)
PHANTOMS: dict[str, tuple[Callable[[int, float], Volume], float]] = {
    "ribosome": (make_ribosome_phantom, 360.0),
    "ring-10": (partial(make_rings, 10), 420.0),
    "ring-11": (partial(make_rings, 11), 420.0),
    "ring-12": (partial(make_rings, 12), 420.0),
    "rp": (lambda box, pixel_size: make_proteasome_phantoms(box, pixel_size)[0], 420.0),
    "rp-cp": (lambda box, pixel_size: make_proteasome_phantoms(box, pixel_size)[1], 420.0),
}
