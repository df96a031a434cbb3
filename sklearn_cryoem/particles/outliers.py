"""Which images are far out of what is usual, and whether all are normalised.

An image that is a hundred times too bright, torn, striped or hit by a cosmic ray weighs as much as
thousands of sound ones in every sum of squares. Each image is measured once against the others, and what is
far out takes part in no statistic.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sklearn_cryoem.physics.fourier import Float64
from sklearn_cryoem.physics.image_measures import Measures, band_edges

if TYPE_CHECKING:
    pass

FEWEST_IMAGES = 20  # that tell what is usual
POWER_RATIO = 6.0  # to the median: twice the contrast is four times the power, and occurs; thrice is nine
COARSE_RATIO, COARSE_SHARE = 400.0, 0.1  # where ice and carbon are seen: shells below this part of the box
HOT_PIXEL, STRIPE = 12.0, 10.0  # standard deviations; the largest of 10^6 pixels of noise has 5
LEVEL = 5.0  # standard deviations of the background
TORN_SHARE = 0.2  # of the lines; boxes at the edge of a micrograph have fewer blank ones
SPREADS = 8.0  # robust standard deviations that lie beyond the median, in any case
MOST_ROWS = 5  # that a message names of a kind
FEWEST_SEEN = 0.9  # of the backgrounds have to be there to be compared
UNEVEN_LEVEL, UNEVEN_SPREAD = 1.0, 0.5  # of the background's standard deviation: its mean, and its range
HOT = "with hot pixels"
HOT_PIXEL_HINT = " Hot pixels can be clipped: read with clip_hot_pixels=True."


def usual_limits(measures: Measures, box: int) -> Float64:
    """Smallest and largest value of each measure that is not far out; (2, 4 + n_bands).

    Parameters
    ----------
    measures : Measures
        Of the images that say what is usual. Fewer than `FEWEST_IMAGES` say nothing of power and level.
    box : int
        Their side.
    """
    values = measures.values
    values = values[np.isfinite(values).all(axis=1)]
    if len(values) < FEWEST_IMAGES:
        limits = np.repeat([[-np.inf], [np.inf]], values.shape[1], axis=1)
        if has_backgrounds(measures):
            limits[1, 1:4] = HOT_PIXEL, STRIPE, TORN_SHARE
        return limits
    median, reach = np.median(values, axis=0), SPREADS * _robust_sd(values)
    low, high = median - np.maximum(reach, LEVEL), median + np.maximum(reach, LEVEL)
    low[1:4] = -np.inf
    high[1:3] = np.maximum((median + reach)[1:3], [HOT_PIXEL, STRIPE])
    high[3] = median[3] + max(reach[3], TORN_SHARE)
    ratio = np.maximum(reach[4:], log_ratios(box))
    low[4:], high[4:] = median[4:] - ratio, median[4:] + ratio
    return np.stack([low, high])


def has_backgrounds(measures: Measures) -> bool:
    """Whether images have noise round the particle: they are neither masked nor free of noise."""
    return np.count_nonzero(measures.spread > 0) >= FEWEST_SEEN * max(len(measures), 1)


def log_ratios(box: int) -> Float64:
    """Logarithm of the power in units of the usual one that is let pass, in each band; (n_bands,)."""
    upper = np.array(band_edges(box)[1:])
    coarse = (upper <= COARSE_SHARE * box) | (np.arange(len(upper)) == 0)
    return np.asarray(np.log(np.where(coarse, COARSE_RATIO, POWER_RATIO)))


def _robust_sd(values: Float64) -> Float64:
    return np.asarray(1.4826 * np.median(np.abs(values - np.median(values, axis=0)), axis=0))


def find_outliers(
    measures: Measures, limits: Float64, group: NDArray[np.int64], box: int, *, groups_differ: bool = False
) -> pd.DataFrame:
    """List images that are far out, against all and against their noise group.

    Parameters
    ----------
    measures : Measures
        Of the images.
    limits : ndarray of shape (2, 4 + n_bands)
        What is usual, from `usual_limits`.
    group : ndarray of shape (n_images,), int
        Noise group of each. Groups of fewer than `FEWEST_IMAGES` are not judged by themselves.
    box : int
        Side of the images.
    groups_differ : bool
        Whether groups have noise of their own: power is then compared within a group that is large enough,
        and with that of all for the others.

    Returns
    -------
    DataFrame
        Columns ``row``, ``kind`` (one of six) and ``problem``, with its figures.
    """
    values = measures.values
    with np.errstate(invalid="ignore"):  # where nothing is usual
        excess = values[:, 4:] - 0.5 * (limits[0] + limits[1])[4:]  # of log power
    high, low = values > limits[1], values < limits[0]
    own, is_large = _from_group(measures.log_power, group)
    if groups_differ:
        high[is_large, 4:] = low[is_large, 4:] = False
    if is_large.any():
        ratio = np.maximum(SPREADS * _robust_sd(own[is_large]), log_ratios(box))
        excess = np.where(np.abs(own) > ratio, own, excess)
        high[:, 4:] |= own > ratio
        low[:, 4:] |= own < -ratio
    worst = np.exp(np.take_along_axis(excess, np.abs(excess).argmax(axis=1)[:, None], axis=1)[:, 0])
    kinds = {
        "striped": high[:, 2],
        HOT: high[:, 1],
        "torn": high[:, 3],
        "too bright": high[:, 4:].any(axis=1),
        "too faint": low[:, 4:].any(axis=1),
        "of another grey level": high[:, 0] | low[:, 0],
    }
    texts = {
        "striped": lambda i: f"has a line {measures.stripe[i]:.3g} standard deviations off its neighbours",
        HOT: lambda i: f"has a pixel {measures.hot_pixel[i]:.3g} standard deviations off",
        "torn": lambda i: f"is blank in {measures.blank_lines[i]:.0%} of its lines",
        "too bright": lambda i: f"has {worst[i]:.3g} times the power of most",
        "too faint": lambda i: f"has {worst[i]:.3g} times the power of most",
        "of another grey level": lambda i: f"has a background of {measures.level[i]:.3g}",
    }
    kind = np.select(list(kinds.values()), list(kinds), default="")  # the first that fits
    rows = np.flatnonzero(kind != "")
    problem = [texts[kind[row]](row) for row in rows]
    return pd.DataFrame({"row": rows, "kind": kind[rows], "problem": problem})


def _from_group(log_power: Float64, group: NDArray[np.int64]) -> tuple[Float64, NDArray[np.bool_]]:
    """Log power less the median of the noise group, and which images are in a group that is large enough."""
    table = pd.DataFrame(log_power).groupby(group)
    is_large = table[0].transform("count").to_numpy() >= FEWEST_IMAGES
    own = np.where(is_large[:, None], log_power - table.transform("median").to_numpy(), 0.0)
    return own, is_large


def count_text(found: pd.DataFrame) -> str:
    """Kinds with their counts and first rows: "3 too bright (rows 4, 17, 90), 1 torn (row 8)"."""
    parts = []
    for kind, rows in found.groupby("kind", sort=False)["row"]:
        first = ", ".join(map(str, rows[:MOST_ROWS]))
        more = ", ..." if len(rows) > MOST_ROWS else ""
        parts.append(f"{len(rows):,} {kind} (row{'s' if len(rows) > 1 else ''} {first}{more})")
    return ", ".join(parts)


def uneven_background(measures: Measures, n_background: int, *, level_counts: bool) -> str | None:
    """What to say where the backgrounds are not normalised; None where they are or cannot be judged.

    Parameters
    ----------
    measures : Measures
        Of the images.
    n_background : int
        Pixels of the background of each.
    level_counts : bool
        Whether backgrounds of one spread, but not of mean 0, are said to be uneven. Fits take the level off.
    """
    level, spread = measures.level, measures.spread
    seen = spread > 0
    if seen.sum() < max(2, FEWEST_SEEN * len(seen)):  # masked, or without noise: nothing to judge by
        return None
    level, spread = level[seen], spread[seen]
    relative = float(np.median(np.abs(level) / spread))
    low, high = np.percentile(spread, [10, 90])
    expected = 2.6 / math.sqrt(2 * n_background)  # that range of equal ones, of white noise
    is_uneven = (high - low) / np.median(spread) - expected > UNEVEN_SPREAD
    if not is_uneven and not (level_counts and relative > UNEVEN_LEVEL):
        return None
    return (
        f"the images are not normalised: their background has a mean of {relative:.2g} standard deviations "
        f"(median of {len(level):,} images), and its standard deviation goes from {low:.3g} to {high:.3g}"
    )
