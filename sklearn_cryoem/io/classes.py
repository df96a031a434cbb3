"""Class averages with the STAR file by which RELION's tools know what they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sklearn_cryoem._core.files import atomic_path
from sklearn_cryoem.io._renaming import name_in_project
from sklearn_cryoem.io._star_text import star_text
from sklearn_cryoem.io.mrc import write_mrc

NO_RESOLUTION = 999.0  # as RELION writes it


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
        size = _per_class("sizes", sizes, len(averages)).astype(np.float64)
        table["rlnClassDistribution"] = np.round(size / max(size.sum(), 1e-300), 6)
    if resolutions is not None:
        given = _per_class("resolutions", resolutions, len(averages)).astype(np.float64)
        table["rlnEstimatedResolution"] = np.round(np.where(np.isfinite(given), given, NO_RESOLUTION), 4)
    for name, values in (columns or {}).items():
        table[name] = _per_class(name, values, len(averages))
    star = class_star_path(path)
    with atomic_path(star, overwrite=overwrite) as temporary:
        temporary.write_text(star_text({"model_classes": table}), encoding="utf-8")
        write_mrc(
            path, averages, pixel_size, overwrite=overwrite
        )  # first in its place: never a list of nothing
    return star


def _per_class(name: str, values: Any, n_classes: int) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != (n_classes,):
        raise ValueError(
            f"{name} has shape {array.shape}, expected ({n_classes},): one value for each class average. "
            "Take it from the same fit."
        )
    return array
