"""Where classes lie on the page: a flat map of the latent space, in node spacings, y downwards."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.particles.display import png_data_uri, to_bytes
from sklearn_cryoem.plotting.atlas import grid_cells

_BLUR, _BLUR_OF_CLASSES = (
    0.4,
    0.6,
)  # Gaussian width of the density, in node spacings: of many particles, of nodes
_BINS_PER_NODE, _MOST_BINS = 7, 1024  # an odd number, so that a node lies in the middle of a bin
_GAP = 0.6  # between two panels, in node spacings
_FEWEST_ON_A_CIRCLE, _MOST_ON_A_CIRCLE = 4, 60
_HEADROOM = 0.2  # above a panel, for its title


@dataclass
class Map:
    """A flat map of classes.

    Parameters
    ----------
    xy : ndarray of shape (n_classes, 2)
        Where each class lies.
    panels : list of (x, y, width, height, title)
        Frames that classes lie in, left and top first.
    caption : str
        What the directions mean.
    place : callable
        Latent positions (n, n_coordinates) to places (n, 2).
    """

    xy: np.ndarray
    panels: list
    caption: str
    place: object = None


def flat_map(nodes, topology="grid"):
    """Lay the nodes of a latent space out on a plane.

    A line runs in rows, like text; a ring lies on a circle, if it is short; a square lies as it is; a cube
    lies in slices; a sphere is a map of equal areas; anything else is seen along its two broadest directions.

    Parameters
    ----------
    nodes : array-like of shape (n_classes, n_coordinates)
        Latent position of each class.
    topology : str
        Of the clusterer: on a ring and a torus the two ends of a coordinate meet.

    Returns
    -------
    Map
    """
    nodes = np.asarray(nodes, dtype=float)
    if nodes.ndim != 2 or not 1 <= nodes.shape[1] <= 3:
        raise ParticleDataError(
            f"the latent positions of the classes have shape {nodes.shape}, expected (n_classes, 1 to 3). "
            f"Pass `latent_nodes_` of the fit."
        )
    try:
        cells, axes = grid_cells(nodes, len(nodes))
    except ParticleDataError:
        return _sphere(nodes) if _is_sphere(nodes) else _cloud(nodes)
    if topology == "ring" and _FEWEST_ON_A_CIRCLE <= len(nodes) <= _MOST_ON_A_CIRCLE:
        return _circle(nodes)
    lay_out = (_rows, _square, _slices)[nodes.shape[1] - 1]
    return lay_out(cells, axes, partial(_in_spacings, axes=axes, is_closed=topology in ("ring", "torus")))


def maps_side_by_side(maps, titles):
    """One map of many, in rows like text.

    Parameters
    ----------
    maps : list of Map
        What to put together.
    titles : list of str
        Over each.

    Returns
    -------
    Map
        Its `xy` in the order of the maps.
    """
    extents = [_extent(one.panels) for one in maps]
    sizes = np.array([(right - left, bottom - top) for left, top, right, bottom in extents])
    line = max(sizes[:, 0].max(), math.sqrt(1.6 * ((sizes[:, 0] + _GAP) * (sizes[:, 1] + 2 * _GAP)).sum()))
    x = y = row = 0.0
    xy, panels = [], []
    for one, (left, top, _, _), (width, height), title in zip(maps, extents, sizes, titles, strict=True):
        if x > 0 and x + width > line:
            x, y, row = 0.0, y + row + _GAP + _HEADROOM, 0.0
        xy.append(one.xy + np.array([x - left, y - top]))
        panels.append((x, y, width, height, title))
        x, row = x + width + _GAP, max(row, height)
    return Map(np.concatenate(xy), panels, "a frame for each first class")


def density_picture(where, weights, panels):
    """Particles per node around every place of a map, as a grey PNG: black where nobody is.

    Parameters
    ----------
    where : ndarray of shape (n, 2)
        Places of what is counted.
    weights : ndarray of shape (n,) or None
        How much each counts, for nodes; None for particles, which count one.
    panels : list
        Of the map; the picture covers all of them.

    Returns
    -------
    dict
        `uri`, `x`, `y`, `width`, `height` (in node spacings) and `peak`, the particles per node that white
        stands for: the 99.5th percentile, so that one crowded place leaves the rest visible.
    """
    left, top, right, bottom = _extent(panels)
    blur = _BLUR if weights is None else _BLUR_OF_CLASSES
    fine = max(1, min(_BINS_PER_NODE, math.floor(_MOST_BINS / max(right - left, bottom - top))))
    bins = [math.ceil((bottom - top) * fine), math.ceil((right - left) * fine)]
    edges = [(top, top + bins[0] / fine), (left, left + bins[1] / fine)]
    clipped = np.clip(where[:, ::-1], [top, left], [bottom - 1e-6, right - 1e-6])
    counts, _, _ = np.histogram2d(*clipped.T, bins=bins, range=edges, weights=weights)
    density = gaussian_filter(counts, blur * fine, mode="reflect") * fine**2  # (height, width)
    peak = max(float(np.quantile(density, 0.995)), 1e-12)
    picture = to_bytes((density / peak).astype(np.float32), levels=64)
    return {
        "uri": png_data_uri(picture), "x": left, "y": top, "width": bins[1] / fine, "height": bins[0] / fine,
        "peak": peak,
    }  # fmt: skip


def _extent(panels):
    """Left, top, right and bottom of all panels."""
    x, y, width, height = np.array([panel[:4] for panel in panels], dtype=float).T
    return float(x.min()), float(y.min()), float((x + width).max()), float((y + height).max())


def _in_spacings(positions, *, axes, is_closed):
    """Positions (n, L) along regular axes, in node spacings: 0 is the first node."""
    n_nodes = np.array([len(coordinates) for coordinates in axes])
    first = np.array([coordinates[0] for coordinates in axes])
    spacing = np.array([np.ptp(c) / (len(c) - 1) if len(c) > 1 else 1.0 for c in axes])
    steps = (np.asarray(positions, dtype=float) - first) / spacing
    return (steps + 0.5) % n_nodes - 0.5 if is_closed else np.clip(steps, -0.5, n_nodes - 0.5)


def _circle(nodes):
    """A ring: the first node to the right, the others follow upwards."""
    radius = len(nodes) / (2 * math.pi)

    def place(positions):
        angle = math.pi * np.asarray(positions, dtype=float)[:, 0]
        return radius * np.stack([-np.cos(angle), np.sin(angle)], axis=1)

    corner = -radius - 0.5
    caption = "a ring: one latent coordinate, whose ends meet on the right"
    return Map(place(nodes), [(corner, corner, -2 * corner, -2 * corner, "")], caption, place)


def _rows(cells, axes, in_spacings):
    n_nodes = len(axes[0])
    across = math.ceil(math.sqrt(1.8 * n_nodes))

    def place(positions):
        along = in_spacings(positions)[:, 0]
        row = np.clip(np.floor((along + 0.5) / across), 0, (n_nodes - 1) // across)
        return np.stack([along - row * across, 1.25 * row], axis=1)

    n_rows = math.ceil(n_nodes / across)
    panels = [(-0.5, 1.25 * row - 0.5, min(across, n_nodes - row * across), 1.0, "") for row in range(n_rows)]
    caption = "one latent coordinate, in rows from left to right and top to bottom"
    return Map(place(axes[0][cells[:, 0]][:, None]), panels, caption, place)


def _square(cells, axes, in_spacings):
    n_x, n_y = len(axes[0]), len(axes[1])

    def place(positions):
        steps = in_spacings(positions)
        return np.stack([steps[:, 0], n_y - 1 - steps[:, 1]], axis=1)

    nodes = np.stack([axes[0][cells[:, 0]], axes[1][cells[:, 1]]], axis=1)
    caption = "first latent coordinate to the right, second up"
    return Map(place(nodes), [(-0.5, -0.5, n_x, n_y, "")], caption, place)


def _slices(cells, axes, in_spacings):
    n_x, n_y, n_z = map(len, axes)
    across = min(n_z, max(1, math.ceil(math.sqrt(1.6 * n_z * n_y / n_x))))
    step = np.array([n_x + _GAP, n_y + _GAP])

    def place(positions):
        steps = in_spacings(positions)
        level = np.clip(np.rint(steps[:, 2]), 0, n_z - 1)
        corner = np.stack([level % across, level // across], axis=1) * step
        return corner + np.stack([steps[:, 0], n_y - 1 - steps[:, 1]], axis=1)

    nodes = np.stack([axis[cells[:, k]] for k, axis in enumerate(axes)], axis=1)
    panels = [
        (*(np.array([k % across, k // across]) * step - 0.5), n_x, n_y, f"third coordinate {level:.2f}")
        for k, level in enumerate(axes[2])
    ]
    caption = "first latent coordinate to the right, second up, a frame for each value of the third"
    return Map(place(nodes), panels, caption, place)


def _is_sphere(nodes):
    return nodes.shape[1] == 3 and np.allclose(np.linalg.norm(nodes, axis=1), 1.0, atol=1e-6)


def _sphere(nodes):
    """Hammer's projection: equal areas, so that the density means the same everywhere."""
    spacing = math.sqrt(4 * math.pi / len(nodes))

    def place(positions):
        x, y, z = np.asarray(positions, dtype=float).T
        half = np.arctan2(y, x) / 2
        flat = np.hypot(x, y)  # cosine of the latitude
        scale = math.sqrt(2) / np.sqrt(1 + flat * np.cos(half))
        return np.stack([2 * scale * flat * np.sin(half), -scale * z], axis=1) / spacing

    half_width, half_height = 2 * math.sqrt(2) / spacing + 0.5, math.sqrt(2) / spacing + 0.5
    panels = [(-half_width, -half_height, 2 * half_width, 2 * half_height, "")]
    caption = "a sphere as a map of equal areas, its pole up; left and right rim are the same line"
    return Map(place(nodes), panels, caption, place)


def _cloud(nodes):
    """The two broadest directions of scattered nodes, in median distances of neighbours."""
    centre = nodes.mean(axis=0)
    _, _, directions = np.linalg.svd(nodes - centre, full_matrices=False)
    directions = np.eye(2) if nodes.shape[1] == 2 else directions[:2]
    distance = cKDTree(nodes).query(nodes, k=min(2, len(nodes)))[0].reshape(len(nodes), -1)[:, -1]
    spacing = float(np.median(distance)) or 1.0

    def place(positions):
        flat = (np.asarray(positions, dtype=float) - centre) @ directions.T / spacing
        return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1]))) * (1, -1)  # one coordinate: a line

    xy = place(nodes)
    left, top = xy.min(axis=0) - 0.5
    width, height = np.ptp(xy, axis=0) + 1.0
    caption = "latent coordinates" if nodes.shape[1] == 2 else "the two broadest directions of latent space"
    return Map(xy, [(left, top, width, height, "")], caption, place)
