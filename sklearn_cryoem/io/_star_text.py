"""Tables as the text of a STAR file, a few seconds for a million rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem._core.parallel import row_blocks
from sklearn_cryoem._version import __version__

_ROWS_AT_ONCE = 50_000
_TO_QUOTE = re.compile(r"""\s|#|^$|^["'_;$]|^(data_|loop_|save_|stop_|global_)""")
_LINE_ENDS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def star_text(blocks: Mapping[str, pd.DataFrame]) -> str:
    """Tables as the text of a STAR file, with as many digits as the numbers have.

    Parameters
    ----------
    blocks : mapping of str to DataFrame
        Tables by the name of their block.

    Raises
    ------
    ParticleDataError
        If a text holds what STAR cannot: a line break, or both kinds of quotes and a space.
    """
    return "".join(star_parts(blocks))


def star_parts(blocks: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Yield the text of `star_text` in parts, so that it need not be held as a whole."""
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
        return [repr(value) for value in values.tolist()]
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
