"""The gallery: all class averages, largest class first."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from sklearn_cryoem._core.validation import ParticleDataError, check_choice
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.classes import check_order
from sklearn_cryoem.particles.display import robust_grey
from sklearn_cryoem.plotting._figure import (
    FAINT,
    INK,
    check_averages,
    check_per_class,
    hide_frame,
    last_step,
    new_axes,
    round_length,
)

_ASPECT = 1.6  # width over height of a picture, about
_GAP_FRACTION = 0.05  # empty space between tiles, in tile widths


def plot_class_averages(
    classification: BaseEstimator | ArrayLike,
    stack: ParticleStack | None = None,
    *,
    counts: ArrayLike | None = None,
    resolutions: ArrayLike | None = None,
    order: str = "size",
    numbers: bool = False,
    pixel_size: float | None = None,
    n_columns: int | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw class averages as a gallery, each with its own contrast and its size.

    Parameters
    ----------
    classification : estimator or array-like of shape (n_classes, D, D)
        A fitted estimator, or a Pipeline that ends in one; or class averages.
    stack : ParticleStack, default=None
        What was classified: only its pixel size is used.
    counts : array-like of shape (n_classes,), default=None
        Particles of each class, written under it on the left; soft (fractional) sizes are rounded. By default
        those of the estimator.
    resolutions : array-like of shape (n_classes,), default=None
        Resolution of each class in Angstrom, written under it on the right; nan or inf is left blank. Take
        them from ``class_quality(classification, stack)["resolution"]``. By default none are written.
    order : {"size", "index"}, default="size"
        Largest class first, without those that hold no particle (the title says how many are shown), or all
        as they come, as they do without `counts`.
    numbers : bool, default=False
        Write each class's number into its corner, counted from 1 as in a STAR file's `rlnClassNumber`.
    pixel_size : float, default=None
        Angstrom per pixel; draws a scale bar into the first tile. By default that of the stack.
    n_columns : int, default=None
        Tiles in a row; by default a picture somewhat wider than high, with few cells left over.
    title : str, default=None
        By default the number of classes and particles. "" for none.
    ax : matplotlib Axes, default=None
        Where to draw; by default a new figure (`ax.figure`) that needs neither pyplot nor a display.

    Returns
    -------
    matplotlib Axes
        One Axes for the whole gallery, in pixels of the class averages.

    Raises
    ------
    ParticleDataError
        If an array has the wrong shape or every class is empty.
    TypeError
        If classification and particles are swapped.

    Notes
    -----
    One image is drawn, not one Axes per class, so that a thousand classes take seconds, not minutes.
    """
    check_order("plot_class_averages", classification, stack)
    model = last_step(classification)
    if model is not None:
        counts = getattr(model, "class_sizes_", None) if counts is None else counts
    tiles = check_averages(classification if model is None else model.class_averages_)  # (n_classes, D, D)
    if pixel_size is None and stack is not None and stack.pixel_size is not None:
        pixel_size = stack.pixel_size * stack.box / tiles.shape[-1]
    counts = check_per_class("counts", counts, len(tiles))
    resolutions = check_per_class("resolutions", resolutions, len(tiles))
    check_choice("order", order, ("size", "index"), owner="plot_class_averages")
    shown = np.arange(len(tiles)) if counts is None or order == "index" else class_order(counts)
    n_columns = n_columns or balanced_columns(len(shown))
    n_rows = math.ceil(len(shown) / n_columns)
    captions = _captions(shown, counts, resolutions)

    box = tiles.shape[-1]
    inch = float(np.clip(13.0 / n_columns, 0.62, 1.35))  # width of one tile on paper
    points = _caption_points(inch, captions)
    space = max(1, round(_GAP_FRACTION * box))
    strip = space + (round(box * 1.5 * points / 72 / inch) if captions else 0)
    rows, columns = np.divmod(np.arange(len(shown)), n_columns)
    picture = mosaic(
        robust_grey(tiles[shown]), rows, columns, (n_rows, n_columns), gap=(strip, space)
    )  # (n_rows * (D + strip), n_columns * (D + space))

    if ax is None:
        ax = new_axes(n_columns * inch + 0.2, n_rows * inch * (box + strip) / (box + space) + 0.4)
    ax.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0, interpolation="antialiased")
    ax.set_xlim(-0.5, picture.shape[1] - space - 0.5)
    ax.set_ylim(picture.shape[0] - space - 0.5, -0.5)
    hide_frame(ax)
    lefts, tops = columns * (box + space), rows * (box + strip)
    _write_captions(ax, captions, lefts, tops + box + 0.72 * (strip - space), box, points)
    if numbers:
        _write_numbers(ax, shown, lefts, tops, box, points)
    if pixel_size is not None:
        _scale_bar(ax, box, pixel_size, points)
    ax.set_title(_heading(counts, len(tiles), len(shown)) if title is None else title, color=INK, fontsize=11)
    return ax


def class_order(counts):
    """Indices of the classes that hold particles, the largest first."""
    order = np.argsort(-counts, kind="stable")
    shown = order[counts[order] > 0]
    if shown.size == 0:
        raise ParticleDataError(
            f"all {len(counts)} classes are empty, so there is nothing to show. Check that `counts` belongs "
            "to this fit."
        )
    return shown


def mosaic(tiles, rows, columns, shape, *, gap):
    """Put grey tiles (n_tiles, D, D) on a grid of cells, row 0 at the top, over white.

    Parameters
    ----------
    tiles : ndarray of shape (n_tiles, D, D)
        Grey values.
    rows, columns : integer array of shape (n_tiles,)
        Cell of each tile.
    shape : tuple of two int
        Number of rows and columns of the grid.
    gap : tuple of two int
        Empty pixels under and to the right of each tile.

    Returns
    -------
    ndarray of shape (n_rows * (D + gap[0]), n_columns * (D + gap[1]))
    """
    box = tiles.shape[1]
    height, width = box + gap[0], box + gap[1]
    canvas = np.ones((shape[0], height, shape[1], width), dtype=np.float32)
    canvas[rows, :box, columns, :box] = tiles
    return canvas.reshape(shape[0] * height, shape[1] * width)


def balanced_columns(n_tiles):
    """Number of columns that leaves few empty cells in a picture somewhat wider than high."""
    ideal = math.sqrt(_ASPECT * n_tiles)
    candidates = range(max(1, math.floor(0.8 * ideal)), math.ceil(1.25 * ideal) + 1)
    return min(candidates, key=lambda n: 2 * (-n_tiles % n) / n_tiles + abs(math.log(n / ideal)))


def _heading(counts, n_classes, n_shown):
    classes = f"{n_shown:,} classes" if n_shown == n_classes else f"{n_shown:,} of {n_classes:,} classes"
    return classes if counts is None else f"{round(counts.sum()):,} particles in {classes}"


def _captions(shown, counts, resolutions):
    """Text under each shown class, on the left (size) and on the right (resolution); empty without both."""
    if counts is None and resolutions is None:
        return []
    left = [""] * len(shown) if counts is None else [f"{round(count):,}" for count in counts[shown]]
    if resolutions is None:
        return [(text, "") for text in left]
    values = resolutions[shown]
    right = [f"{value:.3g} Å" if np.isfinite(value) else "" for value in values]
    return list(zip(left, right, strict=True))


def _caption_points(inch, captions):
    """Font size at which the longest caption fits under its tile."""
    longest = max((len(left) + len(right) + 2 for left, right in captions), default=6)
    return float(np.clip(72 * inch / (0.62 * longest), 4.0, 10.0))


def _write_captions(ax, captions, lefts, baselines, box, points):
    style = {"va": "baseline", "fontsize": points, "in_layout": False}  # the layout need not measure them all
    for (left, right), x, y in zip(captions, lefts, baselines, strict=False):
        ax.text(x, y, left, ha="left", color=INK, **style)
        ax.text(x + box - 1, y, right, ha="right", color=FAINT, **style)


def _write_numbers(ax, shown, lefts, tops, box, points):
    outline = [withStroke(linewidth=1.2, foreground="black")]
    for number, x, y in zip(shown + 1, lefts, tops, strict=True):
        ax.text(
            x + 0.04 * box, y + 0.03 * box, str(number), ha="left", va="top",
            fontsize=0.85 * points, color="white", path_effects=outline, in_layout=False,
        )  # fmt: skip


def _scale_bar(ax, box, pixel_size, points):
    """A bar of round length in the first tile, with its length in Angstrom above it."""
    length = round_length(0.45 * box * pixel_size)
    left, y = 0.08 * box, 0.92 * box
    ends = [left, left + length / pixel_size]
    for width, colour in ((3.0, "black"), (1.8, "white")):
        ax.plot(ends, [y, y], color=colour, lw=width, solid_capstyle="butt")
    ax.text(
        left, y - 0.05 * box, f"{length:g} Å", ha="left", va="bottom", fontsize=0.85 * points,
        color="white", path_effects=[withStroke(linewidth=1.6, foreground="black")],
    )  # fmt: skip
