"""Structured arrays as tables and back.

In a stack's metadata every field of a .cs file is a column; a field of several numbers is one column for
each, ``alignments3D/pose[0]``, so that all survive slicing and writing.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

_ODD_BYTES = "surrogateescape"  # what is not UTF-8 is written as it came


def records_to_table(records: np.ndarray) -> pd.DataFrame:
    """Turn a structured array into a table, one column for each number: ``name`` or ``name[i]``."""
    columns = {}
    for name in records.dtype.names:
        field = records[name]
        if field.dtype.kind in "SU":
            text = np.char.decode(field, "utf-8", _ODD_BYTES) if field.dtype.kind == "S" else field
            field = pd.Series(text.astype(object), dtype=object) if text.ndim == 1 else text.astype(object)
        if field.ndim == 1:
            columns[name] = field
        else:
            flat = field.reshape(len(field), -1)
            shape = "x".join(str(side) for side in field.shape[1:])
            suffix = "" if field.ndim == 2 else f" of {shape}"
            columns.update({f"{name}[{i}{suffix}]": flat[:, i] for i in range(flat.shape[1])})
    return pd.DataFrame(columns)


def table_to_records(table: pd.DataFrame) -> np.ndarray:
    """Inverse of `records_to_table`; text becomes bytes."""
    fields: dict[str, list[np.ndarray]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for place, column in enumerate(table.columns):
        match = re.fullmatch(r"(.*)\[(\d+)(?: of ([\dx]+))?\]", str(column))
        name = match[1] if match else str(column)
        values = table.iloc[:, place].to_numpy()
        if values.dtype.kind not in "fiub":
            values = np.array([str(value).encode("utf-8", _ODD_BYTES) for value in values], dtype=np.bytes_)
        fields.setdefault(name, []).append(values)
        if match:
            shapes[name] = tuple(int(side) for side in match[3].split("x")) if match[3] else ()
    columns = {}
    for name, parts in fields.items():
        if name in shapes:
            stacked = np.stack(parts, axis=1)
            columns[name] = stacked.reshape(len(table), *(shapes[name] or (len(parts),)))
        else:
            columns[name] = parts[0]
    dtype = [(name, values.dtype, values.shape[1:]) for name, values in columns.items()]
    records = np.zeros(len(table), dtype=dtype)
    for name, values in columns.items():
        records[name] = values
    return records
