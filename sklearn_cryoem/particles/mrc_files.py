"""MRC files of images: what they look like on disk, told from the header alone, and how they are written."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
from mrcfile.constants import MAP_ID
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import byte_order_from_machine_stamp

from sklearn_cryoem._core.exceptions import ParticleDataError

logger = logging.getLogger(__name__)

HEADER_BYTES = 1024
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2"}
_WRITE_MODES = {"float32": 2, "float16": 12}
_PLAUSIBLE_MODES = range(102)
_REAL_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}  # MRC mode: numpy type of one pixel


@dataclass(frozen=True)
class FrameFile:
    """Images of one size that lie one after the other in a file.

    Attributes
    ----------
    path : str
        Absolute path.
    offset : int
        Byte at which the first image starts.
    dtype : str
        Type of one pixel with its byte order, as numpy writes it: ``"<f4"``.
    n_images : int
        Images that the header promises.
    box : int
        Side of the images in pixels.
    size, mtime_ns : int
        Bytes in the file and its time of modification, when it was inspected.
    pixel_size : float or None
        Angstrom per pixel by the header, None where the header does not say.
    """

    path: str
    offset: int
    dtype: str
    n_images: int
    box: int
    size: int
    mtime_ns: int
    pixel_size: float | None = None

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.box**2 * np.dtype(self.dtype).itemsize

    @property
    def n_whole_images(self) -> int:
        """Images that are there in full: fewer than `n_images` in a truncated file."""
        return min(self.n_images, max(0, self.size - self.offset) // self.image_bytes)


def inspect_mrc(path: str | Path) -> FrameFile:
    """Read the header of an MRC file of square images; touches no pixel.

    A header with a missing ``MAP`` tag or a wrong machine stamp is accepted if the size of the file then
    agrees with it to the byte.

    Parameters
    ----------
    path : str or Path
        A stack (.mrcs, .mrc) or a single image.

    Returns
    -------
    FrameFile
        Not checked for truncation: compare `n_whole_images` with `n_images`.

    Raises
    ------
    ParticleDataError
        If the file is not MRC, is compressed, holds complex numbers, or its images are not square.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ParticleDataError(f"{path}: this is no file, but a folder, pipe or device. Give an .mrcs file.")
    header, oddities = _read_header(path, status.st_size)
    mode = int(header.mode)
    nx, ny, nz = int(header.nx), int(header.ny), int(header.nz)
    if oddities and (mode not in _PLAUSIBLE_MODES or min(nx, ny, nz) < 1):
        raise ParticleDataError(
            f"{path}: not an MRC file ({oddities[0]}). Give the .mrcs file that the extraction wrote."
        )
    if mode not in _REAL_MODES:
        raise ParticleDataError(
            f"{path}: MRC mode {mode}, expected 0, 1, 2, 6 or 12 (real numbers). "
            "Convert the file to mode 2 (32-bit float), for example with `e2proc2d.py`."
        )
    if nx != ny or nx < 4 or nz < 1 or int(header.nsymbt) < 0:
        raise ParticleDataError(
            f"{path}: images of {nx} x {ny} pixels, {nz} of them; expected square particle images. "
            "If this is a micrograph, extract the particles first."
        )
    dtype = np.dtype(_REAL_MODES[mode]).newbyteorder(header.dtype["mode"].byteorder)
    file = FrameFile(
        path=os.path.abspath(path),
        offset=HEADER_BYTES + int(header.nsymbt),
        dtype=dtype.str,
        n_images=nz,
        box=nx,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        pixel_size=_pixel_size(header),
    )
    if oddities and file.offset + nz * file.image_bytes != file.size:
        raise ParticleDataError(
            f"{path}: not a sound MRC file ({'; '.join(oddities)}), and its {file.size} bytes are not the "
            f"{file.offset + nz * file.image_bytes} that its header would mean. Write it again with the "
            "program it came from."
        )
    for oddity in oddities:
        logger.info("%s: %s; accepted, for the size of the file agrees with its header.", path, oddity)
    return file


def write_mrc_blocks(
    path: str | Path,
    blocks: Iterable[np.ndarray],
    shape: tuple[int, ...],
    *,
    pixel_size: float | None,
    is_stack: bool,
    dtype: str = "float32",
) -> None:
    """Write consecutive blocks along the first axis to one MRC file.

    Pixels are written one block after the other, not through a memory map: no page of the file counts as
    memory of this process.

    Parameters
    ----------
    path : str or Path
        The file; replaced if it is there.
    blocks : iterable of ndarray
        Parts of an array of the given shape, in order.
    shape : tuple of int
        (ny, nx) or (n, ny, nx).
    pixel_size : float or None
        Angstrom per pixel, for the header.
    is_stack : bool
        Whether the first axis counts images, not sections of a volume.
    dtype : {"float32", "float16"}
        Type of the pixels in the file.
    """
    with mrcfile.new_mmap(path, shape, mrc_mode=_WRITE_MODES[dtype], overwrite=True) as mrc:
        if is_stack:
            mrc.set_image_stack()
        if pixel_size is not None:
            mrc.voxel_size = float(pixel_size)
    low, high, total, squares = np.inf, -np.inf, 0.0, 0.0
    with open(path, "r+b") as stream:
        stream.seek(HEADER_BYTES)
        for block in blocks:
            pixels = np.ascontiguousarray(block, dtype=np.dtype(dtype).newbyteorder("<"))
            stream.write(pixels.data)
            low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
            total += float(pixels.sum(dtype=np.float64))
            squares += float(np.square(pixels, dtype=np.float64).sum())
        mean = total / np.prod(shape, dtype=np.float64)
        spread = np.sqrt(max(squares / np.prod(shape, dtype=np.float64) - mean**2, 0.0))
        for field, value in [("dmin", low), ("dmax", high), ("dmean", mean), ("rms", spread)]:
            stream.seek(HEADER_DTYPE.fields[field][1])
            stream.write(np.array(value, dtype="<f4").tobytes())


def _read_header(path: str | Path, size: int) -> tuple[np.recarray, list[str]]:
    """Header of an MRC file in the byte order of the file, and what is odd about it."""
    # Only these bytes are read: mrcfile would follow a senseless length of the extended header.
    with open(path, "rb") as stream:
        start = stream.read(HEADER_BYTES)
    if start[:2] in _COMPRESSED:
        raise ParticleDataError(
            f"{path}: compressed with {_COMPRESSED[start[:2]]}. Uncompress it: images are read singly."
        )
    if len(start) < HEADER_BYTES:
        what = "empty" if size == 0 else f"only {size} bytes long, shorter than an MRC header (1024)"
        raise ParticleDataError(f"{path}: the file is {what}. Copy or extract it again.")
    header = np.frombuffer(start, dtype=HEADER_DTYPE).view(np.recarray)[0]
    oddities = [] if header.map == MAP_ID else ["no MAP tag in the header"]
    try:
        order = byte_order_from_machine_stamp(header.machst)
    except ValueError:
        oddities.append(f"machine stamp {header.machst.tobytes().hex()}")
        order = "<"
    if order == ">":
        header = _with_byte_order(start, ">")
    if int(header.mode) not in _PLAUSIBLE_MODES:
        other = _with_byte_order(start, "<" if order == ">" else ">")
        if int(other.mode) in _PLAUSIBLE_MODES:
            oddities.append("machine stamp and byte order disagree")
            header = other
    return header, oddities


def _with_byte_order(start: bytes, order: str) -> np.recarray:
    return np.frombuffer(start, dtype=HEADER_DTYPE.newbyteorder(order)).view(np.recarray)[0]


def _pixel_size(header: np.recarray) -> float | None:
    cell, sampling = float(header.cella.x), int(header.mx)
    size = cell / sampling if sampling > 0 else 0.0
    return size if np.isfinite(size) and size > 0 else None
