"""MRC files: what their headers say of byte order, pixels and axes, and how they are read and written."""

from __future__ import annotations

import logging
import os
import stat
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
from mrcfile.constants import MAP_ID
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import byte_order_from_machine_stamp

from sklearn_cryoem._core.files import check_content
from sklearn_cryoem._core.validation import ParticleDataError, notify

logger = logging.getLogger(__name__)
HEADER_BYTES = 1024
_PLAUSIBLE_MODES = range(102)
_REAL_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}  # MRC mode: numpy type of one pixel
_OTHER_MODES = {
    3: "complex 16-bit integers",
    4: "complex numbers, as of a Fourier transform",
    16: "colours",
    101: "4-bit integers, two in a byte",
}
_IMOD_STAMP, _SIGNED_BYTES = 1146047817, 1
_IMOD_FIELDS = 152  # byte of stamp and flags
_MIN_PIXEL, _MAX_PIXEL = 0.05, 200.0  # Angstrom; what lies beyond is no pixel size
_WRITE_MODES = {"float32": 2, "float16": 12}
_LITTLE_ENDIAN = (0x44, 0x44, 0, 0)  # machine stamp
_FORMAT_VERSION = 20141  # MRC2014, as mrcfile writes it


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
    pixel_size, pixel_size_along_y : float or None
        Angstrom per pixel along x and y by the header, None where the header does not say.
    """

    path: str
    offset: int
    dtype: str
    n_images: int
    box: int
    size: int
    mtime_ns: int
    pixel_size: float | None = None
    pixel_size_along_y: float | None = None

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.box**2 * np.dtype(self.dtype).itemsize

    @property
    def promised_size(self) -> int:
        """Bytes that the file should have by its header."""
        return self.offset + self.n_images * self.image_bytes

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
    header, oddities = _read_header(path)
    nx, ny, nz = int(header.nx), int(header.ny), int(header.nz)
    if oddities and (int(header.mode) not in _PLAUSIBLE_MODES or min(nx, ny, nz) < 1):
        raise ParticleDataError(
            f"{path}: not an MRC file ({oddities[0]}). Give the .mrcs file that the extraction wrote."
        )
    dtype = _pixel_type(header, path)
    if nx != ny or nx < 4 or nz < 1 or int(header.nsymbt) < 0:
        raise ParticleDataError(
            f"{path}: images of {nx} x {ny} pixels, {nz} of them; expected square particle images. "
            "If this is a micrograph, extract the particles first."
        )
    _check_images(header, path)
    along_x, along_y = (float(size) if np.isfinite(size) else None for size in _voxel_size(header)[:2])
    file = FrameFile(
        path=os.path.abspath(path),
        offset=HEADER_BYTES + int(header.nsymbt),
        dtype=dtype.str,
        n_images=nz,
        box=nx,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        pixel_size=along_x,
        pixel_size_along_y=along_y,
    )
    if oddities and file.promised_size != file.size:
        raise ParticleDataError(
            f"{path}: not a sound MRC file ({'; '.join(oddities)}), and its {file.size} bytes are not the "
            f"{file.promised_size} that its header would mean. Write it again with the "
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
    header = _new_header(shape, pixel_size, is_stack=is_stack, dtype=dtype)
    low, high, total, squares = np.inf, -np.inf, 0.0, 0.0
    with open(path, "wb") as stream:
        stream.seek(HEADER_BYTES)
        for block in blocks:
            pixels = np.ascontiguousarray(block, dtype=np.dtype(dtype).newbyteorder("<"))
            stream.write(pixels.data)
            low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
            total += float(pixels.sum(dtype=np.float64))
            squares += float(np.square(pixels, dtype=np.float64).sum())
        mean = total / np.prod(shape, dtype=np.float64)
        spread = np.sqrt(max(squares / np.prod(shape, dtype=np.float64) - mean**2, 0.0))
        header["dmin"], header["dmax"], header["dmean"], header["rms"] = low, high, mean, spread
        stream.seek(0)
        stream.write(header.tobytes())


def _new_header(
    shape: tuple[int, ...], pixel_size: float | None, *, is_stack: bool, dtype: str
) -> np.ndarray:
    """Header of a new file without statistics; a file that `mrcfile` makes stays open if the disk is full."""
    header = np.zeros((), dtype=np.dtype(HEADER_DTYPE).newbyteorder("<"))
    n_sections, n_rows, n_columns = (1, *shape)[-3:]
    cell = n_columns, n_rows, 1 if is_stack else n_sections
    header[["nx", "ny", "nz"]] = n_columns, n_rows, n_sections
    header[["mx", "my", "mz"]] = cell
    header["cella"] = tuple((pixel_size or 0.0) * n_voxels for n_voxels in cell)
    header["cellb"] = (90.0, 90.0, 90.0)
    header[["mapc", "mapr", "maps"]] = 1, 2, 3
    header[["mode", "ispg"]] = _WRITE_MODES[dtype], int(len(shape) == 3 and not is_stack)
    header[["map", "machst", "nversion"]] = MAP_ID, _LITTLE_ENDIAN, _FORMAT_VERSION
    header["nlabl"], header["label"][0] = 1, "Written by sklearn_cryoem"
    return header


def read_whole_mrc(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a whole MRC file, compressed or not, with its axes in the order of this library.

    Parameters
    ----------
    path : str or Path
        A volume, a stack or an image of real numbers.

    Returns
    -------
    array : ndarray of shape (nz, ny, nx) or (ny, nx), float32
        The data, whatever the order of axes in the file.
    voxel : ndarray of shape (3,)
        Angstrom along x, y and z; NaN where the header does not say.

    Raises
    ------
    ParticleDataError
        If it is not a sound MRC file of real numbers, or its cell is not rectangular.
    """
    check_content(path, "an MRC file", "mrc", "binary", "gzip", "bzip2")
    try:
        with mrcfile.open(path, header_only=True) as mrc:
            header = mrc.header
            dtype, order = _pixel_type(header, path), _axis_order(header, path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with mrcfile.open(path) as mrc:
                data = mrc.data
    except (ValueError, OSError, EOFError) as error:
        raise ParticleDataError(
            f"{path}: cannot be read as MRC ({error}). Check that it is a whole .mrc file."
        ) from error
    for warning in caught:  # of mrcfile, which says only how much too long the file is
        notify(
            "stack-too-long",
            f"{path}: {warning.message} by its header; the rest is not read. Copy it again, or write it "
            "again with the program it came from.",
        )
    if data is None:
        raise ParticleDataError(f"{path}: holds no data, expected a map or images. Copy it again.")
    angles = [float(angle) for angle in header.cellb.tolist()]
    if data.ndim == 3 and any(angle not in (0.0, 90.0) for angle in angles):
        raise ParticleDataError(
            f"{path}: the angles of its cell are {angles}, expected 90 degrees. Resample the map on a "
            "rectangular grid."
        )
    if dtype == np.uint8:
        data = data.view(np.uint8)  # mrcfile takes all bytes as signed
    if data.ndim == 3:  # (sections, rows, columns)
        place = [order[::-1].index(axis) for axis in (3, 2, 1)]
        data = data.transpose(place)
    elif order != (1, 2, 3):
        _check_images(header, path)
    return np.array(data, dtype=np.float32, order="C"), _voxel_size(header)


def _check_images(header: np.recarray, path: str | Path) -> None:
    """Raise unless the columns of images are x and their rows y."""
    order = _axis_order(header, path)
    if order != (1, 2, 3):
        raise ParticleDataError(
            f"{path}: the header says that columns, rows and sections are the axes {order} (MAPC, MAPR, "
            "MAPS), expected (1, 2, 3): other images are mirrored or cut across. Write the stack again with "
            "its axes in that order, or set the three numbers if the header is wrong."
        )


def _read_header(path: str | Path) -> tuple[np.recarray, list[str]]:
    """Header of an MRC file, with the fields of `mrcfile`, and what of it does not go by the standard."""
    check_content(path, "an MRC file", "mrc", "binary")
    # Only these bytes are read: mrcfile would follow a senseless length of the extended header.
    with open(path, "rb") as stream:
        start = stream.read(HEADER_BYTES)
    if len(start) < HEADER_BYTES:
        raise ParticleDataError(
            f"{path}: the file is only {len(start)} bytes long, shorter than an MRC header (1024). Copy or "
            "extract it again."
        )
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


def _pixel_type(header: np.recarray, path: str | Path) -> np.dtype:
    """Type of one pixel with its byte order.

    Bytes (mode 0) are signed by the standard. Those of IMOD have a stamp and a flag that says so; without a
    stamp bytes whose largest is above 127 by the header are unsigned, for they could not be else.
    """
    mode = int(header.mode)
    if mode not in _REAL_MODES:
        what = _OTHER_MODES.get(mode, "no mode of the standard")
        raise ParticleDataError(
            f"{path}: MRC mode {mode} ({what}), expected 0, 1, 2, 6 or 12 (real numbers). "
            "Convert the file to mode 2 (32-bit float), for example with `e2proc2d.py`."
        )
    order = header.dtype["mode"].byteorder
    if mode != 0:
        return np.dtype(_REAL_MODES[mode]).newbyteorder(order)
    fields = header.tobytes()[_IMOD_FIELDS : _IMOD_FIELDS + 8]
    stamp, flags = np.frombuffer(fields, dtype=np.dtype("i4").newbyteorder(order)).tolist()
    if stamp == _IMOD_STAMP:
        return np.dtype("i1" if flags & _SIGNED_BYTES else "u1")
    return np.dtype("u1" if float(header.dmin) >= 0 and 127 < float(header.dmax) <= 255 else "i1")


def _axis_order(header: np.recarray, path: str | Path) -> tuple[int, int, int]:
    """What columns, rows and sections are: 1 is x, 2 is y, 3 is z."""
    order = int(header.mapc), int(header.mapr), int(header.maps)
    if order == (0, 0, 0):  # many programs leave them out
        return 1, 2, 3
    if sorted(order) != [1, 2, 3]:
        raise ParticleDataError(
            f"{path}: the header says that columns, rows and sections are the axes {order} (MAPC, MAPR, "
            "MAPS), expected 1, 2 and 3 in some order. Write the file again with the program it came from."
        )
    return order


def _voxel_size(header: np.recarray) -> np.ndarray:
    """Angstrom per voxel along x, y and z; NaN where the header does not say.

    A cell of 1 A is what programs write that do not know it, and a voxel below 0.05 or above 200 A is none.
    """
    cell = np.array([header.cella.x, header.cella.y, header.cella.z], dtype=np.float64)
    sampling = np.array([header.mx, header.my, header.mz], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = cell / sampling
        known = (sampling > 0) & (cell != 1.0) & (size >= _MIN_PIXEL) & (size <= _MAX_PIXEL)
    return np.where(known, size, np.nan)


def _with_byte_order(start: bytes, order: str) -> np.recarray:
    return np.frombuffer(start, dtype=HEADER_DTYPE.newbyteorder(order)).view(np.recarray)[0]
