"""One look at every image: which are far out, and whether all are normalised.

An image that is a hundred times too bright, torn, striped or hit by a cosmic ray weighs as much as
thousands of sound ones in every sum of squares. Each image is measured once against the others, and what is
far out takes part in no statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sklearn_cryoem._core.notices import notify
from sklearn_cryoem._core.progress import progress
from sklearn_cryoem._core.workers import ordered_map, row_blocks
from sklearn_cryoem.physics.fourier import Float32, Float64
from sklearn_cryoem.physics.image_measures import Measures, Ruler, band_edges
from sklearn_cryoem.physics.masks import pixel_radius

if TYPE_CHECKING:
    from sklearn_cryoem.particles.stack import ParticleStack

PIXELS_AT_ONCE = 2**17  # measured together: small enough for the processor's caches
FEWEST_IMAGES = 20  # that tell what is usual
BACKGROUND_SHARE = 0.375  # of the box: what lies farther from the centre is background
LARGEST_RADIUS_SHARE = 0.48  # of the box: some background is left, whatever the mask
POWER_RATIO = 6.0  # to the median: twice the contrast is four times the power, and occurs; thrice is nine
COARSE_RATIO, COARSE_SHARE = 400.0, 0.1  # where ice and carbon are seen: shells below this part of the box
HOT_PIXEL, STRIPE = 12.0, 10.0  # standard deviations; the largest of 10^6 pixels of noise has 5
LEVEL = 5.0  # standard deviations of the background
TORN_SHARE = 0.2  # of the lines; boxes at the edge of a micrograph have fewer blank ones
SPREADS = 8.0  # robust standard deviations that lie beyond the median, in any case
MOST_ROWS = 5  # that a message names of a kind
FEWEST_SEEN = 0.9  # of the backgrounds have to be there to be compared
UNEVEN_LEVEL, UNEVEN_SPREAD = 1.0, 0.5  # of the background's standard deviation: its mean, and its range
OF_PARTS = ("group", "image")  # noise models by which backgrounds may differ
HOT = "with hot pixels"
HOT_PIXEL_HINT = " Hot pixels can be clipped: read with clip_hot_pixels=True."


def measure(
    read: Callable[[slice], Float32],
    n_images: int,
    box: int,
    radius_px: float,
    *,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> Measures:
    """Measure many images, block by block; see `Ruler`.

    Parameters
    ----------
    read : callable
        Returns the images of a slice of rows.
    n_images, box : int
        How many there are, and their side.
    radius_px : float
        Of the background.
    n_jobs : int or None
        Number of threads; the result does not depend on it.
    verbose : int
        Whether to show progress.
    """
    blocks = row_blocks(n_images, max(1, PIXELS_AT_ONCE // box**2)) or [slice(0, 0)]
    parts = []
    with progress(n_images, "looking at every image", verbose=verbose) as bar:
        task = partial(_measure_rows, read, Ruler(box, radius_px))
        for block, part in zip(blocks, ordered_map(task, blocks, n_jobs=n_jobs, here=True), strict=True):
            parts.append(part)
            bar.update(block.stop - block.start)
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Measures)}
    return Measures(**{name: np.concatenate(values) for name, values in columns.items()})


def _measure_rows(read: Callable[[slice], Float32], ruler: Ruler, rows: slice) -> Measures:
    return ruler(read(rows))


def usual_limits(measures: Measures, box: int) -> Float64:
    """Smallest and largest value of each measure that is not far out; (2, 4 + n_bands).

    Parameters
    ----------
    measures : Measures
        Of the images that say what is usual. Fewer than `FEWEST_IMAGES` say nothing.
    box : int
        Their side.
    """
    values = measures.values
    values = values[np.isfinite(values).all(axis=1)]
    if len(values) < FEWEST_IMAGES:
        return np.repeat([[-np.inf], [np.inf]], values.shape[1], axis=1)
    median, reach = np.median(values, axis=0), SPREADS * _robust_sd(values)
    low, high = median - np.maximum(reach, LEVEL), median + np.maximum(reach, LEVEL)
    low[1:4] = -np.inf
    high[1:3] = np.maximum((median + reach)[1:3], [HOT_PIXEL, STRIPE])
    high[3] = median[3] + max(reach[3], TORN_SHARE)
    ratio = np.maximum(reach[4:], log_ratios(box))
    low[4:], high[4:] = median[4:] - ratio, median[4:] + ratio
    return np.stack([low, high])


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


@dataclass(frozen=True)
class Look:
    """What a look at every image of a stack has found.

    Attributes
    ----------
    measures : Measures
        Of the images as they came.
    unusable : ndarray of shape (n_bad,), int
        Rows that are constant or not finite.
    uneven : str or None
        What is said of backgrounds that are not normalised.
    outliers : DataFrame
        As `find_outliers` returns it; of the normalised images where they were not normalised.
    limits : ndarray of shape (2, 4 + n_bands)
        What was taken as usual.
    """

    measures: Measures
    unusable: NDArray[np.int64]
    uneven: str | None
    outliers: pd.DataFrame
    limits: Float64


def look_at(
    stack: ParticleStack,
    mask_diameter: float | None = None,
    *,
    noise: str = "shell",
    limits: Float64 | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> Look:
    """Measure every image of a stack and judge it.

    Parameters
    ----------
    stack : ParticleStack
        The images.
    mask_diameter, noise, n_jobs, verbose
        As of `ParticleStack.screen`.
    limits : ndarray of shape (2, 4 + n_bands), optional
        What is usual, from a look at other images of the same kind, whose normalisation these share; by
        default what is usual among these.
    """
    box, radius_px = stack.box, background_radius(stack, mask_diameter)
    measures = measure(
        lambda rows: stack.images.read(rows, check=False),
        len(stack), box, radius_px, n_jobs=n_jobs, verbose=verbose,
    )  # fmt: skip
    unusable, uneven, judged = np.flatnonzero(measures.unusable), None, measures
    if limits is None:
        if noise not in OF_PARTS:
            uneven = uneven_background(measures, n_background(box, radius_px), level_counts=False)
        judged = measures if uneven is None else measures.normalised()
        limits = usual_limits(judged, box)
    found = find_outliers(judged, limits, stack.noise_group, box, groups_differ=noise == "group")
    return Look(measures, unusable, uneven, found, limits)


def background_radius(stack: ParticleStack, mask_diameter: float | None) -> float:
    """Distance from the centre, in pixels, beyond which an image is background."""
    radius_px = BACKGROUND_SHARE * stack.box
    if mask_diameter is not None:
        radius_px = 0.5 * mask_diameter / (stack.pixel_size or 1.0)
    return min(radius_px, LARGEST_RADIUS_SHARE * stack.box)


def n_background(box: int, radius_px: float) -> int:
    """Pixels farther than `radius_px` from the centre pixel."""
    return int((pixel_radius(box) > radius_px).sum())


def screened(
    stack: ParticleStack,
    mask_diameter: float | None = None,
    *,
    noise: str = "shell",
    limits: Float64 | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
    stacklevel: int = 1,
) -> tuple[ParticleStack, Float64]:
    """`ParticleStack.screen` that also returns what was usual, for further images of the same kind.

    Parameters
    ----------
    stack, mask_diameter, noise, limits, n_jobs, verbose
        As of `look_at`.
    stacklevel : int
        1 blames the caller of this function.
    """
    look = look_at(stack, mask_diameter, noise=noise, limits=limits, n_jobs=n_jobs, verbose=verbose)
    if len(look.unusable):
        stack.read(look.unusable[:1])  # raises, and says what is wrong with it
    if look.uneven is not None:
        radius_px = background_radius(stack, mask_diameter)
        stack = stack.normalise(2.0 * radius_px * (stack.pixel_size or 1.0))
        notify(
            "not-normalised",
            f"{look.uneven}. Each is given a background of mean 0 and standard deviation 1 here; extract "
            "again with normalisation to have that in the files.",
            stacklevel=stacklevel + 1,
        )
    outlier = np.zeros(len(stack), dtype=bool)
    outlier[look.outliers["row"]] = True
    if outlier.any():
        notify(
            "outliers",
            f"{outlier.sum():,} of {len(stack):,} particles are far out and take part in no statistic: "
            f"{count_text(look.outliers)}. They get labels all the same, and marks in the table."
            + (HOT_PIXEL_HINT if (look.outliers["kind"] == HOT).any() else ""),
            stacklevel=stacklevel + 1,
        )
    return stack.with_outliers(outlier), look.limits
