"""Writing a simulated stack straight to disk, block by block."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sklearn_cryoem._core.files import atomic_path
from sklearn_cryoem.particles.file_source import FileSource
from sklearn_cryoem.particles.mrc_files import inspect_mrc, write_mrc_blocks
from sklearn_cryoem.physics.fourier import Float32


def write_stack(
    path: str | Path,
    blocks: Iterable[Float32],
    shape: tuple[int, int, int],
    *,
    pixel_size: float,
    dtype: str,
    overwrite: bool,
) -> FileSource:
    """Write blocks of images one after the other into an .mrcs file; the file appears only when complete.

    Parameters
    ----------
    path : str or Path
        Ends in .mrcs or .mrc.
    blocks : iterable of ndarray of shape (m, D, D)
        Images in order.
    shape : (int, int, int)
        Of the whole stack.
    pixel_size : float
        In Angstrom, for the header.
    dtype : {"float32", "float16"}
        Type of the pixels in the file.
    overwrite : bool
        Whether an existing file is replaced.

    Returns
    -------
    source : FileSource
        Reads the images back from the file.

    Raises
    ------
    FileExistsError
        If the file exists and `overwrite` is false.
    """
    with atomic_path(path, overwrite=overwrite) as partial:
        write_mrc_blocks(partial, blocks, shape, pixel_size=pixel_size, is_stack=True, dtype=dtype)
    n_images = shape[0]
    return FileSource([inspect_mrc(path)], np.zeros(n_images, np.int32), np.arange(n_images, dtype=np.int32))
