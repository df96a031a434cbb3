"""What the images of a stack are called where they lie."""

from __future__ import annotations

import os
from pathlib import Path

from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.file_source import FileSource
from sklearn_cryoem.particles.mrc_files import FrameFile, inspect_mrc
from sklearn_cryoem.particles.preprocess import TransformedSource
from sklearn_cryoem.particles.sources import ImageSource


def raw_source(stack: ParticleStack) -> ImageSource:
    """Where the images lie, before lazy preprocessing."""
    source = stack.images
    while isinstance(source, TransformedSource):
        source = source.source
    return source


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
        Names as they came in; for images in MRC files that came without names, relative to the folder of
        `path` if they are under it, else absolute.
    """
    metadata = stack.metadata
    if "rlnImageName" in metadata.columns:
        return metadata["rlnImageName"].tolist()
    if "blob/path" in metadata.columns and "blob/idx" in metadata.columns:
        pairs = zip(metadata["blob/idx"], metadata["blob/path"], strict=True)
        return [f"{int(index) + 1:06d}@{str(name).removeprefix('>')}" for index, name in pairs]
    source = raw_source(stack)
    if not isinstance(source, FileSource) or not all(_is_whole_mrc(file) for file in source.files):
        return None
    folder = path.resolve().parent
    files = [_relative(Path(file.path), folder) for file in source.files]
    return [
        f"{frame + 1:06d}@{files[index]}"
        for index, frame in zip(source.file_index, source.frame, strict=True)
    ]


def _is_whole_mrc(file: FrameFile) -> bool:
    """Whether the images are counted from the start of an MRC file, as they are not in a slice of a map."""
    if not file.path.endswith((".mrcs", ".mrc")) or not os.path.isfile(file.path):
        return False
    return inspect_mrc(file.path).offset == file.offset


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
