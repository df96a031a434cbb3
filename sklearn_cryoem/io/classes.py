"""Classes in files: averages with the STAR file by which RELION's tools know them, and selections as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sklearn_cryoem._core.files import atomic_path
from sklearn_cryoem._core.validation import ParticleDataError, check_length
from sklearn_cryoem.io.image_files import existing_file, name_in_project
from sklearn_cryoem.io.star_file import star_parts
from sklearn_cryoem.io.write import write_mrc

NO_RESOLUTION = 999.0  # as RELION writes it
SELECTION_VERSION = 1


def class_star_path(path: str | Path) -> Path:
    """Path of the STAR file of class averages in `path`: ``x_model.star``, a name that RELION knows."""
    path = Path(path)
    return path.with_name(f"{path.stem}_model.star")


def write_class_averages(
    path: str | Path,
    class_averages: Any,
    pixel_size: float | None = None,
    *,
    sizes: Any = None,
    resolutions: Any = None,
    columns: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write class averages as a .mrcs stack, and beside it the STAR file that lists them, both or neither.

    Parameters
    ----------
    path : str or Path
        The stack, ``.mrcs``. The STAR file is called like it, with ``_model.star``.
    class_averages : array_like of shape (n_classes, D, D)
        In the order of the class numbers.
    pixel_size : float, optional
        Angstrom per pixel, for the header.
    sizes : array_like of shape (n_classes,), optional
        Particles of each class, for ``rlnClassDistribution``.
    resolutions : array_like of shape (n_classes,), optional
        In Angstrom, for ``rlnEstimatedResolution``; infinity and NaN become 999, as RELION writes.
    columns : mapping of str to array_like of shape (n_classes,), optional
        More columns of the STAR file.
    overwrite : bool, default=False
        Whether to replace files that are there.

    Returns
    -------
    Path
        The STAR file. Its block ``data_model_classes`` is what ``relion_refine --ref`` and RELION's display
        read.

    Raises
    ------
    FileExistsError
        If a file exists and `overwrite` is False.
    ValueError
        If the shapes disagree, or `path` is no .mrcs file.

    Notes
    -----
    The STAR file names the stack as RELION does, from the project's folder, where its programs are started:
    here the working directory. A stack that is not under it is named by its absolute path. So
    ``relion_refine --ref out/x_model.star`` and RELION's display find it from there.

    Averages of this library are corrected for the amplitude of the CTF: tell RELION so, with
    ``relion_refine --ref x_model.star --ctf --ctf_corrected_ref``.
    """
    path = Path(path)
    averages = np.asarray(class_averages)
    if path.suffix.lower() != ".mrcs" or averages.ndim != 3:
        raise ValueError(
            f"{path}: class averages of shape {averages.shape}, expected (n_classes, D, D) and a .mrcs file. "
            "Give the stack and change the suffix."
        )
    name = name_in_project(path)
    table = pd.DataFrame({"rlnReferenceImage": [f"{i:06d}@{name}" for i in range(1, len(averages) + 1)]})
    if sizes is not None:
        size = check_length("sizes", sizes, len(averages), "class average").astype(np.float64)
        table["rlnClassDistribution"] = np.round(size / max(size.sum(), 1e-300), 6)
    if resolutions is not None:
        given = check_length("resolutions", resolutions, len(averages), "class average").astype(np.float64)
        table["rlnEstimatedResolution"] = np.round(np.where(np.isfinite(given), given, NO_RESOLUTION), 4)
    for name, values in (columns or {}).items():
        table[name] = check_length(name, values, len(averages), "class average")
    star = class_star_path(path)
    with atomic_path(star, overwrite=overwrite) as temporary:
        temporary.write_text("".join(star_parts({"model_classes": table})), encoding="utf-8")
        # The stack is in its place first, so that the list never names images that are not there.
        write_mrc(path, averages, pixel_size, overwrite=overwrite)
    return star


@dataclass(frozen=True)
class Selection:
    """Classes that somebody chose.

    Attributes
    ----------
    classes : tuple of int
        Class numbers from 1, as in ``rlnClassNumber``, each once, in rising order.
    source : dict, str or None
        What they number; of a results folder ``folder``, ``n_classes`` and ``started_at``.
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
    path = existing_file(path)
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
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1
