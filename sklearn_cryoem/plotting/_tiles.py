"""Many small images as one picture: contrast of each tile, the mosaic, the figure under it."""

import io
import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sklearn_cryoem._core.exceptions import ParticleDataError

INK = "#2b2b2b"
FAINT = "#8a8a8a"
PAPER = "#ffffff"
ACCENT = "#2166ac"


class InlineFigure(Figure):
    """A figure that a notebook shows when it is a cell's last value, without pyplot or a GUI backend."""

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
        return buffer.getvalue()


def new_axes(width_inch, height_inch):
    """Axes that fill a new figure of the given size; no pyplot state is touched."""
    figure = InlineFigure(figsize=(width_inch, height_inch), dpi=100, layout="constrained", facecolor=PAPER)
    return figure.add_subplot()


def check_tiles(class_averages, name="class_averages"):
    """Return `class_averages` as float32 of shape (n_classes, D, D), or say what is wrong with it."""
    tiles = np.asarray(class_averages, dtype=np.float32)
    if tiles.ndim != 3 or tiles.shape[1] != tiles.shape[2] or tiles.size == 0:
        raise ParticleDataError(
            f"{name} has shape {tiles.shape}, expected (n_classes, D, D) with at least one class. "
            f"Pass `estimator.class_averages_`; for vectors, reshape them to square images first."
        )
    return tiles


def check_per_class(name, values, n_classes):
    """Return `values` as a float array of length `n_classes`, or None."""
    if values is None:
        return None
    values = np.asarray(values, dtype=float)
    if values.shape != (n_classes,):
        raise ParticleDataError(
            f"{name} has shape {values.shape}, expected ({n_classes},): one number for each class average. "
            f"Take it from the same fit as the class averages."
        )
    return values


def mosaic(tiles, rows, columns, shape, *, gap=(0, 0), fill=1.0):
    """Put tiles on a grid of cells, row 0 at the top.

    Parameters
    ----------
    tiles : ndarray of shape (n_tiles, height, width) or (n_tiles, height, width, 4)
        Grey or RGBA.
    rows, columns : integer array of shape (n_tiles,)
        Cell of each tile.
    shape : tuple of two int
        Number of rows and columns of the grid.
    gap : tuple of two int
        Empty pixels under and to the right of each tile.
    fill : float
        Value of pixels that no tile covers.

    Returns
    -------
    ndarray of shape (n_rows * (height + gap), n_columns * (width + gap)[, 4])
    """
    height, width = tiles.shape[1] + gap[0], tiles.shape[2] + gap[1]
    canvas = np.full((shape[0], height, shape[1], width, *tiles.shape[3:]), fill, dtype=np.float32)
    canvas[rows, : tiles.shape[1], columns, : tiles.shape[2]] = tiles
    return canvas.reshape(shape[0] * height, shape[1] * width, *tiles.shape[3:])


def disc_tiles(grey, opacity, edge_fraction=0.06):
    """Grey images as RGBA discs with a soft rim, so that what lies behind shows between them.

    Parameters
    ----------
    grey : ndarray of shape (n_tiles, D, D)
        Grey values in [0, 1].
    opacity : ndarray of shape (n_tiles,)
        1 is opaque, 0 leaves the tile out.
    edge_fraction : float
        Width of the rim over which a disc fades, in radii.

    Returns
    -------
    ndarray of shape (n_tiles, D, D, 4)
    """
    box = grey.shape[-1]
    offset = np.arange(box) - (box - 1) / 2
    radius = np.hypot(offset[:, None], offset[None, :]) / (box / 2)
    rim = np.clip((1.0 - radius) / edge_fraction, 0.0, 1.0)  # (D, D)
    tiles = np.repeat(grey[..., None], 4, axis=-1)  # (n_tiles, D, D, 4)
    tiles[..., 3] = rim * np.asarray(opacity)[:, None, None]
    return tiles


def round_length(limit):
    """Largest of 1, 2 or 5 times a power of ten that is not above `limit`; for scale bars."""
    power = 10.0 ** math.floor(math.log10(limit))
    return max(step * power for step in (1, 2, 5) if step * power <= limit * (1 + 1e-9))


def bare(ax: Axes):
    """Remove ticks and frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
