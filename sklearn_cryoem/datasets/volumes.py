"""A density on a cubic grid, and reading one from an MRC file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.particles.mrc_files import read_whole_mrc

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

    array: NDArray[np.float32]
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
        raise FileNotFoundError(f"There is no volume {path}. Give the path of an .mrc map.")
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


def diameter_angstrom(volume: Volume) -> float:
    """Diameter of the sphere about the centre voxel that holds 98 % of the density's power."""
    axis = (np.arange(volume.box) - volume.box // 2).astype(np.float64) ** 2
    radius = np.sqrt(axis[:, None, None] + axis[:, None] + axis).ravel()  # voxels
    order = np.argsort(radius, kind="stable")
    power = np.cumsum(volume.array.ravel()[order].astype(np.float64) ** 2)
    return float(2.0 * volume.pixel_size * radius[order][np.searchsorted(power, DIAMETER_POWER * power[-1])])
