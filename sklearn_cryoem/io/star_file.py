"""STAR files as tables and back: a million rows in seconds, whatever quotes and comments are in them.

Blocks and labels are found here, and pandas reads the rows. The `starfile` library cuts values at every # and
takes every ' for a quote, though names of files may hold both, and stops at a comment among the labels; for
300,000 particles with 14 columns it takes 1.1 s and 417 MB, this module 0.7 s and 212 MB. Tests hold this
module to it on every file that it can read.
"""

from __future__ import annotations

import io
import mmap
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from sklearn_cryoem._core.files import check_content
from sklearn_cryoem._core.parallel import row_blocks
from sklearn_cryoem._core.validation import ParticleDataError, notify
from sklearn_cryoem._version import __version__

# Labels whose values are text even where they look like numbers: "0012" must not become 12.
TEXT_LABELS = [
    "rlnImageName", "rlnImageOriginalName", "rlnMicrographName", "rlnMicrographNameNoDW", "rlnGroupName",
    "rlnOpticsGroupName", "rlnMtfFileName", "rlnCtfImage", "rlnReconstructImageName", "rlnTomoName",
    "rlnTomoParticleName", "rlnMicrographMovieName", "rlnOriginalParticleName", "rlnParticleName",
]  # fmt: skip
_SYNTAX = re.compile(rb"""(?:^|\s)["'#]""")  # what begins a value: inside one, these are letters
_NO_TEXT = bytes(set(range(32)) - set(b"\t\n\r") | {127})
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
_TAIL_BYTES = 2**16  # looked at from the end
_ROWS_AT_ONCE = 50_000
_TO_QUOTE = re.compile(r"""\s|#|^$|^["'_;$]|^(data_|loop_|save_|stop_|global_)""")
_LINE_ENDS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def read_star_file(path: Path) -> dict[str, pd.DataFrame]:
    """Parse a STAR file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict of str to DataFrame
        Table of each block by its name without ``data_``; a block without a loop is a table of one row.

    Raises
    ------
    ParticleDataError
        If the file is not a sound STAR file, or a block or a label is there twice.
    """
    check_content(path, "a STAR file", "star", "text", "binary")
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        starts = _block_starts(content, path)
        stops = [*list(starts.values())[1:], len(content)]
        return {
            name: _read_block(content, start, stop, path, name)
            for (name, start), stop in zip(starts.items(), stops, strict=True)
        }


def _block_starts(content: mmap.mmap, path: Path) -> dict[str, int]:
    """First byte of each block by its name, in the order of the file."""
    starts: dict[str, int] = {}
    places = [match.start() + 1 for match in re.finditer(rb"\ndata_", content)]
    for place in [0, *places] if content[:5] == b"data_" else places:
        content.seek(place)
        name = content.readline().strip()[5:].decode("utf-8", "replace")
        if name in starts:
            raise ParticleDataError(
                f"{path}: block data_{name} is there twice ({_lines(content, starts[name], place)}), as when "
                "files are joined with cat. Read the files one by one and join them with concatenate(), or "
                "with relion_star_handler --combine."
            )
        starts[name] = place
    if not starts:
        raise ParticleDataError(
            f"{path}: no data_ block in it, so it is not a STAR file (or not UTF-8 text). "
            "Give a particles.star, a .cs or a .mrcs file."
        )
    return starts


def _read_block(content: mmap.mmap, start: int, stop: int, path: Path, name: str) -> pd.DataFrame:
    """Table of the block between two bytes; path and name are for messages."""
    labels: dict[str, int] = {}  # place of each
    values: list[str] = []  # of a block without a loop
    in_loop = False
    content.seek(start)
    content.readline()
    try:
        while (place := content.tell()) < stop:
            line = content.readline().strip()
            if line.startswith(b"loop_"):
                in_loop = True
            elif line.startswith(b"_"):
                label = line.split()[0][1:].decode("utf-8", "replace")
                _check_label(label, labels, content, place, f"{path}, block data_{name}")
                labels[label] = place
                if not in_loop:
                    _, *found = _values(line)
                    if len(found) != 1:
                        raise ValueError(f"label {label} has {len(found)} values, expected one")
                    values += found
            elif line and not line.startswith(b"#") and in_loop and labels:
                return _read_rows(content[place:stop], list(labels))
        return _read_rows(_in_quotes(values), list(labels)) if values else pd.DataFrame(columns=list(labels))
    except ParticleDataError:  # a ValueError too
        raise
    except ValueError as error:  # among them those of pandas and of text that is not UTF-8
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise ParticleDataError(
            f"{path}: cannot be parsed as STAR ({reason}, in block data_{name}). Look for a row with too few "
            "or too many values, or an open quote; a file that was cut off while being written must be "
            "written again."
        ) from error


def _check_label(label: str, known: dict[str, int], content: mmap.mmap, place: int, where: str) -> None:
    if not (label.isascii() and label.isprintable()):
        raise ParticleDataError(
            f"{where}: a label is called {label!a} ({_lines(content, place)}), so the file is damaged. "
            "Copy or write it again."
        )
    if label in known:
        raise ParticleDataError(
            f"{where}: label {label} is there twice ({_lines(content, known[label], place)}). Remove one of "
            "them, with its values."
        )


def _lines(content: mmap.mmap, *places: int) -> str:
    """Name the lines on which some bytes of a file stand, from 1."""
    numbers = " and ".join(str(content[:place].count(b"\n") + 1) for place in places)
    return f"line{'s' if len(places) > 1 else ''} {numbers}"


def _read_rows(rows: bytes, labels: list[str]) -> pd.DataFrame:
    """Table of rows of values: columns that hold nothing but numbers, and others of text."""
    _check_text(rows)
    if any(mark in rows for mark in (b"#", b"'", b'"')) and _SYNTAX.search(rows):
        lines = rows.splitlines()  # as bytes, for a name may hold what is a space in Unicode
        for place, line in enumerate(lines):
            if _SYNTAX.search(line):
                lines[place] = _in_quotes(_values(line, place + 1))
        rows = b"\n".join(lines)
    try:
        table = pd.read_csv(
            io.BytesIO(rows),
            delimiter=r"\s+",
            header=None,
            dtype={place: str for place, label in enumerate(labels) if label in TEXT_LABELS},
            keep_default_na=False,
            na_values=_NAN,
            engine="c",
            **_EXACT,
        )
    except pd.errors.ParserError:
        table = pd.DataFrame()
    if table.shape[1] != len(labels):
        counts = [len(_values(line)) for line in rows.splitlines() if line.strip()]
        row = next((row for row, count in enumerate(counts) if count > len(labels)), 0)
        raise ValueError(f"row {row + 1} has {counts[row]} values for {len(labels)} labels")
    table.columns = labels
    last = table.iloc[:, -1]
    # pandas fills up rows that are too short
    suspects = np.flatnonzero((last.isna() | (last.astype(object) == "")).to_numpy())
    lines = [line for line in rows.splitlines() if line.strip()] if suspects.size else []
    short = [row for row in suspects.tolist() if len(_values(lines[row])) < len(labels)]
    if short and "rlnImageName" not in labels:
        raise ValueError(f"row {short[0] + 1} has fewer values than the {len(labels)} labels")
    if short:  # nobody knows which value is missing: without a name, the particle is reported
        table.loc[short, "rlnImageName"] = float("nan")
    for label, column in table.items():  # numbers with empty quotes among them
        if label not in TEXT_LABELS and column.dtype.kind not in "iufb" and (column != "").any():
            with suppress(ValueError):
                table[label] = pd.to_numeric(column)
    return table


def _in_quotes(values: list[str]) -> bytes:
    """A row of values as pandas reads it whatever is in them."""
    return " ".join('"' + value.replace('"', '""') + '"' for value in values).encode()


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


def _values(line: bytes, number: int = 1) -> list[str]:
    """Values of one row, quotes taken off; a # begins a comment only where a value would begin."""
    values = []
    for match in _VALUE.finditer(line.decode("utf-8").rstrip()):
        if match["comment"] is not None:
            break
        if match["open"] is not None:
            raise ValueError(f"row {number} has an open quote")
        values.append(next(match[kind] for kind in ("double", "single", "bare") if match[kind] is not None))
    return values


def warn_if_cut_off(path: Path) -> None:
    """Warn if the last row is shorter than all before it and has no line end; the latter alone is common."""
    with open(path, "rb") as stream:
        stream.seek(max(path.stat().st_size - _TAIL_BYTES, 0))
        *others, last = stream.read().splitlines(keepends=True)
    lengths = [len(line.rstrip()) for line in others if len(line.split()) == len(last.split())]
    if lengths and len(last) < min(lengths) and not last.endswith((b"\n", b"\r")):
        notify(
            "last-line-open",
            f"{path}: the last line has no end and is shorter than all others, as if the file had been cut "
            "off in the midst of a value. Compare its length with the original's, or end it with a line "
            "break if it is whole.",
        )


def name_of_line(path: Path, block: str, row: int) -> str:
    """The line on which a row (from 0) of a loop stands, as " (line 12)"; empty if it cannot be told."""
    in_block, in_loop, seen = False, False, -1
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.strip()
            if text.startswith("data_"):
                in_block, in_loop = text[5:] == block, False
            elif in_block and text.startswith("loop_"):
                in_loop = True
            elif in_block and in_loop and text and text[0] not in "_#":
                seen += 1
                if seen == row:
                    return f" (line {number})"
    return ""


def star_parts(blocks: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Yield the text of a STAR file in parts, with as many digits as the numbers have.

    Raises ParticleDataError if a text holds what STAR cannot: a line break, or both kinds of quotes.
    """
    yield f"# Written by sklearn-cryoem {__version__}\n"
    for name, table in blocks.items():
        labels = "".join(f"_{label} #{place}\n" for place, label in enumerate(table.columns, start=1))
        yield f"\ndata_{name}\n\nloop_\n{labels}"
        for rows in row_blocks(len(table), _ROWS_AT_ONCE):
            cells = [_cells(table.iloc[rows, place]) for place in range(table.shape[1])]
            yield "\n".join(map("\t".join, zip(*cells, strict=True))) + "\n"
        yield "\n"


def _cells(column: pd.Series) -> list[str]:
    """Values of a column as STAR writes them."""
    values = column.to_numpy()
    if values.dtype.kind == "b":
        values = values.astype(np.int64)
    if values.dtype.kind in "iuf":
        return list(map(repr, values.tolist()))
    return [_cell(value, column.name) for value in values.tolist()]


def _cell(value: object, label: object) -> str:
    if isinstance(value, bool):
        return repr(int(value))
    if not isinstance(value, str):
        return "nan" if pd.isna(value) else str(value)
    if not _TO_QUOTE.search(value):
        return value
    quote = next((mark for mark in "\"'" if mark not in value), None)
    if quote is None or _LINE_ENDS.search(value):
        raise ParticleDataError(
            f"The value {value!r} of column {label} cannot be written to a STAR file: it has a line break or "
            "both kinds of quotes. Change it (rename the file or folder that it names), or drop the column."
        )
    return f"{quote}{value}{quote}"
