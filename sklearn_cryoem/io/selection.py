"""Selections of classes as JSON files, which report, command line and notebook hand to each other."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem._core.files import atomic_path

SELECTION_VERSION = 1


@dataclass(frozen=True)
class Selection:
    """Classes that somebody chose.

    Attributes
    ----------
    classes : tuple of int
        Class numbers from 1, as in ``rlnClassNumber``, each once, in rising order.
    source : dict, str or None
        What they number; of a results folder ``folder``, ``n_classes`` and ``written_at``.
    """

    classes: tuple[int, ...]
    source: Any = None

    @property
    def labels(self) -> list[int]:
        """The same classes counted from 0, as `labels_` and `select_classes` count."""
        return [number - 1 for number in self.classes]


def write_selection(
    path: str | Path, classes: Iterable[int], *, source: Any = None, overwrite: bool = False
) -> None:
    """Write a selection of classes as JSON, whole or not at all.

    Parameters
    ----------
    path : str or Path
        The file.
    classes : iterable of int
        Class numbers from 1, in any order.
    source : dict, str or None
        What they number, see `Selection`.
    overwrite : bool, default=False
        Whether to replace a file that is there.

    Raises
    ------
    ValueError
        If a number is no whole number from 1.
    FileExistsError
        If the file exists and `overwrite` is False.
    """
    numbers = list(classes)
    if not all(_is_class_number(number) for number in numbers):
        raise ValueError(
            f"classes is {numbers!r}, expected class numbers from 1, as in files and pictures. "
            "Add 1 to labels, which count from 0."
        )
    content = {
        "version": SELECTION_VERSION,
        "classes": sorted({int(number) for number in numbers}),
        "source": source,
    }
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")


def read_selection(path: str | Path) -> Selection:
    """Read a selection of classes.

    Parameters
    ----------
    path : str or Path
        A JSON file from `write_selection` or from a report.

    Returns
    -------
    Selection

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ParticleDataError
        If it is no selection, or one of a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. Check the name; the working directory is {Path.cwd()}."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # broken JSON, and broken UTF-8 too
        raise ParticleDataError(
            f"{path}: cannot be read as JSON ({error}). Export the selection again."
        ) from error
    classes = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(classes, list) or not all(_is_class_number(number) for number in classes):
        raise ParticleDataError(
            f'{path}: no selection, which is {{"version": {SELECTION_VERSION}, "classes": [1, 4, 7]}} with '
            "class numbers from 1. Export it from a report, or write it by hand."
        )
    version = content.get("version", SELECTION_VERSION)
    if not isinstance(version, int) or version > SELECTION_VERSION:
        raise ParticleDataError(
            f"{path}: a selection of version {version!r}, this library knows up to {SELECTION_VERSION}. "
            "Update sklearn-cryoem."
        )
    return Selection(tuple(sorted(set(classes))), content.get("source"))


def _is_class_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return int(value) == value and value >= 1
    except (TypeError, ValueError):
        return False
