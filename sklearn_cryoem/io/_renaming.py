"""Images of a table that is written elsewhere, named so that they are found from there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sklearn_cryoem.io._image_names import in_unicode, names_on_disk
from sklearn_cryoem.io._locate import ImageFinder, split_format, split_image_name
from sklearn_cryoem.particles import ParticleStack


def name_in_project(path: str | Path, project: str | Path = ".") -> str:
    """Name of a file from the folder of a project, as RELION has it; absolute where it is not under it."""
    # A link stays a link: its target may be outside of the project.
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(project))
    return in_unicode(path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path))


def rename_images(
    stack: ParticleStack,
    read_from: str | Path,
    write_to: str | Path,
    *,
    images_dir: str | Path | None = None,
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
    files = list(dict.fromkeys(file for _, file in parts))
    renamed = _renamed(files, Path(read_from), Path(write_to), images_dir)
    if not renamed:
        return stack, {}
    new = [("" if number is None else f"{number}@") + renamed.get(file, file) for number, file in parts]
    return stack.with_metadata(**{column: new}), {old.removeprefix(">"): new for old, new in renamed.items()}


def missing_files(stack: ParticleStack, table: str | Path) -> list[str]:
    """Files of images that would not be found by their names from a STAR file of a stack."""
    names = names_on_disk(stack, Path(table))
    if names is None:  # they will be written with it
        return []
    finder = ImageFinder(Path(table))
    return [
        file for file in dict.fromkeys(split_image_name(name)[1] for name in names) if not finder.find(file)
    ]


def _renamed(
    files: Sequence[str], read_from: Path, write_to: Path, images_dir: str | Path | None
) -> dict[str, str]:
    """New name of each file that needs one."""
    before, after = ImageFinder(read_from, images_dir), ImageFinder(write_to)
    renamed = {}
    for file in files:
        found, seen = before.find(file.removeprefix(">")), after.find(file.removeprefix(">"))
        if found is not None and (seen is None or not os.path.samefile(found, seen)):
            renamed[file] = name_in_project(found) + split_format(file)[1]
    return renamed
