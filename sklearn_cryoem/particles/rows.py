"""What all tables of this package share: row keys, immutability, columns, and metadata that pickle alike."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import pandas as pd

_COPY_ON_WRITE = int(pd.__version__.split(".", maxsplit=1)[0]) >= 3


class Immutable:
    """Base of containers whose attributes cannot be set once they are built.

    A subclass calls `_seal` at the end of its construction and names the way out in `_remedy`.
    """

    _remedy = "Build a new one instead."

    def _seal(self) -> None:
        object.__setattr__(self, "_sealed", True)

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_sealed", False):
            raise AttributeError(
                f"{type(self).__name__}.{name} cannot be set: the object is immutable. {self._remedy}"
            )
        object.__setattr__(self, name, value)

    def __setstate__(self, state: dict) -> None:  # arrays of a pickle can be written into
        for name, value in state.items():
            self.__dict__[name] = read_only(value) if isinstance(value, np.ndarray) else value

    def __delattr__(self, name: str) -> None:
        raise AttributeError(
            f"{type(self).__name__}.{name} cannot be deleted: the object is immutable. {self._remedy}"
        )

    def __copy__(self) -> Immutable:
        return self

    def __deepcopy__(self, memo: dict) -> Immutable:
        return self


def row_key(key: Any, n_rows: int) -> slice | np.ndarray:
    """Turn any key for the first axis into a slice of step 1 or an array of non-negative indices.

    Parameters
    ----------
    key : int, slice, boolean mask, array of int, or such a key followed by an Ellipsis in a tuple
        The key as it stands between square brackets. An int gives a slice of one row.
    n_rows : int
        Length of the first axis.

    Returns
    -------
    slice or ndarray of shape (n_selected,), intp

    Raises
    ------
    IndexError
        If the key selects along another axis, is out of range, or is a mask of another length.
    """
    key = _first_axis_only(key)
    if isinstance(key, slice):
        start, stop, step = key.indices(n_rows)
        return slice(start, max(start, stop)) if step == 1 else np.arange(start, stop, step)
    if isinstance(key, numbers.Integral) and not isinstance(key, bool | np.bool_):
        row = int(key) + n_rows if key < 0 else int(key)
        if not 0 <= row < n_rows:
            raise IndexError(f"Row {key} is out of range: there are {n_rows} rows, 0 to {n_rows - 1}.")
        return slice(row, row + 1)
    return _index_array(key, n_rows)


def _first_axis_only(key: Any) -> Any:
    if key is Ellipsis:
        return slice(None)
    if isinstance(key, tuple):
        rest = [part for part in key[1:] if part is not Ellipsis and part != slice(None)]
        if not key or rest:
            raise IndexError(
                f"Particles are indexed along their first axis only, got the key {key!r}. "
                "For pixels, read the images first: stack.read(rows)[:, y, x]."
            )
        return slice(None) if key[0] is Ellipsis else key[0]
    return key


def _index_array(key: Any, n_rows: int) -> np.ndarray:
    index = np.asarray(key)
    if index.dtype == bool:
        if index.shape != (n_rows,):
            raise IndexError(f"The mask has shape {index.shape}, expected ({n_rows},): one value a particle.")
        return np.flatnonzero(index)
    if index.size == 0:
        return np.zeros(0, dtype=np.intp)
    if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
        raise IndexError(
            f"Cannot index rows with {index.dtype} of shape {index.shape}. "
            "Use an int, a slice, a boolean mask or a 1-D array of integers."
        )
    index = index.astype(np.intp)
    low, high = int(index.min()), int(index.max())
    if low < -n_rows or high >= n_rows:
        bad = high if high >= n_rows else low
        raise IndexError(f"Row {bad} is out of range: there are {n_rows} rows, 0 to {n_rows - 1}.")
    return np.where(index < 0, index + n_rows, index) if low < 0 else index


def read_only(array: np.ndarray) -> np.ndarray:
    """Return a view of `array` that cannot be written through."""
    view = array.view()
    view.flags.writeable = False
    return view


def column(name: str, values: Any, *, owner: str) -> np.ndarray:
    """Return `values` as a finite, read-only, contiguous float64 array.

    Raises
    ------
    ValueError
        If a value is NaN or infinite.
    """
    array = np.array(values, dtype=np.float64, copy=True, order="C")
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        raise ValueError(
            f"{owner}: {name} is NaN or infinite for {bad.size} particle(s), the first in row {bad[0]}. "
            "Drop those rows, or repair the table they come from."
        )
    array.flags.writeable = False
    return array


def guarded(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table that can be changed without changing `table`; free where pandas copies on write."""
    return table.copy(deep=not _COPY_ON_WRITE)


def pack_table(table: pd.DataFrame | None) -> tuple | None:
    """Turn a table into plain arrays and lists, of the same hash for equal tables however they were made."""
    if table is None:
        return None
    columns = [(str(name), str(column.dtype), _plain(column)) for name, column in table.items()]
    return len(table), columns


def unpack_table(packed: tuple | None) -> pd.DataFrame | None:
    """Inverse of `pack_table`; the index counts from 0."""
    if packed is None:
        return None
    n_rows, columns = packed
    series = {place: pd.Series(values, dtype=dtype) for place, (_, dtype, values) in enumerate(columns)}
    table = pd.DataFrame(series, index=pd.RangeIndex(n_rows))
    table.columns = [name for name, _, _ in columns]
    return table


def _plain(column: pd.Series) -> np.ndarray | list:
    is_number = isinstance(column.dtype, np.dtype) and column.dtype.kind in "fiub"
    return np.ascontiguousarray(column) if is_number else column.tolist()
