"""One look at every image of a stack: outliers are marked, and what is not normalised is.

An image that is a hundred times too bright, torn, striped or hit by a cosmic ray weighs as much as
thousands of sound ones in every sum of squares. Each image is measured once against the others, and an
outlier takes part in no statistic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sklearn_cryoem._core.parallel import ordered_map, row_blocks
from sklearn_cryoem._core.progress import progress
from sklearn_cryoem._core.validation import notify
from sklearn_cryoem.manifold.noise import MEASURED_NOISE
from sklearn_cryoem.particles.preprocess import BACKGROUND_SHARE, normalised_radius
from sklearn_cryoem.particles.sources import ImageSource
from sklearn_cryoem.physics.fourier import Float64
from sklearn_cryoem.physics.images import Measures, Ruler, band_edges
from sklearn_cryoem.physics.masks import check_mask_diameter, pixel_radius

if TYPE_CHECKING:
    from sklearn_cryoem.particles.stack import ParticleStack

PIXELS_AT_ONCE = 2**17  # measured together: small enough for the processor's caches
MAX_RADIUS_SHARE = 0.48  # of the box: some background is left, whatever the mask
MIN_IMAGES = 20  # that tell what is usual
POWER_RATIO = 6.0  # to the median: twice the contrast is four times the power, and occurs; thrice is nine
COARSE_RATIO, COARSE_SHARE = 400.0, 0.1  # where ice and carbon are seen: shells below this part of the box
HOT_PIXEL, STRIPE = 12.0, 10.0  # standard deviations; the largest of 10^6 pixels of noise has 5
LEVEL = 5.0  # standard deviations of the background
TORN_SHARE = 0.2  # of the lines; boxes at the edge of a micrograph have fewer blank ones
SPREADS = 8.0  # robust standard deviations that lie beyond the median, in any case
MAX_ROWS = 5  # that a message names of a kind
UNEVEN_LEVEL, UNEVEN_SPREAD = 1.0, 0.5  # of the background's standard deviation: its mean, and its range
USUAL_SHARE = 0.7  # of images of one scale: the others are faults, and no stack of many scales
HOT = "with hot pixels"
CLIP_HINT = " Hot pixels can be clipped: read with clip_hot_pixels=True."


@dataclass(frozen=True)
class Look:
    """What a look at every image of a stack has found.

    Attributes
    ----------
    measures : Measures
        Of the images as they came.
    unusable : ndarray of shape (n_bad,), int
        Rows that are constant or not finite.
    not_normalised : str or None
        What is said of backgrounds that differ in level or spread.
    is_uneven : bool
        Whether their spreads differ, so that fits normalise them; a common level does no harm.
    outliers : DataFrame
        As `find_outliers` returns it; of the normalised images where they are uneven.
    limits : ndarray of shape (2, 4 + n_bands)
        What was taken as usual.
    """

    measures: Measures
    unusable: NDArray[np.int64]
    not_normalised: str | None
    is_uneven: bool
    outliers: pd.DataFrame
    limits: Float64

    @property
    def shared_fault(self) -> str | None:
        """What is said of a fault that most images have, none of which is an outlier for it; None without."""
        if not self.measures.have_backgrounds:
            return None
        faults = (
            (self.measures.hot_pixel > HOT_PIXEL, "pixels", HOT_PIXEL, CLIP_HINT),
            (self.measures.stripe > STRIPE, "lines", STRIPE, " Correct them, and extract again."),
        )
        for has_it, what, limit, remedy in faults:
            if np.mean(has_it) > 0.5:
                return (
                    f"{np.count_nonzero(has_it):,} of {len(has_it):,} images have {what} more than {limit:g} "
                    "standard deviations off their neighbours, as a defect of the detector leaves them; so "
                    f"many are not left out.{remedy}"
                )
        return None


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
    measures = _measure(stack.images, Ruler(box, radius_px), n_jobs, verbose)
    not_normalised, is_uneven, judged = None, False, measures
    if limits is None:
        if noise not in MEASURED_NOISE:
            n_background = np.count_nonzero(pixel_radius(box) > radius_px)
            not_normalised, is_uneven = _judge_backgrounds(measures, stack.noise_group, n_background)
        judged = measures.normalised() if is_uneven else measures
        limits = usual_limits(judged, box)
    found = find_outliers(judged, limits, stack.noise_group, box, groups_differ=noise == "group")
    return Look(measures, np.flatnonzero(measures.unusable), not_normalised, is_uneven, found, limits)


def _measure(source: ImageSource, ruler: Ruler, n_jobs: int | None, verbose: int) -> Measures:
    """Measure all images, block by block; the result does not depend on the number of threads."""
    blocks = row_blocks(len(source), max(1, PIXELS_AT_ONCE // ruler.box**2)) or [slice(0, 0)]
    parts = []
    with progress(len(source), "looking at every image", verbose=verbose) as bar:
        measured = ordered_map(
            lambda rows: ruler(source.read(rows, check=False)), blocks, n_jobs=n_jobs, threads_only=True
        )
        for block, part in zip(blocks, measured, strict=True):
            parts.append(part)
            bar.update(block.stop - block.start)
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Measures)}
    return Measures(**{name: np.concatenate(values) for name, values in columns.items()})


def background_radius(stack: ParticleStack, mask_diameter: float | None) -> float:
    """Distance from the centre, in pixels, beyond which an image is background."""
    check_mask_diameter(mask_diameter, stack.box, stack.pixel_size)
    radius_px = BACKGROUND_SHARE * stack.box
    if mask_diameter is not None:
        radius_px = 0.5 * mask_diameter / stack.pixel_length
    return min(radius_px, MAX_RADIUS_SHARE * stack.box)


def normalised_like(stack: ParticleStack, background_px: float | None) -> ParticleStack:
    """The stack, normalised by its background if the particles of a fit were.

    Parameters
    ----------
    stack : ParticleStack
        Any particles.
    background_px : float or None
        Where the background of those of the fit begins, in pixels; None if they were not normalised.
    """
    if background_px is None or normalised_radius(stack.images) is not None:
        return stack
    return stack.normalise(2.0 * background_px * stack.pixel_length)


def screened(
    stack: ParticleStack,
    mask_diameter: float | None = None,
    *,
    noise: str = "shell",
    limits: Float64 | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> tuple[ParticleStack, Float64]:
    """`ParticleStack.screen` that also returns what was usual, for further images of the same kind.

    Parameters
    ----------
    stack, mask_diameter, noise, limits, n_jobs, verbose
        As of `look_at`.
    """
    look = look_at(stack, mask_diameter, noise=noise, limits=limits, n_jobs=n_jobs, verbose=verbose)
    if len(look.unusable):
        stack.read(look.unusable[:1])  # raises, and says what is wrong with it
    if look.is_uneven:
        radius_px = background_radius(stack, mask_diameter)
        stack = stack.normalise(2.0 * radius_px * stack.pixel_length)
        notify(
            "not-normalised",
            f"{look.not_normalised}. Each is given a background of mean 0 and standard deviation 1 here; "
            "extract again with normalisation to have that in the files.",
        )
    if look.shared_fault is not None:
        notify("shared-fault", look.shared_fault)
    outlier = np.zeros(len(stack), dtype=bool)
    outlier[look.outliers["row"]] = True
    if outlier.any():
        remark = "They get labels all the same, and marks in the table."
        notify(
            "outliers",
            f"{outlier.sum():,} of {len(stack):,} particles are outliers and take part in no statistic: "
            f"{outlier_text(look.outliers, remark)}",
        )
    return stack.with_outliers(outlier), look.limits


def outlier_text(found: pd.DataFrame, remark: str) -> str:
    """Kinds with counts and first rows, "3 too bright (rows 4, 17, 90), 1 torn (row 8).", and a remark."""
    parts = []
    for kind, rows in found.groupby("kind", sort=False)["row"]:
        first = ", ".join(map(str, rows[:MAX_ROWS]))
        more = ", ..." if len(rows) > MAX_ROWS else ""
        parts.append(f"{len(rows):,} {kind} (row{'s' if len(rows) > 1 else ''} {first}{more})")
    return f"{', '.join(parts)}. {remark}{CLIP_HINT if (found['kind'] == HOT).any() else ''}"


def _judge_backgrounds(
    measures: Measures, group: NDArray[np.int64], n_background: int
) -> tuple[str | None, bool]:
    """What is said of backgrounds that are not normalised, and whether their spreads differ."""
    if not measures.have_backgrounds:  # masked, or without noise: nothing to judge by
        return None, False
    seen = measures.spread > 0
    level, spread = measures.level[seen], measures.spread[seen]
    usual = _of_usual_scale(spread, group[seen])
    scatter = 2.6 / math.sqrt(2 * n_background)  # of 80 % of the spreads of white noise
    if usual.mean() < USUAL_SHARE or _is_uneven(spread[usual], scatter):
        usual[:] = True  # scales of all kinds, as they come from a microscope
    level, spread = level[usual], spread[usual]
    relative = float(np.median(np.abs(level) / spread))
    is_uneven = _is_uneven(spread, scatter)
    if not is_uneven and relative <= UNEVEN_LEVEL:
        return None, False
    low, high = np.percentile(spread, [10, 90])
    text = (
        f"the images are not normalised: their background has a mean of {relative:.2g} standard deviations "
        f"(median of {len(level):,} images), and its standard deviation goes from {low:.3g} to {high:.3g}"
    )
    return text, is_uneven


def _is_uneven(spread: Float64, scatter: float) -> bool:
    low, high = np.percentile(spread, [10, 90])
    return bool((high - low) / np.median(spread) - scatter > UNEVEN_SPREAD)


def _of_usual_scale(spread: Float64, group: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which backgrounds are of the scale of most; all, where those of another scale lie among their like."""
    usual = np.abs(np.log(spread / np.median(spread))) <= 0.5 * np.log(POWER_RATIO)
    of_group = pd.Series(usual).groupby(group)
    others = (of_group.transform("sum") - usual) / (of_group.transform("size") - 1)  # NaN for one alone
    among_their_like = np.count_nonzero(others[~usual] < 0.5)
    return usual | (2 * among_their_like > np.count_nonzero(~usual))


def usual_limits(measures: Measures, box: int) -> Float64:
    """Smallest and largest value of each measure that makes no outlier; (2, 4 + n_bands).

    Parameters
    ----------
    measures : Measures
        Of the images that say what is usual. Fewer than `MIN_IMAGES` say nothing of power and level.
    box : int
        Their side.
    """
    values = measures.values
    values = values[np.isfinite(values).all(axis=1)]
    if len(values) < MIN_IMAGES:
        limits = np.repeat([[-np.inf], [np.inf]], values.shape[1], axis=1)
        if measures.have_backgrounds:
            limits[1, 1:4] = HOT_PIXEL, STRIPE, TORN_SHARE
        return limits
    median, reach = np.median(values, axis=0), SPREADS * _robust_sd(values)
    low, high = median - np.maximum(reach, LEVEL), median + np.maximum(reach, LEVEL)
    low[1:4] = -np.inf
    high[1:3] = np.maximum((median + reach)[1:3], [HOT_PIXEL, STRIPE])
    high[3] = median[3] + max(reach[3], TORN_SHARE)
    ratio = np.maximum(reach[4:], _log_ratios(box))
    low[4:], high[4:] = median[4:] - ratio, median[4:] + ratio
    return np.stack([low, high])


def _log_ratios(box: int) -> Float64:
    """Logarithm of the power in units of the usual one that is let pass, in each band; (n_bands,)."""
    upper = np.array(band_edges(box)[1:])
    coarse = (upper <= COARSE_SHARE * box) | (np.arange(len(upper)) == 0)
    return np.asarray(np.log(np.where(coarse, COARSE_RATIO, POWER_RATIO)))


def _robust_sd(values: Float64) -> Float64:
    return np.asarray(1.4826 * np.median(np.abs(values - np.median(values, axis=0)), axis=0))


def find_outliers(
    measures: Measures, limits: Float64, group: NDArray[np.int64], box: int, *, groups_differ: bool = False
) -> pd.DataFrame:
    """List outliers, against all and against their noise group.

    Parameters
    ----------
    measures : Measures
        Of the images.
    limits : ndarray of shape (2, 4 + n_bands)
        What is usual, from `usual_limits`.
    group : ndarray of shape (n_images,), int
        Noise group of each. Groups of fewer than `MIN_IMAGES` are not judged by themselves.
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
    power = pd.DataFrame(measures.log_power).groupby(group)
    is_large = power[0].transform("count").to_numpy() >= MIN_IMAGES
    if groups_differ:
        high[is_large, 4:] = low[is_large, 4:] = False
    if is_large.any():
        own = np.where(is_large[:, None], measures.log_power - power.transform("median").to_numpy(), 0.0)
        ratio = np.maximum(SPREADS * _robust_sd(own[is_large]), _log_ratios(box))
        excess = np.where(np.abs(own) > ratio, own, excess)
        high[:, 4:] |= own > ratio
        low[:, 4:] |= own < -ratio
    worst = np.exp(np.take_along_axis(excess, np.abs(excess).argmax(axis=1)[:, None], axis=1)[:, 0])
    kinds = {  # the first that fits is named
        "striped": (high[:, 2], "has a line {:.3g} standard deviations off its neighbours", measures.stripe),
        HOT: (high[:, 1], "has a pixel {:.3g} standard deviations off", measures.hot_pixel),
        "torn": (high[:, 3], "is blank in {:.0%} of its lines", measures.blank_lines),
        "too bright": (high[:, 4:].any(axis=1), "has {:.3g} times the power of most", worst),
        "too faint": (low[:, 4:].any(axis=1), "has {:.3g} times the power of most", worst),
        "of another grey level": (high[:, 0] | low[:, 0], "has a background of {:.3g}", measures.level),
    }
    kind = np.select([is_kind for is_kind, _, _ in kinds.values()], list(kinds), default="")
    rows = np.flatnonzero(kind != "")
    problem = [kinds[kind[row]][1].format(kinds[kind[row]][2][row]) for row in rows]
    return pd.DataFrame({"row": rows, "kind": kind[rows], "problem": problem})
