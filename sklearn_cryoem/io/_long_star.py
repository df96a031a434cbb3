"""STAR files with very long tables, in seconds.

The `starfile` library walks through a file line by line: 10 s and 2 GB of memory for a million particles.
Here it reads the skeleton of the file, every block with its labels but without the rows of long tables, and
pandas reads these rows in one go with the settings that `starfile` gives it. Tests hold the two together.
"""

from __future__ import annotations

import io
import mmap
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import starfile

LONG_TABLE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class _Loop:
    """A long table: its block, its labels, and the bytes of its rows."""

    block: str
    labels: list[str]
    start: int
    stop: int


def read_long_star(path: Path, text_labels: list[str], *, long_bytes: int = LONG_TABLE_BYTES) -> dict:
    """Parse a STAR file; the same as ``starfile.read(path, always_dict=True)``.

    Parameters
    ----------
    path : Path
        The file, not empty.
    text_labels : list of str
        Columns to keep as text.
    long_bytes : int
        Tables longer than this are read by pandas at once.

    Returns
    -------
    dict
        Table or dict of each block by its name.

    Raises
    ------
    ValueError
        If a row has too many values, or the labels do not match the rows.
    """
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        loops = [loop for loop in _loops(content) if loop.stop - loop.start > long_bytes]
        blocks = _read_skeleton(content, loops, text_labels)
        for loop in loops:
            blocks[loop.block] = _read_rows(content[loop.start : loop.stop], loop.labels, text_labels)
    return blocks


def _loops(content: mmap.mmap) -> list[_Loop]:
    starts = [0] if content[:5] == b"data_" else []
    place = content.find(b"\ndata_")
    while place >= 0:
        starts.append(place + 1)
        place = content.find(b"\ndata_", place + 1)
    found = []
    for start, stop in zip(starts, [*starts[1:], len(content)], strict=True):
        loop = _loop_of_block(content, start, stop)
        if loop is not None:
            found.append(loop)
    return found


def _loop_of_block(content: mmap.mmap, start: int, stop: int) -> _Loop | None:
    """The table of the block between two bytes; None if it has no table with rows."""
    content.seek(start)
    name = content.readline().strip()[5:].decode()
    labels: list[str] = []
    in_loop = False
    while content.tell() < stop:
        row_start = content.tell()
        line = content.readline().strip()
        if line.startswith(b"loop_"):
            in_loop = True
        elif line.startswith(b"_"):
            labels.append(line.split()[0][1:].decode())
        elif line and not line.startswith(b"#"):
            return _Loop(name, labels, row_start, stop) if in_loop and labels else None
    return None


def _read_skeleton(content: mmap.mmap, loops: list[_Loop], text_labels: list[str]) -> dict:
    kept, place = [], 0
    for loop in loops:
        kept.append(content[place : loop.start])
        place = loop.stop
    kept.append(content[place:])
    with tempfile.TemporaryDirectory() as folder:
        skeleton = Path(folder) / "skeleton.star"
        skeleton.write_bytes(b"\n\n".join(kept) + b"\n")
        return starfile.read(skeleton, always_dict=True, parse_as_string=text_labels)


def _read_rows(rows: bytes, labels: list[str], text_labels: list[str]) -> pd.DataFrame:
    table = pd.read_csv(
        io.BytesIO(rows.replace(b"'", b'"')),
        delimiter=r"\s+",
        header=None,
        comment="#",
        dtype={place: str for place, label in enumerate(labels) if label in text_labels},
        keep_default_na=False,
        na_values=["nan", "NaN", "<NA>"],
        engine="c",
    )
    table.columns = labels
    for label in labels:
        if label not in text_labels and not pd.api.types.is_numeric_dtype(table[label]):
            table[label] = _numbers_if_possible(table[label])
    return table


def _numbers_if_possible(column: pd.Series) -> pd.Series:
    try:
        numbers = pd.to_numeric(column)
    except ValueError:
        return column
    return column if numbers.isna().all() else numbers
