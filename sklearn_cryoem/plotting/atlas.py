"""The manifold atlas: class averages where they lie in latent space, the density of particles behind them."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.display import robust_grey
from sklearn_cryoem.plotting._figure import (
    FAINT,
    INK,
    check_per_class,
    classes_of,
    hide_frame,
    new_figure,
)
from sklearn_cryoem.plotting.latent_map import density_of, grid_axes, latent_map

_DISC_DIAMETER = 0.84  # of a class average, in node spacings
_RIM_OF_DISC = 0.06  # over which a disc fades, in radii
_DENSITY_COLOURS = LinearSegmentedColormap.from_list(
    "density", ["#ffffff", "#d8efe3", "#7fcdbb", "#2c7fb8", "#253494"]
)  # white where no particle is


def plot_manifold_atlas(
    classification: BaseEstimator | ArrayLike,
    stack: ParticleStack | None = None,
    *,
    latent_nodes: ArrayLike | None = None,
    topology: str | None = None,
    latent_positions: ArrayLike | None = None,
    counts: ArrayLike | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Lay class averages out on their latent grid, with the density of particles behind them.

    A 2-D latent space is one map; a 1-D one runs in rows, like text; a 3-D one is drawn as slices along its
    third coordinate. A ring is a circle (rows beyond 48 nodes), a torus is unrolled, with dashed edges that
    meet each other, and a sphere is two hemispheres of equal area, each seen from outside.

    Parameters
    ----------
    classification : estimator or array-like of shape (n_nodes, D, D)
        A fitted `SMLClusterer`, or a Pipeline that ends in one; or class averages, with `latent_nodes`.
    stack : ParticleStack, default=None
        Particles that the estimator can transform: their density is drawn behind. By default that of the
        class sizes.
    latent_nodes : array-like of shape (n_nodes, n_components), default=None
        Where each class lies; by default `latent_nodes_` of the estimator.
    topology : {"grid", "ring", "torus", "sphere"}, default=None
        Shape of the latent space; by default that of the estimator, "grid" for class averages.
    latent_positions : array-like of shape (n_particles, n_components), default=None
        `estimator.transform(stack)`, where it is known already.
    counts : array-like of shape (n_nodes,), default=None
        Particles of each class; by default those of the estimator. Classes without a particle become a dot.
    title : str, default=None
        By default what is drawn, in words. "" for none.
    ax : matplotlib Axes, default=None
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Figure
        The unit of its first axes is one node spacing, y downwards.

    Raises
    ------
    ParticleDataError
        If the shapes do not fit each other, or the topology is unknown.
    TypeError
        If classification and particles are swapped, or the estimator has no latent positions.

    Notes
    -----
    The density is in particles per node, smoothed by a Gaussian of 0.4 node spacings.
    """
    model, averages = classes_of("plot_manifold_atlas", classification, stack)
    latent_nodes = getattr(model, "latent_nodes_", None) if latent_nodes is None else latent_nodes
    if latent_nodes is None and model is not None:
        raise TypeError(
            f"{type(model).__name__} has no map: its classes have no latent positions. Pass a fitted "
            "SMLClusterer: a RealigningClusterer has one in `clusterer_`, a DeepClusterer one for each "
            "divided class in `clusterers_`."
        )
    if np.shape(latent_nodes)[:1] != (len(averages),):
        raise ParticleDataError(
            f"latent_nodes has shape {np.shape(latent_nodes)}, expected ({len(averages)}, 1 to 3): one for "
            f"each class. Pass a fitted SMLClusterer, or `class_averages_` and `latent_nodes_` of one fit."
        )
    topology = topology or getattr(model, "topology", "grid")
    counts = getattr(model, "class_sizes_", None) if counts is None else counts
    counts = check_per_class("counts", counts, len(averages))
    if stack is not None and latent_positions is None and model is not None:
        latent_positions = classification.transform(stack)
    flat = latent_map(latent_nodes, topology)
    density = _density_behind(flat, latent_positions, counts, np.shape(latent_nodes)[1])
    if ax is None:
        left, top, right, bottom = flat.extent
        inch = min(11.0 / max(right - left, bottom - top), 1.1)
        ax = new_figure(inch * (right - left) + 1.6, inch * (bottom - top) + 0.9).add_subplot()
    _draw_density(ax, flat, density)
    seen = np.ones(len(averages), bool) if counts is None else counts >= 0.5
    _draw_discs(ax, flat, averages, seen)
    _draw_frames(ax, flat, np.asarray(latent_nodes, dtype=float))
    ax.set_title(_words(latent_nodes, topology) if title is None else title, color=INK, fontsize=11)
    return ax.figure


def _density_behind(flat, latent_positions, counts, n_coordinates):
    if latent_positions is None:
        return None if counts is None else density_of(flat, flat.xy, counts)
    positions = np.asarray(latent_positions, dtype=float)
    if positions.ndim != 2 or positions.shape[1] != n_coordinates:
        raise ParticleDataError(
            f"latent_positions has shape {positions.shape}, expected (n_particles, {n_coordinates}). "
            f"Pass `estimator.transform(stack)` of the same estimator."
        )
    return density_of(flat, flat.place(positions))


def _draw_density(ax, flat, density):
    left, top, right, bottom = flat.extent
    if density is not None:
        peak = max(float(np.quantile(density, 0.995)), 1e-12)
        shaded = ax.imshow(
            density, extent=(left, right, bottom, top), cmap=_DENSITY_COLOURS, vmin=0.0, vmax=peak,
            interpolation="bilinear",
        )  # fmt: skip
        bar = ax.figure.colorbar(shaded, ax=ax, shrink=0.5, aspect=24, pad=0.02)
        bar.set_label("particles per node", color=INK)
        bar.outline.set_visible(False)


def _draw_discs(ax, flat, averages, seen):
    """All averages as discs in one image, and a dot for each class that holds no particle."""
    box = averages.shape[-1]
    left, top, right, bottom = flat.extent
    scale = box / _DISC_DIAMETER  # pixels of the averages in a node spacing
    offset = np.arange(box) - (box - 1) / 2
    rim = np.clip((1.0 - np.hypot(offset[:, None], offset) / (box / 2)) / _RIM_OF_DISC, 0.0, 1.0)
    canvas = np.zeros((round((bottom - top) * scale) + 1, round((right - left) * scale) + 1, 4), np.float32)
    for grey, (x, y) in zip(robust_grey(averages)[seen], flat.xy[seen], strict=True):
        row, column = round((y - top) * scale - box / 2), round((x - left) * scale - box / 2)
        own = canvas[max(row, 0) : row + box, max(column, 0) : column + box]
        disc = np.stack([grey, grey, grey, rim], axis=-1)[-own.shape[0] :, -own.shape[1] :]
        own[disc[..., 3] > 0] = disc[disc[..., 3] > 0]
    extent = (left, left + canvas.shape[1] / scale, top + canvas.shape[0] / scale, top)
    ax.imshow(canvas, extent=extent, interpolation="antialiased", zorder=2)
    x, y = flat.xy[~seen].T
    ax.plot(x, y, ls="none", marker="o", ms=1.8, color=FAINT, alpha=0.7, zorder=3)


def _draw_frames(ax, flat, nodes):
    """Frames and titles of the panels, and the coordinates along them."""
    hide_frame(ax)
    left, top, right, bottom = flat.extent
    line = {"edgecolor": FAINT, "lw": 0.6}
    if flat.is_closed:
        line = {"edgecolor": INK, "lw": 1.0, "ls": (0, (5, 3))}
    for panel in flat.panels:
        middle = (panel.x + panel.width / 2, panel.y + panel.height / 2)
        if panel.radius is not None:
            ax.add_patch(Circle(middle, panel.width / 2, fill=False, zorder=1, **line))
        elif not flat.is_circle:
            ax.add_patch(Rectangle(panel[:2], panel.width, panel.height, fill=False, zorder=4, **line))
        ax.text(panel.x, panel.y - 0.08, panel.title, va="bottom", color=INK, fontsize=8)
    if flat.is_circle:
        radius = max(flat.panels[0].width / 2 - 1.2, 0.2)  # inside the circle of discs
        for value, text in ((0.0, "0"), (0.5, "0.5"), (1.0, "±1"), (-0.5, "-0.5")):
            x, y = radius * np.cos(np.pi * value), -radius * np.sin(np.pi * value)
            ax.text(x, y, text, ha="center", va="center", color=FAINT, fontsize=8)
    elif nodes.shape[1] == 2 and len(flat.panels) == 1 and grid_axes(nodes) is not None:
        across, up = grid_axes(nodes)
        _latent_ticks(ax.set_xticks, across)
        _latent_ticks(ax.set_yticks, up, is_up=True)
        ax.set_xlabel("first latent coordinate", color=INK)
        ax.set_ylabel("second latent coordinate", color=INK)
    ax.set_xlim(left - 0.05, right + 0.05)
    ax.set_ylim(bottom + 0.05, top - (0.4 if any(panel.title for panel in flat.panels) else 0.05))
    ax.set_aspect("equal")


def _latent_ticks(set_ticks, coordinates, *, is_up=False):
    """Write round latent coordinates along an axis whose unit is one node."""
    values = np.linspace(coordinates[0], coordinates[-1], 5 if len(coordinates) > 4 else len(coordinates))
    where = np.interp(values, coordinates, np.arange(len(coordinates)))
    where = len(coordinates) - 1 - where if is_up else where
    set_ticks(where, [f"{value:.2g}" for value in values], color=FAINT, fontsize=8)


def _words(latent_nodes, topology):
    """What is drawn, for the title."""
    nodes = np.asarray(latent_nodes, dtype=float)
    if topology == "sphere":
        return f"{len(nodes)} classes on a sphere"
    axes = grid_axes(nodes)
    shape = str(len(nodes)) if axes is None else " × ".join(str(len(coordinates)) for coordinates in axes)
    kind = {"ring": "ring", "torus": "torus: opposite edges meet"}
    return f"{shape} classes on a {kind.get(topology, f'{nodes.shape[1]}-D manifold')}"
