"""Reading particles: the one way in; and whole MRC files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pandas as pd

from sklearn_cryoem._core.validation import ParticleDataError, check_number, notify
from sklearn_cryoem.io.assemble import assemble
from sklearn_cryoem.io.checks import RANGES, check_values
from sklearn_cryoem.io.cryosparc import read_cryosparc
from sklearn_cryoem.io.image_files import are_unlike, existing_file, in_unicode, oblong_pixels
from sklearn_cryoem.io.records import RawParticles, RowProblems
from sklearn_cryoem.io.star import read_star
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.frames import UNKNOWN_PIXEL_SIZE
from sklearn_cryoem.particles.mrc_files import inspect_mrc, read_whole_mrc

logger = logging.getLogger(__name__)

_STACKS = (".mrcs", ".mrc")
_MAX_LACKING = 100_000  # images that are listed of a truncated file: a damaged header may promise 10^9


@overload
def read_particles(
    path: str | Path, *, permissive: Literal[False] = ..., **options: Any
) -> ParticleStack: ...
@overload
def read_particles(
    path: str | Path, *, permissive: Literal[True], **options: Any
) -> tuple[ParticleStack, pd.DataFrame]: ...
def read_particles(
    path: str | Path,
    *,
    images_dir: str | Path | None = None,
    pixel_size: float | None = None,
    ctf: bool = True,
    optics_groups: int | Sequence[int] | None = None,
    rescale: bool = False,
    invert: bool = False,
    normalise: bool | float = False,
    clip_hot_pixels: bool = False,
    permissive: bool = False,
    metadata_only: bool = False,
    passthrough: str | Path | Sequence[str | Path] | None = None,
    verbose: int = 0,
) -> ParticleStack | tuple[ParticleStack, pd.DataFrame]:
    """Read particles: metadata now, images when they are needed.

    Parameters
    ----------
    path : str or Path
        A RELION STAR file (versions 1.x to 5), a cryoSPARC .cs or .csg file, or an MRC stack (.mrcs, .mrc).
    images_dir : str or Path, optional
        Folder of the images, if they are not where the metadata say. Names are tried whole, then without
        their leading folders. By default names are relative to the folder of `path`, one above it, or the
        working directory.
    pixel_size : float, optional
        Angstrom per pixel, instead of what the files say.
    ctf : bool, default=True
        Whether CTF parameters are needed. With False the CTF is taken as 1.
    optics_groups : int or sequence of int, optional
        Keep these optics groups only.
    rescale : bool, default=False
        Bring particles of several pixel sizes or boxes to one frame: the largest pixels among them, and the
        largest box that lies within all of theirs. Without it such a file is refused.
    invert : bool, default=False
        Invert the contrast when images are read: for dark particles, as the microscope gives them. RELION
        and this library want white particles.
    normalise : bool or float, default=False
        Give images a background of mean 0 and standard deviation 1 when they are read. A number is the
        diameter of the particle in Angstrom; with True it is 0.75 of the box.
    clip_hot_pixels : bool, default=False
        Replace single pixels that are far off their neighbours when images are read.
    permissive : bool, default=False
        Drop particles that cannot be used and return a report of which and why, instead of raising. All
        images are read once for this; without it, one that is constant or not finite raises when it is first
        needed, and `ParticleStack.check` lists them all.
    metadata_only : bool, default=False
        Do not look for images; reading them raises.
    passthrough : str or Path, or a sequence of them, optional
        The passthrough files of a .cs file that lacks images, CTF or alignment: their fields are joined by
        ``uid``. Of fields that several have the first counts.
    verbose : int, default=0
        Whether to show progress while images are checked.

    Returns
    -------
    stack : ParticleStack
        The particles, in the order of the file.
    report : DataFrame
        Only if `permissive`: columns ``particle`` (from 1), ``image``, ``problem``; one row for each particle
        left out.

    Raises
    ------
    FileNotFoundError
        If `path` does not exist.
    ParticleDataError
        If the file does not hold particles, or particles cannot be used. The message names file, row and
        remedy.

    Warns
    -----
    ParticleDataWarning
        If the CTF fits look poor, numbers are unusual, images are named more than once, aberrations are not
        used, the pixel size had to be taken from image headers, or a stack is truncated beyond the particles
        used.

    Notes
    -----
    In-plane poses are taken over if the file has both angles and shifts.

    Examples
    --------
    >>> from sklearn_cryoem import read_particles
    >>> stack = read_particles("Extract/job009/particles.star")  # doctest: +SKIP
    >>> stack, report = read_particles("particles.star", permissive=True)  # doctest: +SKIP
    """
    path = existing_file(path)
    low, high = RANGES["pixel_size"].possible
    check_number("pixel_size", pixel_size, owner="read_particles", minimum=low, maximum=high, allow_none=True)
    raw, problems = _read_metadata(path, permissive=permissive, ctf=ctf, passthrough=passthrough)
    left_out = _choose_optics_groups(raw, problems, optics_groups)
    check_values(raw, problems)
    stack = assemble(
        raw,
        problems,
        images_dir=None if path.suffix.lower() in _STACKS else images_dir,  # a stack is where it is
        pixel_size=pixel_size,
        rescale=rescale,
        check_images=permissive,
        metadata_only=metadata_only,
        verbose=verbose,
    )
    if clip_hot_pixels:
        stack = stack.clip_hot_pixels()
    if invert:
        stack = stack.invert_contrast()
    if normalise is not False:
        stack = stack.normalise(None if normalise is True else normalise)
    logger.info("Read %s: %r", path, stack)
    if not permissive:
        return stack
    problems.keep |= left_out
    return stack, problems.report(raw.image_name)


def _read_metadata(
    path: Path, *, permissive: bool, ctf: bool, passthrough: str | Path | Sequence[str | Path] | None
) -> tuple[RawParticles, RowProblems]:
    kind = path.suffix.lower()
    if passthrough and kind not in (".cs", ".csg"):
        raise ParticleDataError(
            f"{path}: passthrough= adds fields to the tables of cryoSPARC, and this is none. Leave it out."
        )
    if kind == ".star":
        return read_star(path, permissive=permissive, ctf=ctf)
    if kind in (".cs", ".csg"):
        return read_cryosparc(path, permissive=permissive, ctf=ctf, passthrough=passthrough)
    if kind in _STACKS:
        return read_image_stack(path, permissive=permissive)
    raise ParticleDataError(
        f"{path}: particles are read from .star, .cs, .csg, .mrcs and .mrc files, not from "
        f"{kind or 'a file without suffix'}. Rename the file if it is one of these."
    )


def _choose_optics_groups(
    raw: RawParticles, problems: RowProblems, optics_groups: int | Sequence[int] | None
) -> np.ndarray:
    """Leave out other optics groups; return the mask of the rows left out, which are no problem."""
    if optics_groups is None:
        return np.zeros(len(problems.keep), dtype=bool)
    wanted = np.atleast_1d(np.asarray(optics_groups, dtype=np.int64))
    unknown = np.setdiff1d(wanted, raw.optics_group)
    if unknown.size:
        raise ParticleDataError(
            f"{raw.path}: no particle is in optics group(s) {unknown.tolist()}. "
            f"Choose from {np.unique(raw.optics_group).tolist()}."
        )
    left_out = ~np.isin(raw.optics_group, wanted)
    problems.keep &= ~left_out
    return left_out


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
        notify("pixels-not-square", oblong_pixels(path, along_x, along_y))
    return array, along_x
