"""The tables of STAR files: a million rows in seconds, and whatever quotes and comments are in them.

The `starfile` library walks through a file line by line (10 s and 2 GB of memory for a million particles),
stops at comments among the labels, and takes every # and ' for syntax, though names of files may hold them.
Here it reads the skeleton of a file, every block with its labels but without the rows of tables. Rows without
quoted values and comments are read by pandas in one go, much as by `starfile`; others value by value. Tests
hold both to `starfile` on every file that it can read.
"""

from __future__ import annotations

import csv
import io
import itertools
import mmap
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import starfile

_SYNTAX = re.compile(rb"""(?:^|\s)["'#]""")  # what begins a value: inside one, these are letters
_NAME = "rlnImageName"
# Numbers to their last digit, which pandas reads from 3.1 on, and then warns if it is asked to.
_EXACT: dict = (
    {"float_precision": "round_trip"} if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1) else {}
)
_NAN = ["nan", "NaN", "<NA>"]
_VALUE = re.compile(
    r"""
    \s*(?:
        (?P<comment>\#.*)
        | "(?P<double>[^"]*)"(?=\s|$)      # a quote ends a value only before a space: "it's", 'a"b'
        | '(?P<single>[^']*)'(?=\s|$)
        | (?P<open>["'])
        | (?P<bare>\S+)
    )""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class _Loop:
    """A table: its block, its labels, and the bytes of its rows."""

    block: str
    labels: list[str]
    start: int
    stop: int


def read_tables(path: Path, text_labels: list[str]) -> dict[str, pd.DataFrame | dict]:
    """Parse a STAR file; the same as ``starfile.read(path, always_dict=True)`` where that can read it.

    Parameters
    ----------
    path : Path
        The file, not empty.
    text_labels : list of str
        Columns to keep as text.

    Returns
    -------
    dict
        Table or dict of each block by its name.

    Raises
    ------
    ValueError
        If a row has too many values, a quote is open, or the labels do not match the rows.
    """
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        loops = _loops(content)
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
    for start, stop in itertools.pairwise([*starts, len(content)]):
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
    lines = b"\n\n".join(kept).splitlines()
    plain = b"\n".join(line for line in lines if not line.lstrip().startswith(b"#"))
    with tempfile.TemporaryDirectory() as folder:
        skeleton = Path(folder) / "skeleton.star"
        skeleton.write_bytes(plain + b"\n")
        return starfile.read(skeleton, always_dict=True, parse_as_string=text_labels)


def _read_rows(rows: bytes, labels: list[str], text_labels: list[str]) -> pd.DataFrame:
    if any(mark in rows for mark in (b"#", b"'", b'"')) and _SYNTAX.search(rows):
        table, short = _read_values(rows.decode("utf-8"), labels)
    else:
        table = pd.read_csv(
            io.BytesIO(rows),
            delimiter=r"\s+",
            header=None,
            dtype={place: str for place, label in enumerate(labels) if label in text_labels},
            keep_default_na=False,
            na_values=_NAN,
            quoting=csv.QUOTE_NONE,
            engine="c",
            **_EXACT,
        )
        short = _short_rows(rows, table, len(labels))
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise ValueError(f"label {twice[0]} is there twice")
    table.columns = labels
    _blank(table, short)
    for label in labels:
        if label not in text_labels and not pd.api.types.is_numeric_dtype(table[label]):
            table[label] = _numbers_if_possible(table[label])
    return table


def _short_rows(rows: bytes, table: pd.DataFrame, n_labels: int) -> list[int]:
    """Places of rows with fewer values than labels, which pandas fills up with NaN or empty text."""
    last = table.iloc[:, -1]
    suspects = np.flatnonzero((last.isna() | (last.astype(object) == "")).to_numpy())
    if not suspects.size or table.shape[1] != n_labels:
        return []
    lines = [line for line in rows.splitlines() if line.strip()]
    return [int(row) for row in suspects if len(lines[row].split()) < n_labels]


def _blank(table: pd.DataFrame, short: list[int]) -> None:
    """Take the name off particles in short rows: who knows which value is missing, and they are reported."""
    if not short:
        return
    if _NAME not in table.columns:
        raise ValueError(f"row {short[0] + 1} has fewer values than the {table.shape[1]} labels")
    table.loc[short, _NAME] = float("nan")


def _read_values(rows: str, labels: list[str]) -> tuple[pd.DataFrame, list[int]]:
    """Rows with quotes or comments among them, value by value; a short row is filled up with NaN."""
    columns: list[list[str | float]] = [[] for _ in labels]
    short: list[int] = []
    for number, line in enumerate(rows.splitlines(), start=1):
        values = _values(line, number) if _SYNTAX.search(line.encode()) else line.split()
        if not values:
            continue
        if len(values) > len(labels):
            raise ValueError(f"row {number} has {len(values)} values for {len(labels)} labels")
        if len(values) < len(labels):
            short.append(len(columns[0]))
        for column, value in itertools.zip_longest(columns, values, fillvalue="nan"):
            column.append(float("nan") if value in _NAN else value)
    table = pd.DataFrame({place: pd.Series(column, dtype="str") for place, column in enumerate(columns)})
    return table, short


def _values(line: str, number: int) -> list[str]:
    """Values of one row, quotes taken off; a # begins a comment only where a value would begin."""
    values = []
    for match in _VALUE.finditer(line.rstrip()):
        if match["comment"] is not None:
            break
        if match["open"] is not None:
            raise ValueError(f"row {number} has an open quote")
        values.append(next(match[kind] for kind in ("double", "single", "bare") if match[kind] is not None))
    return values


def _numbers_if_possible(column: pd.Series) -> pd.Series:
    try:
        numbers = pd.to_numeric(column)
    except ValueError:
        return column
    if numbers.isna().all():
        return column
    if numbers.dtype.kind == "f":  # numpy's are exact; those of to_numeric only from pandas 3.1 on
        known = numbers.notna()
        numbers[known] = column[known].astype(np.float64)
    return numbers
