"""Atlases of closed latent spaces: a ring as a circle, a sphere as two hemispheres of equal area."""

import numpy as np
from matplotlib.patches import Circle, Polygon
from scipy.spatial import cKDTree

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.manifold.topology import TOPOLOGIES
from sklearn_cryoem.plotting._tiles import ACCENT, FAINT, INK, bare, new_axes

MOST_ON_A_CIRCLE = 48  # nodes; more are so small on a circle that rows serve better

_ROOM = 0.5  # about a ring for its labels, in nodes
_PIXELS_PER_NODE = 8
_POINTS_PER_NODE = 16  # of the lattice that particles on a sphere are counted on
_PROFILE_SHARE = 0.6  # of a ring's radius: how far the density reaches inwards


def draw_ring(discs, cells, density, seen, ax):
    """Nodes on a circle, coordinate 0 to the right and growing anticlockwise; the density inside.

    Parameters
    ----------
    discs : ndarray of shape (n_nodes, D, D, 4)
        Pictures of the nodes; each fills a square of side 1.
    cells : ndarray of shape (n_nodes,)
        Place of each node along the ring, which begins at coordinate -1.
    density : ndarray of shape (n_bins,) or None
        Particles per node around the ring, from half a node before the first on.
    seen : ndarray of shape (n_nodes,)
        Nodes that hold particles; the others become dots.
    ax : matplotlib Axes or None
        Where to draw.
    """
    n_nodes = len(discs)
    radius = max(0.5 / np.sin(np.pi / n_nodes), 0.8) if n_nodes > 1 else 0.8
    reach = radius + 0.5 + _ROOM
    if ax is None:
        side = min(9.0, 1.1 * 2 * reach)
        ax = new_axes(side, side)
    angle = np.pi * (2.0 * cells / n_nodes - 1.0)
    _place(ax, discs, radius * np.cos(angle), radius * np.sin(angle), seen)
    rim = radius - 0.55
    if density is not None and rim > 0:
        step = 2.0 * np.pi / len(density)
        turn = -np.pi + step * (np.arange(len(density)) + 0.5) - np.pi / n_nodes
        height = rim * (1.0 - _PROFILE_SHARE * density / max(float(density.max()), 1e-12))
        outer = rim * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        inner = height[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        outline = np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])
        ax.add_patch(Polygon(outline, closed=True, facecolor=ACCENT, alpha=0.4, lw=0))
        ax.text(
            0, -reach, f"blue: particles per node, up to {density.max():,.0f}",
            ha="center", va="top", color=ACCENT, fontsize=8,
        )  # fmt: skip
    for value, text in ((0.0, "0"), (0.5, "0.5"), (1.0, "±1"), (-0.5, "-0.5")):
        far = radius + 0.5 + 0.5 * _ROOM
        x, y = far * np.cos(np.pi * value), far * np.sin(np.pi * value)
        ax.text(x, y, text, ha="center", va="center", color=FAINT, fontsize=8)
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach - 0.3, reach)
    ax.set_aspect("equal")
    bare(ax)
    return ax


def draw_sphere(discs, nodes, positions, weights, seen, colours, ax):
    """Two hemispheres side by side, each seen from outside, which touch at +x.

    Parameters
    ----------
    discs : ndarray of shape (n_nodes, D, D, 4)
        Pictures of the nodes; each fills a square of side 1.
    nodes : ndarray of shape (n_nodes, 3)
        Unit vectors.
    positions : ndarray of shape (n_particles, 3) or None
        Unit vectors of what is counted.
    weights : ndarray of shape (n_particles,) or None
        How much each counts.
    seen : ndarray of shape (n_nodes,)
        Nodes that hold particles; the others become dots.
    colours : matplotlib Colormap
        Of the density.
    ax : matplotlib Axes or None
        Where to draw.
    """
    spacing = float(TOPOLOGIES["sphere"].spacing((len(nodes),))[0])
    radius = np.sqrt(2.0) / spacing  # of a hemisphere, in node spacings
    reach = radius + 0.6
    if ax is None:
        inch = min(6.0 / (2 * reach), 1.1)
        ax = new_axes(inch * 4 * reach + 1.6, inch * 2 * reach + 0.9)
    pictures = []  # middle, rim and density of each hemisphere
    for north, middle in ((True, -reach), (False, reach)):
        own = nodes[:, 2] >= 0 if north else nodes[:, 2] < 0
        x, y = hemisphere_map(nodes[own], north)
        _place(ax, discs[own], middle + x / spacing, y / spacing, seen[own])
        rim = ax.add_patch(Circle((middle, 0), radius, fill=False, edgecolor=FAINT, lw=0.6, zorder=1))
        if positions is not None:
            picture = _density_picture(positions, weights, north, spacing, len(nodes))
            pictures.append((middle, rim, picture))
        ax.text(middle, radius + 0.65, "z > 0" if north else "z < 0", ha="center", color=INK, fontsize=9)
        for sign, mark in ((1, "+x"), (-1, "-x")):
            side = sign if north else -sign
            ax.annotate(
                mark, (middle + side * radius, 0), xytext=(4 * side, -2), textcoords="offset points",
                ha="left" if side > 0 else "right", va="top", color=FAINT, fontsize=7, zorder=5,
            )  # fmt: skip
    peak = max((float(picture.max()) for *_, picture in pictures), default=0.0)
    for middle, rim, picture in pictures:
        extent = (middle - radius, middle + radius, -radius, radius)
        shaded = ax.imshow(
            picture, extent=extent, origin="lower", cmap=colours, vmin=0.0, vmax=max(peak, 1e-12),
            interpolation="bilinear", zorder=0,
        )  # fmt: skip
        shaded.set_clip_path(rim)
    ax.set_xlim(-2 * reach, 2 * reach)
    ax.set_ylim(-reach, reach + 0.8)
    ax.set_aspect("equal")
    bare(ax)
    if pictures:
        bar = ax.figure.colorbar(shaded, ax=ax, shrink=0.5, aspect=24, pad=0.02)
        bar.set_label("particles per node", color=INK)
        bar.outline.set_visible(False)
    return ax


def hemisphere_map(directions, north):
    """Lambert's map of equal area of directions (n, 3), seen from outside; x and y of shape (n,)."""
    z = directions[:, 2] if north else -directions[:, 2]
    across = np.maximum(np.hypot(directions[:, 0], directions[:, 1]), 1e-12)
    scale = np.sqrt(2.0 * np.maximum(1.0 - z, 0.0)) / across
    return (directions[:, 0] if north else -directions[:, 0]) * scale, directions[:, 1] * scale


def from_hemisphere(x, y, north):
    """Directions (n, 3) of points of `hemisphere_map`; those beyond its rim lie on the other hemisphere."""
    square = x**2 + y**2
    z = 1.0 - square / 2.0
    scale = np.sqrt(np.maximum(1.0 - square / 4.0, 0.0))
    return np.stack([(x if north else -x) * scale, y * scale, z if north else -z], axis=1)


def sphere_density(positions, weights, directions, n_nodes, blur):
    """Particles per node at some directions, smoothed by a Gaussian of `blur` node spacings.

    Parameters
    ----------
    positions : ndarray of shape (n_particles, 3)
        Unit vectors.
    weights : ndarray of shape (n_particles,) or None
        How much each counts; None for one.
    directions : ndarray of shape (n, 3)
        Where the density is wanted.
    n_nodes : int
        A node has this fraction of the sphere.
    blur : float
        In node spacings.

    Returns
    -------
    ndarray of shape (n,)
    """
    sphere = TOPOLOGIES["sphere"]
    points = sphere.points((_POINTS_PER_NODE * n_nodes,))
    counts = np.bincount(cKDTree(points).query(positions)[1], weights=weights, minlength=len(points))
    width = blur * float(sphere.spacing((n_nodes,))[0])
    used = counts > 0
    near = cKDTree(directions).sparse_distance_matrix(
        cKDTree(points[used]), 4.0 * width, output_type="coo_matrix"
    )
    near.data = np.exp(-0.5 * (near.data / width) ** 2)
    return near.tocsr() @ counts[used] / (2.0 * np.pi * blur**2)


def check_directions(name, values, n_rows=None):
    """Return unit vectors (n, 3), or say what is wrong with them."""
    values = np.asarray(values, dtype=float)
    fits = values.ndim == 2 and values.shape[1] == 3 and n_rows in (None, len(values))
    if not fits or not np.allclose(np.linalg.norm(values, axis=1), 1.0, atol=1e-3):
        raise ParticleDataError(
            f"{name} has shape {values.shape}, expected unit vectors "
            f"({'n' if n_rows is None else n_rows}, 3) for topology='sphere'. "
            "Pass what an estimator with topology='sphere' gives."
        )
    return values


def _density_picture(positions, weights, north, spacing, n_nodes, blur=0.4):
    """Density over the square about one hemisphere."""
    half = np.sqrt(2.0)
    side = max(16, round(2.0 * half / spacing * _PIXELS_PER_NODE))
    axis = (np.arange(side) + 0.5) / side * 2.0 * half - half
    x, y = np.meshgrid(axis, axis)
    directions = from_hemisphere(x.ravel(), y.ravel(), north)
    return sphere_density(positions, weights, directions, n_nodes, blur).reshape(side, side)


def _place(ax, discs, x, y, seen):
    """Draw each disc in the unit square about its place, or a dot where nobody is."""
    for disc, across, up, has_particles in zip(discs, x, y, seen, strict=True):
        if has_particles:
            extent = (across - 0.5, across + 0.5, up - 0.5, up + 0.5)
            ax.imshow(disc, extent=extent, origin="upper", interpolation="antialiased", zorder=2)
    empty = ~np.asarray(seen, dtype=bool)
    ax.plot(x[empty], y[empty], ls="none", marker="o", ms=1.8, color=FAINT, alpha=0.7, zorder=3)
