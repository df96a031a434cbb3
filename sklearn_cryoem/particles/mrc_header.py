"""The header of an MRC file: byte order, type of the pixels, order of the axes, pixel size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mrcfile.constants import MAP_ID
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import byte_order_from_machine_stamp

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem._core.files import content_of

HEADER_BYTES = 1024
PLAUSIBLE_MODES = range(102)
_REAL_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}  # MRC mode: numpy type of one pixel
_OTHER_MODES = {
    3: "complex 16-bit integers",
    4: "complex numbers, as of a Fourier transform",
    16: "colours",
    101: "4-bit integers, two in a byte",
}
_IMOD_STAMP, _SIGNED_BYTES = 1146047817, 1
_IMOD_FIELDS = 152  # byte of stamp and flags
_SMALLEST_PIXEL, _LARGEST_PIXEL = 0.05, 200.0  # Angstrom; what lies beyond is no pixel size


def read_header(path: str | Path) -> tuple[np.recarray, list[str]]:
    """Header of an MRC file in the byte order of the file, and what is odd about it.

    Parameters
    ----------
    path : str or Path
        The file, not compressed.

    Returns
    -------
    header : recarray
        With the fields of `mrcfile`.
    oddities : list of str
        What does not go by the standard, but may be an MRC file.

    Raises
    ------
    ParticleDataError
        If it is empty, cut off, or recognisably something else.
    """
    # Only these bytes are read: mrcfile would follow a senseless length of the extended header.
    with open(path, "rb") as stream:
        start = stream.read(HEADER_BYTES)
    content = content_of(start)
    if content.kind not in ("mrc", "binary", "empty"):
        raise ParticleDataError(f"{path}: not an MRC file, but {content.what}. {content.remedy}.")
    if len(start) < HEADER_BYTES:
        size = len(start)
        what = f"only {size} bytes long, shorter than an MRC header (1024)" if size else "empty"
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
    if int(header.mode) not in PLAUSIBLE_MODES:
        other = _with_byte_order(start, "<" if order == ">" else ">")
        if int(other.mode) in PLAUSIBLE_MODES:
            oddities.append("machine stamp and byte order disagree")
            header = other
    return header, oddities


def pixel_type(header: np.recarray, path: str | Path) -> np.dtype:
    """Type of one pixel with its byte order.

    Bytes (mode 0) are signed by the standard. Those of IMOD have a stamp and a flag that says so; without a
    stamp bytes whose largest is above 127 by the header are unsigned, for they could not be else.

    Parameters
    ----------
    header : recarray
        Of an MRC file.
    path : str or Path
        The file, for the message.

    Raises
    ------
    ParticleDataError
        If the mode is none of real numbers.
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


def axis_order(header: np.recarray, path: str | Path) -> tuple[int, int, int]:
    """What columns, rows and sections are: 1 is x, 2 is y, 3 is z; (1, 2, 3) where the header has zeros.

    Parameters
    ----------
    header : recarray
        Of an MRC file.
    path : str or Path
        The file, for the message.

    Raises
    ------
    ParticleDataError
        If the numbers are no order of three axes.
    """
    order = int(header.mapc), int(header.mapr), int(header.maps)
    if order == (0, 0, 0):  # many programs leave them out
        return 1, 2, 3
    if sorted(order) != [1, 2, 3]:
        raise ParticleDataError(
            f"{path}: the header says that columns, rows and sections are the axes {order} (MAPC, MAPR, "
            "MAPS), expected 1, 2 and 3 in some order. Write the file again with the program it came from."
        )
    return order


def voxel_size(header: np.recarray) -> np.ndarray:
    """Angstrom per voxel along x, y and z; NaN where the header does not say.

    A cell of 1 A is what programs write that do not know it, and a voxel below 0.05 or above 200 A is none.
    """
    cell = np.array([header.cella.x, header.cella.y, header.cella.z], dtype=np.float64)
    sampling = np.array([header.mx, header.my, header.mz], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = cell / sampling
        known = (sampling > 0) & (cell != 1.0) & (size >= _SMALLEST_PIXEL) & (size <= _LARGEST_PIXEL)
    return np.where(known, size, np.nan)


def _with_byte_order(start: bytes, order: str) -> np.recarray:
    return np.frombuffer(start, dtype=HEADER_DTYPE.newbyteorder(order)).view(np.recarray)[0]
