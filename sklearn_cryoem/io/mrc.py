"""MRC files: volumes and stacks of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from sklearn_cryoem._core.files import atomic_path
from sklearn_cryoem._core.notices import notify
from sklearn_cryoem._core.validation import ParticleDataError, check_number
from sklearn_cryoem.io.image_files import in_unicode
from sklearn_cryoem.io.records import RawParticles, RowProblems
from sklearn_cryoem.particles.frames import UNKNOWN_PIXEL_SIZE
from sklearn_cryoem.particles.mrc_files import inspect_mrc, read_whole_mrc, write_mrc_blocks

_SAME_LENGTH = 1e-3  # relative
_MAX_LACKING = 100_000  # images that are listed of a truncated file: a damaged header may promise 10^9


def existing_file(path: str | Path) -> Path:
    """Return the path of a file, or raise FileNotFoundError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. Check the name; the working directory is {Path.cwd()}."
        )
    return path


def are_unlike(one: float | None, other: float | None) -> bool:
    """Whether two lengths of a pixel are known and differ by more than rounding."""
    return one is not None and other is not None and abs(one - other) > _SAME_LENGTH * one


def oblong_pixels(path: str | Path, along_x: float, along_y: float) -> str:
    """What to say of pixels that are not square by the header of a file."""
    return (
        f"{path}: the header says {along_x:.6g} A a pixel along x and {along_y:.6g} A along y, expected one "
        "length. That along x is taken: pass pixel_size=, or correct the header."
    )


def read_mrc(path: str | Path) -> tuple[np.ndarray, float | None]:
    """Read a whole MRC file: a volume, a stack or an image.

    Parameters
    ----------
    path : str or Path
        Any mode of real numbers, either byte order, any order of axes, compressed or not.

    Returns
    -------
    array : ndarray of shape (nz, ny, nx) or (ny, nx), float32
        The data.
    pixel_size : float or None
        Angstrom per voxel along x, None where the header does not say.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ParticleDataError
        If it is not a sound MRC file, or holds complex numbers.
    """
    path = existing_file(path)
    array, voxel = read_whole_mrc(path)
    along_x, along_y = (float(size) if np.isfinite(size) else None for size in voxel[:2])
    if are_unlike(along_x, along_y):
        notify("pixels-not-square", oblong_pixels(path, along_x, along_y), stacklevel=2)
    return array, along_x


def write_mrc(
    path: str | Path, array: np.ndarray, pixel_size: float | None = None, *, overwrite: bool = False
) -> None:
    """Write an MRC file (mode 2, float32), whole or not at all.

    Parameters
    ----------
    path : str or Path
        With the suffix ``.mrcs`` a stack of images is written, else a volume (or one image).
    array : ndarray of shape (ny, nx) or (n, ny, nx)
        Real numbers.
    pixel_size : float, optional
        Angstrom per pixel, for the header.
    overwrite : bool, default=False
        Whether to replace a file that is there.

    Raises
    ------
    FileExistsError
        If the file exists and `overwrite` is False.
    ValueError
        If the array has another shape, or is complex.
    """
    array = np.asarray(array)
    if array.ndim not in (2, 3) or array.size == 0 or array.dtype.kind not in "fiub":
        raise ValueError(
            f"write_mrc: array has shape {array.shape} and dtype {array.dtype}, expected real numbers of "
            "shape (ny, nx) or (n, ny, nx). Give one volume, image or stack."
        )
    check_number("pixel_size", pixel_size, owner="write_mrc", minimum=0, inclusive=False, allow_none=True)
    path = Path(path)
    with atomic_path(path, overwrite=overwrite) as temporary:
        is_stack = path.suffix.lower() == ".mrcs" and array.ndim == 3
        write_mrc_blocks(temporary, [array], array.shape, pixel_size=pixel_size, is_stack=is_stack)


def read_image_stack(path: Path, *, permissive: bool) -> tuple[RawParticles, RowProblems]:
    """Metadata of a bare stack of images: names, and the pixel size of the header; no CTF.

    Raises ParticleDataError if the file is a volume, or not MRC.
    """
    file = inspect_mrc(path)
    if path.suffix.lower() == ".mrc" and file.n_images == file.box:
        raise ParticleDataError(
            f"{path}: a cube of {file.box} voxels, so a volume. Read it with load_volume; if it is a stack "
            "of particles indeed, rename it to .mrcs."
        )
    rows = np.arange(min(file.n_images, file.n_whole_images + _MAX_LACKING))
    name = in_unicode(str(path.resolve()))
    is_unknown = file.pixel_size in (None, UNKNOWN_PIXEL_SIZE)
    raw = RawParticles(
        path=path,
        metadata=pd.DataFrame({"rlnImageName": [f"{row + 1:06d}@{name}" for row in rows]}),
        file_names=[name],
        file_code=np.zeros(len(rows), dtype=np.int64),
        frame=rows,
        optics_group=np.ones(len(rows), dtype=np.int64),
        noise_group=np.zeros(len(rows), dtype=np.int64),
        box=np.full(len(rows), float(file.box)),
        pixel_size=None if is_unknown else np.full(len(rows), file.pixel_size),
    )
    return raw, RowProblems(path, len(rows), permissive=permissive)
