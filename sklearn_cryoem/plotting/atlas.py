"""The manifold atlas: class averages where they lie in latent space, the crowd of particles behind them."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.manifold.topology import TOPOLOGIES
from sklearn_cryoem.particles.display import robust_grey
from sklearn_cryoem.plotting._closed import MOST_ON_A_CIRCLE, check_directions, draw_ring, draw_sphere
from sklearn_cryoem.plotting._tiles import (
    ACCENT,
    FAINT,
    INK,
    bare,
    check_per_class,
    check_tiles,
    disc_tiles,
    mosaic,
    new_axes,
)

_BINS_PER_NODE = 8
_BLUR_IN_NODES = 0.4  # Gaussian width of the density, in node spacings
_TILE_FRACTION = 0.84  # diameter of a class average, in node spacings
_DENSITY_COLOURS = LinearSegmentedColormap.from_list(
    "crowd", ["#ffffff", "#d8efe3", "#7fcdbb", "#2c7fb8", "#253494"]
)  # white where nobody is
_PROFILE_HEIGHT = 0.55  # room for the density curve above a row of a 1-D atlas, in node spacings


def plot_manifold_atlas(
    class_averages: ArrayLike,
    latent_nodes: ArrayLike,
    *,
    topology: str = "grid",
    latent_positions: ArrayLike | None = None,
    counts: ArrayLike | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Lay class averages out on their latent grid, with the density of particles behind them.

    A 2-D latent space is one map; a 1-D one runs in rows, like text, under a curve of the density; a 3-D
    one is drawn as slices along its third coordinate. A ring is a circle (rows beyond 48 nodes), a torus is
    unrolled, with dashed edges that meet each other, and a sphere is two hemispheres of equal area, each
    seen from outside.

    Parameters
    ----------
    class_averages : array-like of shape (n_nodes, D, D)
        `estimator.class_averages_`.
    latent_nodes : array-like of shape (n_nodes, n_components)
        Where each class lies: `estimator.latent_nodes_`, a full regular grid in any order, 1 to 3 dimensions;
        unit vectors for a sphere.
    topology : {"grid", "ring", "torus", "sphere"}, default="grid"
        Shape of the latent space: that of the estimator.
    latent_positions : array-like of shape (n_particles, n_components), default=None
        `estimator.transform(X)`; their density is drawn behind. By default the density of `counts`, if given.
    counts : array-like of shape (n_nodes,), default=None
        Particles of each class. Classes without a particle become a dot.
    title : str, default=None
        By default what is drawn, in words. "" for none.
    ax : matplotlib Axes, default=None
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes
        Its unit is one node spacing.

    Raises
    ------
    ParticleDataError
        If the shapes do not fit each other, the nodes are not a regular grid, or the topology is unknown.

    Notes
    -----
    The density is in particles per node, smoothed by a Gaussian of 0.4 node spacings.
    """
    tiles = check_tiles(class_averages)  # (n_nodes, D, D)
    counts = check_per_class("counts", counts, len(tiles))
    if topology not in TOPOLOGIES:
        raise ParticleDataError(
            f"topology is {topology!r}, expected one of {', '.join(map(repr, TOPOLOGIES))}. "
            f"Pass `estimator.topology`."
        )
    opacity = np.ones(len(tiles)) if counts is None else (counts >= 0.5).astype(float)
    discs = disc_tiles(robust_grey(tiles), opacity)  # (n_nodes, D, D, 4)
    if topology == "sphere":
        ax, words = _draw_sphere(discs, latent_nodes, latent_positions, counts, opacity, ax)
    else:
        ax, words = _draw_grid(discs, latent_nodes, latent_positions, counts, opacity, topology, ax)
    ax.set_title(words if title is None else title, color=INK, fontsize=11)
    return ax


def _draw_sphere(discs, latent_nodes, latent_positions, counts, opacity, ax):
    """Draw hemispheres; return the axes and what they show in words."""
    nodes = check_directions("latent_nodes", latent_nodes, len(discs))
    positions, weights = latent_positions, None
    if positions is not None:
        positions = check_directions("latent_positions", positions)
    elif counts is not None:
        positions, weights = nodes, counts
    ax = draw_sphere(_inset(discs), nodes, positions, weights, opacity, _DENSITY_COLOURS, ax)
    return ax, f"{len(nodes)} classes on a sphere"


def _draw_grid(discs, latent_nodes, latent_positions, counts, opacity, topology, ax):
    """Draw a grid, ring or torus; return the axes and what they show in words."""
    cells, axes = grid_cells(latent_nodes, len(discs))  # (n_nodes, n_components), list of coordinates
    positions, weights = _crowd(latent_positions, counts, cells, axes)
    shape = tuple(len(coordinates) for coordinates in axes)
    is_closed = topology != "grid"
    density = None
    if positions is not None:
        density = particle_density(positions, weights, shape, is_closed=is_closed)
    words = f"{' × '.join(map(str, shape))} classes on a "
    if topology == "ring" and len(discs) <= MOST_ON_A_CIRCLE:
        return draw_ring(_inset(discs), cells[:, 0], density, opacity, ax), words + "ring"
    if len(shape) == 1:
        ax = _draw_rows(discs, cells[:, 0], axes[0], density, opacity, ax)
    else:
        ax = _draw_maps(discs, cells, axes, density, opacity, ax, is_closed=is_closed)
    kind = {"grid": f"{len(shape)}-D manifold", "ring": "ring: the last is next to the first"}
    return ax, words + kind.get(topology, "torus: opposite edges meet")


def grid_cells(latent_nodes, n_nodes):
    """Integer cell of each node of a regular grid, and the coordinates along each axis.

    Parameters
    ----------
    latent_nodes : array-like of shape (n_nodes, n_components)
        Full regular grid, in any order.
    n_nodes : int
        How many there must be.

    Returns
    -------
    cells : integer ndarray of shape (n_nodes, n_components)
    axes : list of n_components ascending coordinate arrays
    """
    nodes = np.asarray(latent_nodes, dtype=float)
    if nodes.ndim != 2 or nodes.shape[0] != n_nodes or nodes.shape[1] not in (1, 2, 3):
        raise ParticleDataError(
            f"latent_nodes has shape {nodes.shape}, expected ({n_nodes}, 1 to 3): a node for each class. "
            f"Pass `latent_nodes_` and `class_averages_` of the same estimator."
        )
    axes, columns = [], []
    for coordinate in nodes.T:
        values, index = np.unique(np.round(coordinate, 9), return_inverse=True)
        axes.append(values)
        columns.append(index)
    cells = np.stack(columns, axis=1)  # (n_nodes, n_components)
    n_cells = math.prod(map(len, axes))
    if n_cells != n_nodes or len(np.unique(cells, axis=0)) != n_nodes:
        raise ParticleDataError(
            f"the {n_nodes} latent nodes are not a regular grid (their coordinates span {n_cells} cells). "
            f"Draw irregular classes with plot_class_averages instead."
        )
    return cells, axes


def particle_density(positions, weights, shape, *, is_closed=False):
    """Particles per node around each point of a grid of nodes, smoothed.

    Parameters
    ----------
    positions : ndarray of shape (n_particles, n_components)
        In node spacings: 0 is the first node of an axis, shape - 1 its last.
    weights : ndarray of shape (n_particles,) or None
        How much each counts; None for one.
    shape : tuple of int
        Nodes along each axis.
    is_closed : bool, default=False
        Whether the last node of an axis is next to the first.

    Returns
    -------
    ndarray of shape (8 * shape[0], 8 * shape[1][, shape[2]])
        Eight bins to a node along the first two axes, from -0.5 to shape - 0.5; one along a third.
    """
    per_node = [_BINS_PER_NODE, _BINS_PER_NODE, 1][: len(shape)]
    bins = [n * fine for n, fine in zip(shape, per_node, strict=True)]
    edges = [(-0.5, n - 0.5) for n in shape]
    upper = np.nextafter(np.array(shape) - 0.5, 0)
    if is_closed:
        positions = (positions + 0.5) % np.array(shape) - 0.5
    inside = np.clip(positions, -0.5, upper)  # what lies beyond the grid's rim is drawn on it
    histogram, _ = np.histogramdd(inside, bins=bins, range=edges, weights=weights)
    blur = [_BLUR_IN_NODES * fine if fine > 1 else 0.0 for fine in per_node]
    return gaussian_filter(histogram, blur, mode="wrap" if is_closed else "reflect") * math.prod(per_node)


def _crowd(latent_positions, counts, cells, axes):
    """Positions of what is counted, in node spacings, and their weights (None: each counts one)."""
    if latent_positions is None:
        return (None, None) if counts is None else (cells.astype(float), counts)
    positions = np.asarray(latent_positions, dtype=float)
    if positions.ndim != 2 or positions.shape[1] != len(axes):
        raise ParticleDataError(
            f"latent_positions has shape {positions.shape}, expected (n_particles, {len(axes)}). "
            f"Pass `estimator.transform(X)` of the same estimator."
        )
    first = np.array([coordinates[0] for coordinates in axes])
    spacing = np.array([np.ptp(c) / (len(c) - 1) if len(c) > 1 else 1.0 for c in axes])
    return (positions - first) / spacing, None


def _inset(discs):
    """Discs with a transparent rim, so that one disc fills `_TILE_FRACTION` of its cell."""
    box = discs.shape[1]
    margin = round(0.5 * box * (1 / _TILE_FRACTION - 1))
    return np.pad(discs, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


def _draw_maps(discs, cells, axes, density, opacity, ax, *, is_closed=False):
    """A 2-D atlas, or the slices of a 3-D one side by side; first coordinate to the right, second up."""
    n_x, n_y = len(axes[0]), len(axes[1])
    slices = axes[2] if len(axes) == 3 else np.zeros(1)
    slice_of = cells[:, 2] if len(axes) == 3 else np.zeros(len(cells), dtype=int)
    across = min(len(slices), max(1, math.ceil(math.sqrt(1.4 * len(slices) * n_y / n_x))))
    down = math.ceil(len(slices) / across)
    step_x, step_y = n_x + 0.6, n_y + 1.0
    width, height = across * step_x - 0.6, down * step_y - 1.0
    if ax is None:
        inch = min(11.0 / max(width, height), 1.1)
        ax = new_axes(inch * width + 1.6, inch * height + 0.9)
    densities = None if density is None else density.reshape(*density.shape[:2], -1)  # (bins, bins, n_slices)
    peak = 1.0 if density is None else max(float(np.quantile(density, 0.995)), 1e-12)
    shaded = None
    for index, level in enumerate(slices):
        x0, y0 = (index % across) * step_x, -(index // across) * step_y
        extent = (x0 - 0.5, x0 + n_x - 0.5, y0 - 0.5, y0 + n_y - 0.5)
        if densities is not None:
            shaded = ax.imshow(
                densities[:, :, index].T, extent=extent, origin="lower", cmap=_DENSITY_COLOURS,
                vmin=0.0, vmax=peak, interpolation="bilinear",
            )  # fmt: skip
        own = slice_of == index
        picture = mosaic(_inset(discs[own]), n_y - 1 - cells[own, 1], cells[own, 0], (n_y, n_x), fill=0.0)
        ax.imshow(picture, extent=extent, origin="upper", interpolation="antialiased", zorder=2)
        rim = (
            {"edgecolor": INK, "lw": 1.0, "ls": (0, (5, 3))} if is_closed else {"edgecolor": FAINT, "lw": 0.6}
        )
        ax.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), n_x, n_y, fill=False, zorder=4, **rim))
        _dots(ax, x0 + cells[own & (opacity == 0), 0], y0 + cells[own & (opacity == 0), 1])
        if len(axes) == 3:
            ax.text(
                x0 - 0.4, y0 + n_y - 0.45, f"third coordinate {level:.2g}", va="bottom", color=INK, fontsize=8
            )
    ax.set_xlim(-0.55, width - 0.45)
    ax.set_ylim(n_y - 0.55 - height, n_y - 0.45 + (0.8 if len(axes) == 3 else 0.0))
    ax.set_aspect("equal")
    bare(ax)
    if len(axes) == 2:
        _latent_ticks(ax.set_xticks, axes[0])
        _latent_ticks(ax.set_yticks, axes[1])
        ax.set_xlabel("first latent coordinate", color=INK)
        ax.set_ylabel("second latent coordinate", color=INK)
    if shaded is not None:
        bar = ax.figure.colorbar(shaded, ax=ax, shrink=0.5, aspect=24, pad=0.02)
        bar.set_label("particles per node", color=INK)
        bar.outline.set_visible(False)
    return ax


def _draw_rows(discs, cells, coordinates, density, opacity, ax):
    """A 1-D atlas: nodes from left to right in rows, each row under the density along it."""
    n_nodes = len(coordinates)
    per_row = n_nodes if n_nodes <= 12 else math.ceil(n_nodes / round(math.sqrt(n_nodes / 2.6)))
    n_rows = math.ceil(n_nodes / per_row)
    step = 1.0 + (_PROFILE_HEIGHT + 0.1 if density is not None else 0.15)
    if ax is None:
        inch = min(11.0 / per_row, 1.1)
        ax = new_axes(inch * (per_row + 1), inch * n_rows * step + 0.6)
    ordered = _inset(discs[np.argsort(cells)])  # (n_nodes, D, D, 4)
    seen = opacity[np.argsort(cells)]
    peak = None if density is None else max(float(density.max()), 1e-12)
    for row in range(n_rows):
        own = slice(row * per_row, min((row + 1) * per_row, n_nodes))
        count, y = own.stop - own.start, -row * step
        picture = mosaic(ordered[own], np.zeros(count, int), np.arange(count), (1, count), fill=0.0)
        ax.imshow(
            picture, extent=(-0.5, count - 0.5, y - 0.5, y + 0.5), interpolation="antialiased", zorder=2
        )
        _dots(ax, np.flatnonzero(seen[own] == 0), np.full(np.sum(seen[own] == 0), y))
        ax.text(-0.6, y, f"{coordinates[own.start]:+.2f}", ha="right", va="center", color=FAINT, fontsize=8)
        if density is not None:
            part = density[own.start * _BINS_PER_NODE : own.stop * _BINS_PER_NODE]
            x = (np.arange(len(part)) + 0.5) / _BINS_PER_NODE - 0.5
            ax.fill_between(
                x, y + 0.5, y + 0.5 + _PROFILE_HEIGHT * part / peak, color=ACCENT, alpha=0.4, lw=0
            )
    if density is not None:
        ax.text(
            per_row - 0.5, 0.55 + _PROFILE_HEIGHT, f"blue: particles per node, up to {peak:,.0f}",
            ha="right", va="bottom", color=ACCENT, fontsize=8,
        )  # fmt: skip
    ax.set_xlim(-1.4, per_row - 0.4)
    ax.set_ylim(-(n_rows - 1) * step - 0.6, step - 0.2)
    ax.set_aspect("equal")
    bare(ax)
    return ax


def _dots(ax, x, y):
    """Mark classes that hold no particle."""
    ax.plot(x, y, ls="none", marker="o", ms=1.8, color=FAINT, alpha=0.7, zorder=3)


def _latent_ticks(set_ticks, coordinates):
    """Write round latent coordinates along an axis whose unit is one node."""
    values = np.linspace(coordinates[0], coordinates[-1], 5 if len(coordinates) > 4 else len(coordinates))
    where = np.interp(values, coordinates, np.arange(len(coordinates)))
    set_ticks(where, [f"{value:.2g}" for value in values], color=FAINT, fontsize=8)
