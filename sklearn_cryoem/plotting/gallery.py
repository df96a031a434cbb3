"""The gallery: all class averages, largest class first, those to leave out at the end; and volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike
from pandas import DataFrame
from sklearn.base import BaseEstimator

from sklearn_cryoem._core.validation import ParticleDataError, check_choice
from sklearn_cryoem.datasets.forward import project
from sklearn_cryoem.datasets.volumes import Volume
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.display import robust_grey
from sklearn_cryoem.plotting._figure import (
    ACCENT,
    FAINT,
    INK,
    check_per_class,
    classes_of,
    hide_frame,
    new_figure,
    round_length,
)

_ASPECT = 1.6  # width over height of a picture, about
_GAP_FRACTION = 0.05  # empty space between tiles, in tile widths
_WIDTH_INCH, _READABLE_COLUMNS = 9.0, 12  # of a notebook, and how many tiles with readable captions it has
_FEWEST = 3  # particles that make an average
DOUBT = "#ff5544"
_AVERAGES_SHOWN = 8  # the largest, beside a volume


def plot_class_averages(
    classification: BaseEstimator | ArrayLike,
    stack: ParticleStack | None = None,
    *,
    counts: ArrayLike | None = None,
    quality: Mapping[str, ArrayLike] | DataFrame | None = None,
    order: str = "size",
    numbers: bool = False,
    pixel_size: float | None = None,
    n_columns: int | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw class averages as a gallery, each with its own contrast and its size.

    Parameters
    ----------
    classification : estimator or array-like of shape (n_classes, D, D)
        A fitted estimator, or a Pipeline that ends in one; or class averages.
    stack : ParticleStack, default=None
        What was classified: only its pixel size is used.
    counts : array-like of shape (n_classes,), default=None
        Particles of each class, written under it on the left; soft (fractional) sizes are rounded. By default
        those of `quality` or of the estimator.
    quality : DataFrame or mapping of arrays, default=None
        What ``class_quality(classification, stack)`` gives. Its `resolution` in Angstrom is written under
        each class on the right, if it is finite; classes that it would not `keep` come last, marked by a
        cross.
    order : {"size", "index"}, default="size"
        Largest class first, without those of fewer than three particles, which are no averages (the title
        says how many are shown); or all as they come, as they do without `counts`.
    numbers : bool, default=False
        Write each class's number into its corner, counted from 1 as in a STAR file's `rlnClassNumber`.
    pixel_size : float, default=None
        Angstrom per pixel; draws a scale bar under the tiles. By default that of the stack.
    n_columns : int, default=None
        Tiles in a row; by default a picture somewhat wider than high, with few cells left over.
    title : str, default=None
        By default the number of classes and particles. "" for none.
    ax : matplotlib Axes, default=None
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Figure
        With one Axes for the whole gallery, in pixels of the class averages.

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
    model, tiles = classes_of("plot_class_averages", classification, stack)  # (n_classes, D, D)
    quality = {} if quality is None else quality
    if counts is None:
        counts = quality.get("size", getattr(model, "class_sizes_", None))
    if pixel_size is None and stack is not None and stack.pixel_size is not None:
        pixel_size = stack.pixel_size * stack.box / tiles.shape[-1]
    counts = check_per_class("counts", counts, len(tiles))
    resolutions = check_per_class("resolution", quality.get("resolution"), len(tiles))
    keep = check_per_class("keep", quality.get("keep"), len(tiles))
    check_choice("order", order, ("size", "index"), owner="plot_class_averages")
    in_order = counts is None or order == "index"
    shown = np.arange(len(tiles)) if in_order else class_order(counts, keep)
    n_columns = n_columns or balanced_columns(len(shown))
    n_rows = math.ceil(len(shown) / n_columns)
    captions = _captions(shown, counts, resolutions)

    box = tiles.shape[-1]
    inch = float(np.clip(_WIDTH_INCH / n_columns, 0.62, 1.35))  # width of one tile on paper
    points = _caption_points(inch, captions)
    space = max(1, round(_GAP_FRACTION * box))
    strip = space + (round(box * 1.5 * points / 72 / inch) if captions else 0)
    rows, columns = np.divmod(np.arange(len(shown)), n_columns)
    picture = mosaic(
        robust_grey(tiles[shown]), rows, columns, (n_rows, n_columns), gap=(strip, space)
    )  # (n_rows * (D + strip), n_columns * (D + space))

    if ax is None:
        height = n_rows * inch * (box + strip) / (box + space) + 0.4
        height += 0.0 if pixel_size is None else 0.25 * inch  # the scale bar
        ax = new_figure(n_columns * inch + 0.2, height).add_subplot()
    ax.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0, interpolation="antialiased")
    ax.set_xlim(-0.5, picture.shape[1] - space - 0.5)
    ax.set_ylim(picture.shape[0] - space - 0.5, -0.5)
    hide_frame(ax)
    lefts, tops = columns * (box + space), rows * (box + strip)
    _write_captions(ax, captions, lefts, tops + box + 0.72 * (strip - space), box, points)
    doubtful = np.zeros(len(shown), bool) if keep is None else keep[shown] == 0
    if numbers or doubtful.any():
        _write_numbers(ax, shown, doubtful, lefts, tops, box, points, numbers=numbers)
    if pixel_size is not None:
        _scale_bar(ax, box, pixel_size, points, picture.shape[0])
    title = _heading(counts, len(tiles), len(shown), doubtful.sum()) if title is None else title
    ax.set_title(title, color=INK, fontsize=10)
    return ax.figure


def class_order(counts, keep=None):
    """Indices of the classes to show, the largest first, then those not to keep, the largest first."""
    order = np.argsort(-counts, kind="stable")
    if keep is not None:
        order = order[np.argsort(keep[order] == 0, kind="stable")]
    shown = order[counts[order] >= min(_FEWEST, counts.max())]
    if not counts.any():
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
    most = max(_READABLE_COLUMNS, math.ceil(math.sqrt(n_tiles)))
    candidates = range(max(1, min(math.floor(0.8 * ideal), most)), min(math.ceil(1.25 * ideal), most) + 1)
    return min(candidates, key=lambda n: 2 * (-n_tiles % n) / n_tiles + abs(math.log(n / ideal)))


def _heading(counts, n_classes, n_shown, n_doubtful):
    classes = f"{n_shown:,} classes" if n_shown == n_classes else f"{n_shown:,} of {n_classes:,} classes"
    doubt = f"; ✕: {n_doubtful:,} suggested to leave out" if n_doubtful else ""
    if counts is None:
        return classes + doubt
    few = np.count_nonzero((counts > 0) & (counts < _FEWEST)) if n_shown < n_classes else 0
    hidden = f", {few:,} of one or two particles not shown" if few else ""
    return f"{round(counts.sum()):,} particles in {classes}{hidden}{doubt}"


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
    return float(np.clip(72 * inch / (0.62 * longest), 5.0, 10.0))


def _write_captions(ax, captions, lefts, baselines, box, points):
    style = {"va": "baseline", "fontsize": points, "in_layout": False}  # the layout need not measure them all
    for (left, right), x, y in zip(captions, lefts, baselines, strict=False):
        ax.text(x, y, left, ha="left", color=INK, **style)
        ax.text(x + box - 1, y, right, ha="right", color=FAINT, **style)


def _write_numbers(ax, shown, doubtful, lefts, tops, box, points, *, numbers):
    """The number of each class in the left corner of its tile, a cross in the right one of doubtful ones."""
    outline = [withStroke(linewidth=1.2, foreground="black")]
    style = {"va": "top", "path_effects": outline, "in_layout": False}
    for number, is_doubtful, x, y in zip(shown + 1, doubtful, lefts, tops + 0.03 * box, strict=True):
        if numbers:
            ax.text(x + 0.04 * box, y, str(number), color="white", fontsize=0.9 * points, **style)
        if is_doubtful:
            ax.text(x + 0.95 * box, y, "✕", ha="right", color=DOUBT, fontsize=1.1 * points, **style)


def _scale_bar(ax, box, pixel_size, points, height):
    """A bar of round length under the tiles, which are `height` pixels high, and its length in Angstrom."""
    length = round_length(0.45 * box * pixel_size)
    y, end = height + 0.1 * box, length / pixel_size
    ax.plot([0, end], [y, y], color=INK, lw=2.0, solid_capstyle="butt")
    ax.text(end + 0.06 * box, y, f"{length:g} Å", va="center", fontsize=points, color=INK)
    ax.set_ylim(height + 0.25 * box, -0.5)


# ---------------------------------------------------------------- volumes
def plot_volume(model: BaseEstimator, volume: int = 0) -> Figure:
    """Draw a volume of a `ProjectionClusterer`: three sections, views, averages and projections below them.

    Parameters
    ----------
    model : ProjectionClusterer
        Fitted.
    volume : int, default=0
        Which of its volumes.

    Returns
    -------
    figure : matplotlib Figure
        Views are drawn by rot and the cosine of the tilt: equal areas are equal parts of the sphere.
    """
    density, counts = model.volumes_[volume], model.direction_counts_[volume]
    box, angles = len(density), model.cell_angles_
    figure = new_figure(_AVERAGES_SHOWN * 1.2, 6.0)
    grid = figure.add_gridspec(3, _AVERAGES_SHOWN, height_ratios=(2, 1, 1))
    for place, name in enumerate("zyx"):
        axes = figure.add_subplot(grid[0, 2 * place : 2 * place + 2])
        axes.imshow(np.take(density, box // 2, axis=place), cmap="gray", vmin=0.0, vmax=density.max())
        axes.set_title(f"section along {name}", fontsize=8)
        hide_frame(axes)
    sphere = figure.add_subplot(grid[0, 6:])
    rot, tilt = angles.T
    sphere.scatter(np.degrees(rot), np.cos(tilt), s=60.0 * counts / max(counts.max(), 1), color=ACCENT)
    sphere.set_xlabel("rot (degrees)", fontsize=8)
    sphere.set_ylabel("cos tilt", fontsize=8)
    sphere.set_title("particles by view", fontsize=8)
    largest = np.argsort(-counts, kind="stable")[:_AVERAGES_SHOWN]
    projections = project(Volume(density, 1.0), rot[largest], tilt[largest])
    averages = model.class_averages_[volume * len(counts) + largest]
    for row, (name, images) in enumerate((("averages", averages), ("projections", projections)), start=1):
        for place, image in enumerate(images):
            axes = figure.add_subplot(grid[row, place])
            axes.imshow(image, cmap="gray")
            hide_frame(axes)
            if place == 0:
                axes.set_ylabel(name, fontsize=8)
    return figure
