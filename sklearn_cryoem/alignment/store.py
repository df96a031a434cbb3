"""Features of all images, computed once, in memory or in files that several processes map."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.files import room_for
from sklearn_cryoem.physics.fourier import Float64

Rows = NDArray[np.int64]

MADE_AT = "made_at"  # shift of the image, NaN before


class FeatureStore:
    """Arrays with one row an image, and at which shift of the image each row was made.

    Parameters
    ----------
    shapes : dict
        Shape and dtype of every array by name; the first axis is that of the images.

    Notes
    -----
    A store in a folder is opened by every process that unpickles it: what one has computed all can read. Two
    that compute the same row write the same bits. A store in memory arrives empty elsewhere.
    """

    def __init__(self, shapes: dict[str, tuple[tuple[int, ...], type]]) -> None:
        n_images = next(iter(shapes.values()))[0][0]
        self._shapes = {**shapes, MADE_AT: ((n_images, 2), np.float64)}
        self._folder: Path | None = None
        self._arrays = self._new_arrays()

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def missing(self, rows: Rows, shift_px: Float64) -> Rows:
        """Those of `rows` that are not filled yet, or not at their shift (n_images, 2)."""
        made_at = self._arrays[MADE_AT][rows]
        missing: Rows = rows[(made_at != shift_px[rows]).any(axis=1)]
        return missing

    def fill(self, rows: Rows, shift_px: Float64, **values: NDArray[Any]) -> None:
        """Set rows of every array, made at the shifts (n_images, 2) of the images."""
        for name, value in values.items():
            self._arrays[name][rows] = value
        self._arrays[MADE_AT][rows] = shift_px[rows]

    def move_to(self, folder: Path) -> None:
        """Go on in files of `folder`, which must outlive the store."""
        old, self._folder = self._arrays, folder
        for name, (shape, dtype) in self._shapes.items():
            _make_file(folder / name, math.prod(shape) * np.dtype(dtype).itemsize)
        self._arrays = self._opened(folder)
        is_empty = np.isnan(old[MADE_AT]).all()
        for name in [MADE_AT] if is_empty else list(old):
            self._arrays[name][:] = old[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"_shapes": self._shapes, "_folder": self._folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._shapes, self._folder = state["_shapes"], state["_folder"]
        self._arrays = self._new_arrays() if self._folder is None else self._opened(self._folder)

    def _new_arrays(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {name: np.empty(*spec) for name, spec in self._shapes.items()}
        arrays[MADE_AT][:] = np.nan
        return arrays

    def _opened(self, folder: Path) -> dict[str, NDArray[Any]]:
        return {
            name: np.asarray(np.memmap(folder / name, dtype, "r+", shape=shape))
            for name, (shape, dtype) in self._shapes.items()
        }


def _make_file(path: Path, n_bytes: int) -> None:
    """A file of zeros that has its place on the disk: a map of one that has not kills who writes beyond."""
    remedy = "Point JOBLIB_TEMP_FOLDER to a folder with more room, or take n_jobs=1."
    with room_for(f"{n_bytes / 1e6:.0f} MB of features in {path.parent}", remedy), open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        else:
            file.truncate(n_bytes)
