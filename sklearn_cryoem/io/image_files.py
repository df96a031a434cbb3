"""The files of images that a table names: how names are written, where the files are, how to rename them."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path, PurePosixPath

import numpy as np

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.file_source import FileSource
from sklearn_cryoem.particles.preprocess import of_each_image, raw_source
from sklearn_cryoem.particles.sources import ConcatenatedSource, ImageSource

_SAME_LENGTH = 1e-3  # relative
SIGN = "cryosparcSign"  # a column: -1 for particles that are dark where they lie
_FORMAT = re.compile(r":mrcs?$")  # by which RELION and Xmipp say how to read a file of another suffix


def existing_file(path: str | Path) -> Path:
    """Return the path of a file; FileNotFoundError or IsADirectoryError where there is none."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected a file. Name a file in it.")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. Check the name; the working directory is {Path.cwd()}."
        )
    return path


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


def in_unicode(name: str) -> str:
    """`name`, or ParticleDataError if it has bytes that are no letters here: no table can hold it then."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ParticleDataError(
            f"{name!a} has bytes that are no letters in the encoding of names of files here, and no table "
            "can name it. Rename the file or its folder, or set the environment variable PYTHONUTF8=1."
        ) from error
    return name


def name_in_project(path: str | Path, project: str | Path = ".") -> str:
    """Name of a file from the folder of a project, as RELION has it; absolute where it is not under it."""
    # A link stays a link: its target may be outside of the project.
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(project))
    return in_unicode(path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path))


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
        parts = PurePosixPath(name.replace("\\", "/")).parts or (name,)
        first = 1 if self._relocated and parts[0] == "/" else 0
        starts = range(first, len(parts)) if self._relocated else [0]
        for place in (self._last_hit, *((base, start) for base in self._bases for start in starts)):
            base, start = place
            path = os.path.join(base, *parts[max(start, first) :])
            if start < len(parts) and os.path.isfile(path):
                self._last_hit = place
                return path
        return None

    def where(self, name: str) -> str:
        """Say in words where `name` was looked for."""
        if not self._relocated and os.path.isabs(name):
            return f"at {name}"
        bases = ", ".join(str(base) for base in self._bases)
        return f"in {bases}" + (" (whole name, then without its leading folders)" if self._relocated else "")


def sign_of_images(stack: ParticleStack, *, as_read: bool) -> np.ndarray:
    """Which particles are dark, -1, and which are white, 1; shape (n_images,).

    What the table says of the images in their files counts; where it says nothing, particles whose contrast
    is inverted on reading are dark there. `as_read` asks for the images as they are read instead.
    """
    inverted = _are_inverted(stack.images)
    stated = [stack.metadata[name] for name in ("blob/sign", SIGN) if name in stack.metadata]
    dark = stated[0].to_numpy(dtype=np.float64) < 0 if stated else inverted
    return np.where(dark ^ inverted if as_read else dark, -1, 1)


def _are_inverted(source: ImageSource) -> np.ndarray:
    """Whether the contrast of each image is inverted on its way; (n_images,) bool."""
    return of_each_image(source, lambda _: False, lambda is_so, step: is_so ^ (step.function is np.negative))


def _file_of_each_image(source: ImageSource) -> np.ndarray:
    """Path of the file that holds each image, None where there is none; (n_images,) object."""

    def paths(origin: ImageSource) -> np.ndarray:
        if not isinstance(origin, FileSource):
            return np.array(None)
        return np.array([file.path for file in origin.files], dtype=object)[origin.file_index]

    return of_each_image(source, paths)


def image_files(stack: ParticleStack) -> list[str]:
    """Absolute paths of the files that hold the images of a stack, sorted; none for images in memory."""
    return sorted({path for path in _file_of_each_image(stack.images) if path is not None})


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
    metadata, source = stack.metadata, raw_source(stack.images)
    if source.is_in_memory:  # whatever a table says that came with them: pixels may have changed
        return None
    if "rlnImageName" in metadata:
        names = metadata["rlnImageName"]
        # where stacks were joined, some of them may have come from no file
        return None if names.isna().any() else _told_apart(names.tolist(), source)
    if "blob/path" in metadata and "blob/idx" in metadata:
        files = [_as_stack(str(name).removeprefix(">")) for name in metadata["blob/path"]]
        return [
            f"{int(index) + 1:06d}@{file}" for index, file in zip(metadata["blob/idx"], files, strict=True)
        ]
    if not isinstance(source, FileSource):
        return None
    folder = path.resolve().parent
    files = [_as_stack(name_in_project(file.path, folder)) for file in source.files]
    return [f"{frame + 1:06d}@{files[i]}" for i, frame in zip(source.file_index, source.frame, strict=True)]


def _told_apart(names: list[str], source: ImageSource) -> list[str]:
    """Names as they came in, or absolute if one file name means several files of a joined stack."""
    if not isinstance(source, ConcatenatedSource):
        return names
    paths = _file_of_each_image(source).tolist()
    pairs = {(split_image_name(name)[1], path) for name, path in zip(names, paths, strict=True)}
    if None in paths or len(pairs) == len({file for file, _ in pairs}):
        return names
    numbers = [split_image_name(name)[0] or "000001" for name in names]
    return [f"{number}@{path}" for number, path in zip(numbers, paths, strict=True)]


def _as_stack(file: str) -> str:
    """Name of a stack for RELION, which takes a .mrc file for a map unless its format is stated."""
    return f"{file}:mrcs" if file.lower().endswith(".mrc") else file


def rename_images(
    stack: ParticleStack, read_from: str | Path, write_to: str | Path, *, images_dir: str | Path | None = None
) -> tuple[ParticleStack, dict[str, str]]:
    """Name images anew that would not be found any more from where a table is written.

    Parameters
    ----------
    stack : ParticleStack
        As it was read; its images need not have been looked for.
    read_from : str or Path
        The .star or .cs file that it was read from.
    write_to : str or Path
        The file that it is meant to be written to.
    images_dir : str or Path, optional
        Where the images are, if not where `read_from` says.

    Returns
    -------
    stack : ParticleStack
        With names from the working directory, RELION's project folder, or absolute ones of files that are not
        under it, for those files that were found before and would not be (or others would be) from
        `write_to`. All other names are kept.
    renamed : dict of str to str
        New name of each file that has one, by the old.

    Notes
    -----
    A look at every file of images, two where the names do not hold any more.
    """
    column = next((name for name in ("rlnImageName", "blob/path") if name in stack.metadata), None)
    if column is None:
        return stack, {}
    names = stack.metadata[column].astype(str).tolist()
    parts = [split_image_name(name) if column == "rlnImageName" else (None, name) for name in names]
    before, after = ImageFinder(Path(read_from), images_dir), ImageFinder(Path(write_to))
    renamed = {}
    for file in dict.fromkeys(file for _, file in parts):
        found, seen = before.find(file.removeprefix(">")), after.find(file.removeprefix(">"))
        if found is not None and (seen is None or not os.path.samefile(found, seen)):
            renamed[file] = name_in_project(found) + split_format(file)[1]
    if not renamed:
        return stack, {}
    new = [("" if number is None else f"{number}@") + renamed.get(file, file) for number, file in parts]
    return stack.with_metadata(**{column: new}), {old.removeprefix(">"): new for old, new in renamed.items()}


def missing_files(stack: ParticleStack, table: str | Path) -> list[str]:
    """Files of images that would not be found by their names from a STAR file of a stack."""
    names = names_on_disk(stack, Path(table)) or []  # without names they will be written with it
    finder = ImageFinder(Path(table))
    files = dict.fromkeys(split_image_name(name)[1] for name in names)
    return [file for file in files if not finder.find(file)]


def are_unlike(one: float | None, other: float | None) -> bool:
    """Whether two lengths of a pixel are known and differ by more than rounding."""
    return one is not None and other is not None and abs(one - other) > _SAME_LENGTH * one


def oblong_pixels(path: str | Path, along_x: float, along_y: float) -> str:
    """What to say of pixels that are not square by the header of a file."""
    return (
        f"{path}: the header says {along_x:.6g} A a pixel along x and {along_y:.6g} A along y, expected one "
        "length. That along x is taken: pass pixel_size=, or correct the header."
    )
