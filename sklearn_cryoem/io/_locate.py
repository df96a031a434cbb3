"""Finding the image files that a metadata file names."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path, PurePosixPath

_FORMAT = re.compile(r":mrcs?$")  # by which RELION and Xmipp say how to read a file of another suffix


def split_image_name(name: str) -> tuple[str | None, str]:
    """Number and file of an image name, ``000001@stack.mrcs``; the number is None where there is none.

    Folders may have an @ in their names: what has a / before it is no number.
    """
    head, at, file = name.partition("@")
    return (head, file) if at and "/" not in head else (None, name)


def split_format(file: str) -> tuple[str, str]:
    """Name of a file and the format that may be stated after it: ``("stack.mrc", ":mrcs")``."""
    match = _FORMAT.search(file)
    return (file[: match.start()], match[0]) if match else (file, "")


def plain_name(file: str) -> str:
    """One spelling of a file name: ``./a.mrcs``, ``b/../a.mrcs`` and ``a.mrcs:mrcs`` are ``a.mrcs``."""
    return posixpath.normpath(split_format(file)[0].replace("\\", "/"))


class ImageFinder:
    """Looks for image files where they may be.

    Names in a metadata file are relative to the folder of a project, which may have been moved since. Without
    `images_dir` they are looked for from the metadata file's folder, from each folder above it, and from the
    working directory. With it, only there: the whole name first, then without its leading folders.

    Parameters
    ----------
    metadata_path : Path
        The file that names the images.
    images_dir : str or Path, optional
        Where the images are now.
    """

    def __init__(self, metadata_path: Path, images_dir: str | Path | None = None) -> None:
        given, real = metadata_path.absolute().parent, metadata_path.resolve().parent  # it may be a link
        self._relocated = images_dir is not None
        if images_dir is not None:
            self._bases = [Path(images_dir)]
        else:
            self._bases = list(dict.fromkeys([given, *given.parents, real, *real.parents, Path.cwd()]))
        self._last_hit = (self._bases[0], 0)  # most names are found where the one before was

    def find(self, name: str) -> str | None:
        """Return the path of the file called `name`, which may state its format at the end, or None."""
        name, _ = split_format(name)
        base, n_dropped = self._last_hit
        path = self._candidate(base, name, n_dropped)
        if path is not None and os.path.isfile(path):
            return path
        for base in self._bases:
            for n_dropped in range(len(_parts(name)) if self._relocated else 1):
                path = self._candidate(base, name, n_dropped)
                if path is not None and os.path.isfile(path):
                    self._last_hit = (base, n_dropped)
                    return path
        return None

    def _candidate(self, base: Path, name: str, n_dropped: int) -> str | None:
        parts = _parts(name)
        if self._relocated and parts[0] == "/":
            n_dropped = max(n_dropped, 1)
        return os.path.join(base, *parts[n_dropped:]) if n_dropped < len(parts) else None

    def where(self, name: str) -> str:
        """Say in words where `name` was looked for."""
        if not self._relocated and os.path.isabs(name):
            return f"at {name}"
        bases = ", ".join(str(base) for base in self._bases)
        return (
            f"in {bases} (whole name, then without its leading folders)" if self._relocated else f"in {bases}"
        )


def find_image(name: str, metadata_path: str | Path, *, images_dir: str | Path | None = None) -> Path | None:
    """Where an image file is that a metadata file names.

    Parameters
    ----------
    name : str
        As it stands in the metadata, without the number before the @.
    metadata_path : str or Path
        The file that names it; names are looked for from its folder, from those above it and from the working
        directory.
    images_dir : str or Path, optional
        Where to look instead.

    Returns
    -------
    Path or None
        None if there is no such file.
    """
    found = ImageFinder(Path(metadata_path), images_dir).find(name)
    return None if found is None else Path(found)


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts or (name,)
