"""What the images of a stack are called where they lie."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.io._locate import split_image_name
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.file_source import FileSource
from sklearn_cryoem.particles.mrc_files import FrameFile, inspect_mrc
from sklearn_cryoem.particles.preprocess import InvertContrast, TransformedSource
from sklearn_cryoem.particles.sources import ConcatenatedSource, ImageSource


def raw_source(stack: ParticleStack) -> ImageSource:
    """Where the images lie, before lazy preprocessing."""
    source = stack.images
    while isinstance(source, TransformedSource):
        source = source.source
    return source


SIGN = "cryosparcSign"  # a column: -1 for particles that are dark where they lie


def sign_of_images(stack: ParticleStack, *, as_read: bool) -> np.ndarray:
    """Which particles are dark, -1, and which are white, 1; shape (n_images,).

    Parameters
    ----------
    stack : ParticleStack
        The particles. What their table says counts; where it says nothing, particles whose contrast is
        inverted on reading are dark where they lie.
    as_read : bool
        Whether of the images as they are read, else of those in their files.
    """
    inverted = _inverted(stack.images)
    table = stack.metadata
    stated = next((table[name] for name in ("blob/sign", SIGN) if name in table.columns), None)
    if stated is None:
        on_disk = np.where(inverted, -1, 1)
    else:
        on_disk = np.where(stated.to_numpy(dtype=np.float64) < 0, -1, 1)
    return np.where(inverted, -on_disk, on_disk) if as_read else on_disk


def _inverted(source: ImageSource) -> np.ndarray:
    """Whether the contrast of each image is inverted on its way; (n_images,) bool."""
    if isinstance(source, TransformedSource):
        return _inverted(source.source) ^ isinstance(source.step, InvertContrast)
    inverted = np.zeros(len(source), dtype=bool)
    if isinstance(source, ConcatenatedSource):
        for part, rows, own_rows in source.parts:
            inverted[rows] = _inverted(part)[own_rows]
    return inverted


def image_files(stack: ParticleStack) -> list[str]:
    """Paths of the files that hold the images of a stack, each once; none for images in memory.

    Parameters
    ----------
    stack : ParticleStack
        The particles.

    Returns
    -------
    list of str
        Absolute, sorted.
    """
    sources, paths = [stack.images], set()
    while sources:
        source = sources.pop()
        if isinstance(source, TransformedSource):
            sources.append(source.source)
        elif isinstance(source, ConcatenatedSource):
            sources += [part for part, _, _ in source.parts]
        elif isinstance(source, FileSource):
            paths |= {source.files[index].path for index in set(source.file_index.tolist())}
    return sorted(paths)


def names_on_disk(stack: ParticleStack, path: Path) -> list[str] | None:
    """Name every image as RELION does, ``000001@stack.mrcs``; None if some are in no MRC file.

    Parameters
    ----------
    stack : ParticleStack
        The particles.
    path : Path
        The STAR file that will hold the names.

    Returns
    -------
    list of str or None
        Names as they came in, but absolute where stacks of several folders were joined in which one name
        means several files; for images in MRC files that came without names, relative to the folder of `path`
        if they are under it, else absolute.
    """
    metadata = stack.metadata
    if raw_source(stack).is_in_memory:  # whatever a table says that came with them: pixels may have changed
        return None
    if "rlnImageName" in metadata.columns:
        names = metadata["rlnImageName"]
        if names.isna().any():  # stacks were joined, and some of them came from no file
            return None
        return _told_apart(names.tolist(), raw_source(stack))
    if "blob/path" in metadata.columns and "blob/idx" in metadata.columns:
        pairs = zip(metadata["blob/idx"], metadata["blob/path"], strict=True)
        return [f"{int(index) + 1:06d}@{_as_stack(str(name).removeprefix('>'))}" for index, name in pairs]
    source = raw_source(stack)
    if not isinstance(source, FileSource) or not all(_is_whole_mrc(file) for file in source.files):
        return None
    folder = path.resolve().parent
    files = [_as_stack(_relative(Path(file.path), folder)) for file in source.files]
    return [
        f"{frame + 1:06d}@{files[index]}"
        for index, frame in zip(source.file_index, source.frame, strict=True)
    ]


def _told_apart(names: list[str], source: ImageSource) -> list[str]:
    """Names as they came in, or absolute if one file name means several files of a joined stack."""
    if not isinstance(source, ConcatenatedSource):
        return names
    paths = [_path_of(source, row) for row in range(len(source))]
    if None in paths:
        return names
    meant: dict[str, str | None] = {}
    clash = any(
        meant.setdefault(split_image_name(name)[1], path) != path
        for name, path in zip(names, paths, strict=True)
    )
    if not clash:
        return names
    return [
        f"{split_image_name(name)[0] or '000001'}@{path}" for name, path in zip(names, paths, strict=True)
    ]


def _path_of(source: ImageSource, row: int) -> str | None:
    """File that holds the image of one row; None if it is in no file."""
    while not isinstance(source, FileSource):
        if isinstance(source, ConcatenatedSource):
            source, row = source.part_of(row)
        elif isinstance(source, TransformedSource):
            source = source.source
        else:
            return None
    return source.files[source.file_index[row]].path


def _is_whole_mrc(file: FrameFile) -> bool:
    """Whether the images are counted from the start of an MRC file, as they are not in a slice of a map."""
    if not file.path.endswith((".mrcs", ".mrc")) or not os.path.isfile(file.path):
        return False
    return inspect_mrc(file.path).offset == file.offset


def _as_stack(file: str) -> str:
    """Name of a stack for RELION, which takes a .mrc file for a map unless its format is stated."""
    return f"{file}:mrcs" if file.lower().endswith(".mrc") else file


def _relative(path: Path, folder: Path) -> str:
    return in_unicode(str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path))


def in_unicode(name: str) -> str:
    """`name`, unless it has bytes that are no letters here: no table of particles can hold it then."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ParticleDataError(
            f"{name!a} has bytes that are no letters in the encoding of names of files here, and no table "
            "can name it. Rename the file or its folder, or set the environment variable PYTHONUTF8=1."
        ) from error
    return name
