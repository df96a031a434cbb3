"""Writing particles: every column that came in, the rows that are left, what was found; and MRC files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sklearn_cryoem._core.files import atomic_path, check_may_write, check_room, try_to_write
from sklearn_cryoem._core.parallel import row_blocks
from sklearn_cryoem._core.progress import progress
from sklearn_cryoem._core.validation import ParticleDataError, check_length, check_number, notify
from sklearn_cryoem.io.cryosparc_file import save_records
from sklearn_cryoem.io.image_files import name_in_project, names_on_disk
from sklearn_cryoem.io.star_file import star_parts
from sklearn_cryoem.io.write_cryosparc import cryosparc_records
from sklearn_cryoem.io.write_star import relion_tables
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.classes import OUTLIER, OUTLIER_COLUMNS, check_labels
from sklearn_cryoem.particles.mrc_files import write_mrc_blocks

_BLOCK_BYTES = 32 * 2**20


def write_particles(
    stack: ParticleStack,
    path: str | Path,
    *,
    labels: Any = None,
    posterior: Any = None,
    latent_positions: Any = None,
    columns: Mapping[str, Any] | None = None,
    write_images: bool | None = None,
    star_version: str | None = None,
    project: str | Path | None = None,
    overwrite: bool = False,
    verbose: int = 0,
) -> None:
    """Write particles as a STAR file, a cryoSPARC table or a bare stack of images, whole or not at all.

    Parameters
    ----------
    stack : ParticleStack
        The particles. Their poses, if any, are written as ``rlnAnglePsi`` and ``rlnOriginXAngst``, with
        ``rlnIsFlip`` where images are mirrored; a .cs file has no field for that and is refused.
    path : str or Path
        ``.star``, ``.cs`` (particles from elsewhere get new uids) or ``.mrcs`` (images alone).
    labels : array_like of shape (n_images,), int, optional
        Class of each particle from 0, written as ``rlnClassNumber`` from 1; -1 becomes 0, no class.
    posterior : array_like of shape (n_images,), optional
        Posterior of that class, written as ``rlnMaxValueProbDistribution``.
    latent_positions : array_like of shape (n_images, n_components), optional
        Places in a latent space, written as ``smlLatent1``, ``smlLatent2``, ..
    columns : mapping of str to array_like of shape (n_images,), optional
        More columns. RELION warns about labels that it does not know, and
        keeps them.
    write_images : bool, optional
        Whether to write the images too, as they are read (preprocessed), to a .mrcs file of the same name
        beside `path`. By default only where they are in no MRC file yet; preprocessing is not written then.
    star_version : {"3.0", "3.1"}, optional
        Style of a STAR file: one table, as RELION 1.x to 3.0 write, or optics groups and particles, as 3.1 to
        5 do. By default the one that came in, 3.1 for particles from elsewhere.
    project : str or Path, optional
        Folder from which newly written images are named, RELION's project, in which its programs are started:
        absolute if they are not under it. By default they are named from the folder of `path`.
    overwrite : bool, default=False
        Whether to replace files that are there.
    verbose : int, default=0
        Whether to show progress while images are written.

    Raises
    ------
    FileExistsError
        If a file exists and `overwrite` is False.
    FileNotFoundError
        If the folder does not exist.
    OSError
        If the disk has no room for the images; known before the first is written.
    ValueError
        If labels, posterior, latent positions or columns do not have one value per particle.
    ParticleDataError
        If the format cannot hold the particles.

    Warns
    -----
    ParticleDataWarning
        If columns have no place in the format and are left out; names them.

    Notes
    -----
    Outliers (`ParticleStack.screen`) are marked by 1 in a column ``smlOutlier``, which
    `select_classes` leaves out. Particles that are dark where they lie stay marked as such: ``blob/sign``,
    ``cryosparcSign`` in a STAR file. Where no micrographs are known, a new STAR file has groups of noise,
    ``rlnGroupName``, instead.

    Columns that came in go out in their order with the same numbers, row-filtered; the STAR file has the
    style it came in unless told otherwise. Names of images are kept as they came in: RELION takes them
    relative to the project's folder, `read_particles` relative to the
    file's folder or one above it; `rename_images` is for tables that are written where neither finds them.
    """
    path = Path(path)
    kind = path.suffix.lower()
    check_target(path, overwrite=overwrite)
    checked_labels = None if labels is None else check_labels(labels, len(stack))
    named = dict(columns or {}) | _columns_of_classification(posterior, latent_positions, kind)
    extra = _checked_columns(named, len(stack))
    marks = stack.outlier
    has_marks = marks is not None and (marks.any() or stack.metadata.columns.isin(OUTLIER_COLUMNS).any())
    if has_marks and kind != ".mrcs":  # a stack alone holds no marks
        extra[OUTLIER] = marks.astype(np.int64)
    if kind == ".mrcs":
        if checked_labels is not None or extra:
            raise ParticleDataError(f"{path}: a .mrcs file holds no labels or columns. Write a .star file.")
        _write_images(stack, path, overwrite=overwrite, verbose=verbose)
    elif kind == ".cs":
        if write_images:
            raise ParticleDataError(f"{path}: a .cs file keeps its images. Write a .star file instead.")
        names = None if "uid" in stack.metadata else names_on_disk(stack, path)
        records, lost = cryosparc_records(stack, checked_labels, extra, names)
        _warn_of_loss(path, lost)
        with atomic_path(path, overwrite=overwrite) as temporary, open(temporary, "wb") as stream:
            save_records(stream, records)
    else:
        names = None if write_images else names_on_disk(stack, path)
        if names is None and write_images is False:
            raise ParticleDataError(
                f"{path}: the images are in no MRC file that it could name. Leave write_images=None: they "
                "are written beside it."
            )
        new_images = names is None
        image_path = path.with_suffix(".mrcs")
        if names is None:
            _check_images(stack, image_path, overwrite=overwrite)
            file = image_path.name if project is None else name_in_project(image_path, project)
            names = [f"{number:06d}@{file}" for number in range(1, len(stack) + 1)]
        blocks, lost = relion_tables(stack, names, new_images=new_images, version=star_version)
        particles = list(blocks.values())[-1]
        if checked_labels is not None:
            particles["rlnClassNumber"] = checked_labels + 1
        for name, values in extra.items():
            particles[name] = values
        _warn_of_loss(path, lost)
        with atomic_path(path, overwrite=overwrite) as temporary:
            with open(temporary, "w", encoding="utf-8") as stream:
                stream.writelines(star_parts(blocks))
            if new_images:  # before the STAR file takes its place: it never names images that are not there
                _write_images(stack, image_path, overwrite=overwrite, verbose=verbose)


def check_target(path: str | Path, *, overwrite: bool) -> None:
    """Raise before any work what `write_particles` would raise of a path after it.

    Parameters
    ----------
    path : str or Path
        The file to write.
    overwrite : bool
        Whether an existing file may be replaced.
    """
    if Path(path).suffix.lower() not in (".star", ".cs", ".mrcs"):
        raise ParticleDataError(
            f"{path}: particles are written to .star, .cs or .mrcs files. Change the suffix."
        )
    try_to_write(path, overwrite=overwrite)


def _columns_of_classification(posterior: Any, latent_positions: Any, kind: str) -> dict[str, np.ndarray]:
    """Columns of posterior and latent positions by the names of the format."""
    named = {}
    if posterior is not None:
        values = np.round(np.asarray(posterior, dtype=np.float64), 6)
        if kind == ".cs":
            named["alignments2D/class_posterior"] = values.astype(np.float32)
        else:
            named["rlnMaxValueProbDistribution"] = values
    if latent_positions is not None:
        places = np.asarray(latent_positions, dtype=np.float64)
        if places.ndim != 2:
            raise ValueError(
                f"latent_positions has shape {places.shape}, expected (n_images, n_components). "
                "Give what transform returns."
            )
        named |= {f"smlLatent{i + 1}": np.round(places[:, i], 6) for i in range(places.shape[1])}
    return named


def _checked_columns(columns: Mapping[str, Any], n_images: int) -> dict[str, np.ndarray]:
    checked = {}
    for given, values in columns.items():
        name = str(given).removeprefix("_")
        if not name or any(letter.isspace() for letter in name):
            raise ValueError(f"A column is called {given!r}; names have no spaces. Use underscores.")
        checked[name] = check_length(f"The column {name!r}", values, n_images, "particle of the stack")
    return checked


def _check_images(stack: ParticleStack, path: Path, *, overwrite: bool) -> None:
    """Raise if the images cannot be written."""
    if len(stack) == 0:
        raise ParticleDataError(f"{path}: there is no image to write. Give a stack with particles.")
    check_may_write(path, overwrite=overwrite)
    check_room(path, 4 * len(stack) * stack.box**2)


def _write_images(stack: ParticleStack, path: Path, *, overwrite: bool, verbose: int) -> None:
    """Write the images as they are read, block by block, if there is room for them."""
    _check_images(stack, path, overwrite=overwrite)

    def blocks() -> Iterator[np.ndarray]:
        for rows in row_blocks(len(stack), max(1, _BLOCK_BYTES // (4 * stack.box**2))):
            yield stack.read(rows)
            bar.update(rows.stop - rows.start)

    with (
        atomic_path(path, overwrite=overwrite) as temporary,
        progress(len(stack), path.name, verbose=verbose) as bar,
    ):
        write_mrc_blocks(temporary, blocks(), stack.shape, pixel_size=stack.pixel_size, is_stack=True)


def _warn_of_loss(path: Path, lost: list[str]) -> None:
    """Name the columns that are left out, so that nobody misses them later without having been told."""
    if lost:
        notify(
            "columns-lost",
            f"{path}: columns without a place in this format are not written: {', '.join(lost)}. Keep the "
            "input file.",
        )


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
