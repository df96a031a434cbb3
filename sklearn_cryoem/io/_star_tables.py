"""The tables of STAR files: a million rows in seconds, and whatever quotes and comments are in them.

The `starfile` library walks through a file line by line (10 s and 2 GB of memory for a million particles),
stops at comments among the labels, and takes every # and ' for syntax, though names of files may hold them.
Here it reads the skeleton of a file that holds more than tables: every block with its labels, but without the
rows. Rows without quoted values and comments are read by pandas in one go, much as by `starfile`; others are
read value by value. Tests hold both to `starfile` on every file that it can read.
"""

from __future__ import annotations

import csv
import io
import itertools
import linecache
import mmap
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import starfile

from sklearn_cryoem._core.exceptions import ParticleDataError

_SYNTAX = re.compile(rb"""(?:^|\s)["'#]""")  # what begins a value: inside one, these are letters
_NO_TEXT = bytes(set(range(32)) - set(b"\t\n\r") | {127})
_IN_MEMORY = hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")
_NAME = "rlnImageName"
_NAN = [  # by C, by Python, and by Windows; with a sign where the program divided 0 by 0
    "nan", "NaN", "NAN", "-nan", "-NaN", "-NAN", "+nan", "<NA>",
    "nan(ind)", "-nan(ind)", "1.#QNAN", "-1.#IND",
]  # fmt: skip
# Numbers to their last digit, which pandas reads from 3.1 on, and then warns if it is asked to.
_EXACT: dict = (
    {"float_precision": "round_trip"} if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1) else {}
)
_VALUE = re.compile(
    r"""
    \s*(?:
        (?P<comment>\#.*)
        | "(?P<double>[^"]*)"(?=\s|$)      # a quote ends a value only before a space: "it's", 'a"b'
        | '(?P<single>[^']*)'(?=\s|$)
        | (?P<open>["'])
        | (?P<bare>\S+)
    )""",
    re.VERBOSE | re.ASCII,
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
    ParticleDataError
        If a block or a label is there twice: nobody can say which is meant.
    ValueError
        If a row has too many values, a quote is open, or the labels do not match the rows.
    """
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        loops, n_blocks = _loops(content, path)
        only_tables = 0 < len(loops) == n_blocks
        blocks = {} if only_tables else _read_skeleton(content, loops, text_labels, path)
        for loop in loops:
            try:
                blocks[loop.block] = _read_rows(content[loop.start : loop.stop], loop.labels, text_labels)
            except ValueError as error:
                raise ValueError(f"{error}, in block data_{loop.block}") from error
    return blocks


def _loops(content: mmap.mmap, path: Path) -> tuple[list[_Loop], int]:
    """Tables with rows, and the number of blocks."""
    starts = [0] if content[:5] == b"data_" else []
    place = content.find(b"\ndata_")
    while place >= 0:
        starts.append(place + 1)
        place = content.find(b"\ndata_", place + 1)
    found, seen = [], {}
    for start, stop in itertools.pairwise([*starts, len(content)]):
        name, loop = _read_head(content, start, stop, path)
        if name in seen:
            raise ParticleDataError(
                f"{path}: block data_{name} is there twice ({_lines(content, seen[name], start)}), as when "
                "files are joined with cat. Read the files one by one and join them with concatenate(), or "
                "with relion_star_handler --combine."
            )
        seen[name] = start
        if loop is not None:
            found.append(loop)
    return found, len(seen)


def _read_head(content: mmap.mmap, start: int, stop: int, path: Path) -> tuple[str, _Loop | None]:
    """Name of the block between two bytes, and its table; None if it has no table with rows."""
    content.seek(start)
    name = content.readline().strip()[5:].decode("utf-8", "replace")
    labels: dict[str, int] = {}  # place of each
    in_loop = False
    while content.tell() < stop:
        row_start = content.tell()
        line = content.readline().strip()
        if line.startswith(b"loop_"):
            in_loop = True
        elif line.startswith(b"_"):
            label = line.split()[0][1:].decode("utf-8", "replace")
            if not (label.isascii() and label.isprintable()):
                raise ParticleDataError(
                    f"{path}, block data_{name}: a label is called {label!a} ({_lines(content, row_start)}), "
                    "so the file is damaged. Copy or write it again."
                )
            if label in labels:
                raise ParticleDataError(
                    f"{path}, block data_{name}: label {label} is there twice "
                    f"({_lines(content, labels[label], row_start)}). Remove one of them, with its values."
                )
            labels[label] = row_start
        elif line and not line.startswith(b"#"):
            return name, _Loop(name, list(labels), row_start, stop) if in_loop and labels else None
    return name, None


def _lines(content: mmap.mmap, *places: int) -> str:
    """Name the lines on which two bytes of a file stand, from 1."""
    return f"line{'s' if len(places) > 1 else ''} " + " and ".join(
        str(content[:place].count(b"\n") + 1) for place in places
    )


def _read_skeleton(content: mmap.mmap, loops: list[_Loop], text_labels: list[str], path: Path) -> dict:
    kept, place = [], 0
    for loop in loops:
        kept.append(content[place : loop.start])
        place = loop.stop
    kept.append(content[place:])
    lines = b"\n\n".join(kept).splitlines()
    plain = b"\n".join(line for line in lines if not line.lstrip().startswith(b"#"))
    with _named(plain + b"\n") as skeleton:
        return starfile.read(skeleton, always_dict=True, parse_as_string=text_labels)


@contextmanager
def _named(content: bytes) -> Iterator[Path]:
    """Path of a file with this content, for `starfile` reads by name.

    Where the system has files in memory it is one, so that reading needs no folder that can be written to,
    and no room on a disk.
    """
    if _IN_MEMORY:
        with open(os.memfd_create("skeleton.star"), "w+b") as stream:
            stream.write(content)
            stream.flush()
            try:
                yield Path(f"/proc/self/fd/{stream.fileno()}")
            finally:
                linecache.clearcache()  # `starfile` reads through it, and another file may get this number
    else:
        try:
            folder = tempfile.TemporaryDirectory()
        except OSError as error:
            raise ParticleDataError(
                f"blocks without a table are read by way of a temporary file, and none can be "
                f"written ({error}). Set TMPDIR to a folder that can be written."
            ) from error
        with folder as name:
            path = Path(name) / "skeleton.star"
            path.write_bytes(content)
            yield path


def _read_rows(rows: bytes, labels: list[str], text_labels: list[str]) -> pd.DataFrame:
    _check_text(rows)
    if any(mark in rows for mark in (b"#", b"'", b'"')) and _SYNTAX.search(rows):
        table, short = _read_values(rows, labels)
    else:
        try:
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
        except pd.errors.ParserError as error:
            raise ValueError(_misfit(rows, labels)) from error
        if table.shape[1] != len(labels):
            raise ValueError(_misfit(rows, labels))
        short = _short_rows(rows, table, len(labels))
    table.columns = labels
    _blank(table, short)
    for label in labels:
        if label not in text_labels and not pd.api.types.is_numeric_dtype(table[label]):
            table[label] = _numbers_if_possible(table[label])
    return table


def _check_text(rows: bytes) -> None:
    """Raise ValueError for the first row that is no text: another encoding, or a damaged file."""
    if rows.isascii() and len(rows.translate(None, _NO_TEXT)) == len(rows):
        return
    for row, line in enumerate((line for line in rows.splitlines() if line.strip()), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"row {row} is no utf-8 text: it holds the byte {line[error.start]:#x}; save it as UTF-8"
            ) from error
        if len(line.translate(None, _NO_TEXT)) < len(line):
            raise ValueError(f"row {row} holds a control character, as no text does")


def _misfit(rows: bytes, labels: list[str]) -> str:
    """Name the first row with too many values, or the first of all where each has too few."""
    counts = [len(line.split()) for line in rows.splitlines() if line.strip()]
    row = next((row for row, count in enumerate(counts) if count > len(labels)), 0)
    return f"row {row + 1} has {counts[row]} values for {len(labels)} labels"


def _short_rows(rows: bytes, table: pd.DataFrame, n_labels: int) -> list[int]:
    """Places of rows with fewer values than labels, which pandas fills up with NaN or empty text."""
    last = table.iloc[:, -1]
    suspects = np.flatnonzero((last.isna() | (last.astype(object) == "")).to_numpy())
    if not suspects.size:
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


def _read_values(rows: bytes, labels: list[str]) -> tuple[pd.DataFrame, list[int]]:
    """Rows with quotes or comments among them, value by value; a short row is filled up with NaN."""
    columns: list[list[str | float]] = [[] for _ in labels]
    short: list[int] = []
    for number, line in enumerate(rows.splitlines(), start=1):
        # as bytes, for a name may hold what is a space in Unicode
        odd = _SYNTAX.search(line)
        values = _values(line.decode("utf-8"), number) if odd else list(map(bytes.decode, line.split()))
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
