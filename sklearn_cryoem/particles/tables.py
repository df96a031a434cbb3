"""Tables of metadata: guarded against writing, and packed so that equal tables pickle and hash alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

_COPY_ON_WRITE = int(pd.__version__.split(".", maxsplit=1)[0]) >= 3


def guarded(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table that can be changed without changing `table`; free where pandas copies on write."""
    return table.copy(deep=not _COPY_ON_WRITE)


def pack_table(table: pd.DataFrame | None) -> tuple | None:
    """Turn a table into plain arrays and bytes, the same for equal tables however they were made.

    Text is stored once for each distinct value. Undone by `unpack_table`. O(number of cells).
    """
    if table is None:
        return None
    names = tuple(str(name) for name in table.columns)
    return len(table), names, tuple(_pack_column(table.iloc[:, place]) for place in range(len(names)))


def unpack_table(packed: tuple | None) -> pd.DataFrame | None:
    """Inverse of `pack_table`; the index counts from 0."""
    if packed is None:
        return None
    n_rows, names, columns = packed
    series = [_unpack_column(column) for column in columns]
    if not series:
        return pd.DataFrame(index=pd.RangeIndex(n_rows))
    table = pd.concat(series, axis=1)
    table.columns = list(names)
    return table


def _pack_column(column: pd.Series) -> tuple:
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "fiub":
        return "array", np.ascontiguousarray(column.to_numpy())
    codes, values = pd.factorize(column)
    if all(isinstance(value, str) for value in values):
        encoded = [value.encode() for value in values]
        lengths = np.array([len(value) for value in encoded], dtype=np.int32)
        code_type = np.min_scalar_type(-len(encoded) - 1)
        return "text", codes.astype(code_type), lengths, b"".join(encoded), str(column.dtype)
    return "objects", column.tolist(), str(column.dtype)


def _unpack_column(packed: tuple[Any, ...]) -> pd.Series:
    kind = packed[0]
    if kind == "array":
        return pd.Series(packed[1])
    if kind == "objects":
        return pd.Series(packed[1], dtype=packed[2])
    _, codes, lengths, joined, dtype = packed
    stops = np.cumsum(lengths)
    values = [joined[stop - n : stop].decode() for stop, n in zip(stops, lengths, strict=True)]
    values.append(np.nan)  # where code -1 points
    return pd.Series(np.array(values, dtype=object)[codes], dtype=dtype)
