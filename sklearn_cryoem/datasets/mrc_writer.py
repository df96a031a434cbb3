"""Writing a simulated stack straight to disk, block by block."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import mrcfile
import numpy as np

from sklearn_cryoem._core.files import atomic_path
from sklearn_cryoem.particles.file_source import FileSource
from sklearn_cryoem.particles.mrc_files import inspect_mrc
from sklearn_cryoem.physics.fourier import Float32

_MODES = {"float32": 2, "float16": 12}
_HEADER_BYTES = 1024


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
        # mrcfile writes the header and the length of the file; pixels follow in plain sequential writes,
        # so that no page of the file counts as memory of this process.
        with mrcfile.new_mmap(partial, shape, mrc_mode=_MODES[dtype], overwrite=True) as mrc:
            mrc.set_image_stack()
            mrc.voxel_size = pixel_size
        with partial.open("r+b") as file:
            file.seek(_HEADER_BYTES)
            for block in blocks:
                file.write(np.ascontiguousarray(block, dtype=dtype).data)
    n_images = shape[0]
    return FileSource([inspect_mrc(path)], np.zeros(n_images, np.int32), np.arange(n_images, dtype=np.int32))
