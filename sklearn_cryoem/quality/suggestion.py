"""Which classes to keep, and why the others not: a few limits that a person can read, check and change."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sklearn_cryoem._core.validation import check_number

GOOD_QUANTILE = 0.8  # of the particles by the information of their class: one of the better classes


class _Test(NamedTuple):
    """A measure, how far it is from its limit (at least 1 passes), and what to say if it fails."""

    margin: NDArray[np.float64]
    say: Callable[[pd.Series], str]


def suggest_classes(
    table: pd.DataFrame,
    *,
    min_size: int = 10,
    min_significance: float = 1.0,
    min_coherence: float = 0.65,
    max_edge: float = 0.35,
    max_offset: float = 0.15,
    min_extent: float = 0.4,
    max_strength: float = 2.0,
    max_spikes: float = 2.5,
    max_lines: float = 0.5,
    min_contrast: float = 0.0,
) -> pd.DataFrame:
    """Rank classes and suggest which to keep, by limits on their measures.

    Parameters
    ----------
    table : DataFrame
        From `class_quality`; its suggestion is made anew.
    min_size : int, default=10
        Particles that a class needs to be judged at all.
    min_significance : float, default=1.0
        Least energy of the signal, over that of noise that was aligned to itself: a class is judged by its
        own signal, so that a rare view need not be as sharp as a common one.
    min_coherence : float, default=0.65
        Least share of the power above the usual noise that the average explains: clumps and blobs of all
        shapes have more power than particles, and an average that explains little of it.
    max_edge : float, default=0.35
        Most signal at the rim of the mask, over that of the strongest ring within.
    max_offset : float, default=0.15
        Farthest centre of the particle, over the radius of the mask.
    min_extent : float, default=0.4
        Smallest area, over the median of particles: lumps of ice are smaller, and the end of a rod is seen
        with half of the area of its side.
    max_strength : float, default=2.0
        Largest power at low resolution, over the median of particles.
    max_spikes : float, default=2.5
        Most power in a single point, as hot pixels have it.
    max_lines : float, default=0.5
        Most power in one line of the Fourier plane, as stripes and bad rows of a detector have it.
    min_contrast : float, default=0.0
        Least contrast of the particle over the rim: above 0 for white ones.

    Returns
    -------
    DataFrame
        The table with ``score`` (information over that of a good class, times how far each limit is broken;
        0 to 1), ``rank`` (from 1: kept classes first, then by score), ``keep`` (bool) and ``reasons`` (text,
        empty for kept classes).

    Notes
    -----
    The limit on significance holds for each class by itself, whatever the others are; those on strength,
    extent and coherence and the score compare the classes of one run. Nothing here replaces a look at the
    class averages.
    """
    check_number("min_size", min_size, owner="suggest_classes", minimum=2, integer=True)
    check_number("min_significance", min_significance, owner="suggest_classes", minimum=0)
    check_number("min_coherence", min_coherence, owner="suggest_classes", minimum=0, maximum=1)
    check_number("min_extent", min_extent, owner="suggest_classes", minimum=0)
    limits = {"max_edge": max_edge, "max_offset": max_offset, "max_strength": max_strength}
    for name, value in {**limits, "max_spikes": max_spikes, "max_lines": max_lines}.items():
        check_number(name, value, owner="suggest_classes", minimum=0, inclusive=False)
    good = _good_information(table)
    share = table["information"].to_numpy() / good  # (n_classes,)
    tests = [
        _Test(table["size"].to_numpy() / min_size, _say_size),
        _Test(
            _over(table["significance"].to_numpy(), min_significance),
            lambda row: f"no more signal than aligned noise: {row['significance']:.2g} times as much",
        ),
        _Test(
            _over(table["coherence"].to_numpy(), min_coherence),
            lambda row: (
                f"particles unlike each other: {row['coherence']:.0%} of their power is in the average"
            ),
        ),
        _Test(
            max_edge / _positive(table["edge"]),
            lambda row: f"signal at the mask's edge, {row['edge']:.2g} times that within",
        ),
        _Test(
            max_offset / _positive(table["offset"]),
            lambda row: f"off centre by {row['offset']:.2g} of the mask's radius",
        ),
        _Test(
            _over(table["extent"].to_numpy(), min_extent),
            lambda row: f"{row['extent']:.2g} times as large as others: a lump of ice, or dirt",
        ),
        _Test(
            max_spikes / _positive(table["spikes"]),
            lambda row: f"much of its power in a single point ({row['spikes']:.2g}): hot pixels",
        ),
        _Test(
            max_lines / _positive(table["lines"]),
            lambda row: f"{row['lines']:.0%} of its power along one direction: stripes or bad rows",
        ),
        _Test(
            max_strength / _positive(table["strength"]),
            lambda row: (
                f"{row['strength']:.2g} times as strong at low resolution as others"
                + ("" if row["spikes"] > max_spikes or row["lines"] > max_lines else ": ice or carbon")
            ),
        ),
        _Test(
            np.where(table["contrast"].to_numpy() > min_contrast, np.inf, 0.0),
            lambda row: "darker than what is around it",
        ),
    ]
    margins = np.nan_to_num(np.stack([test.margin for test in tests]), nan=0.0, posinf=np.inf)  # (n, K)
    keep = (margins >= 1.0).all(axis=0)
    score = np.clip(np.nan_to_num(share), 0.0, 1.0) * np.clip(margins, 0.0, 1.0).prod(axis=0)
    order = np.lexsort((-table["size"].to_numpy(), -score, ~keep))
    judged = table.copy()
    judged["score"] = score
    judged["rank"] = np.argsort(order) + 1
    judged["keep"] = keep
    judged["reasons"] = [_reasons(row, margin, tests, min_size) for (_, row), margin in zip(
        table.iterrows(), margins.T, strict=True)]  # fmt: skip
    return judged


def _reasons(row: pd.Series, margin: NDArray[np.float64], tests: list[_Test], min_size: int) -> str:
    """Everything that speaks against a class; of one that cannot be judged, only that."""
    if row["size"] < min_size:
        return _say_size(row)
    return "; ".join(test.say(row) for test, value in zip(tests, margin, strict=True) if value < 1.0)


def _say_size(row: pd.Series) -> str:
    n_images = int(row["size"])
    return "empty" if n_images == 0 else f"{n_images} particle{'s' * (n_images > 1)}, too few to judge"


def _good_information(table: pd.DataFrame) -> float:
    """Information of one of the better classes: that of the particle at the 80th percentile."""
    values, sizes = table["information"].to_numpy(dtype=np.float64), table["size"].to_numpy()
    known = np.isfinite(values) & (sizes > 0)
    if not known.any():
        return 1.0
    good = float(np.quantile(np.repeat(values[known], sizes[known]), GOOD_QUANTILE))
    return good if good > 0 else 1.0


def _over(value: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    return value / limit if limit > 0 else np.full(len(value), np.inf)


def _positive(column: pd.Series) -> NDArray[np.float64]:
    """The column, but at least a trace, to divide by; NaN stays."""
    values = column.to_numpy(dtype=np.float64)
    return np.where(values <= 0, 1e-12, values)
