"""A flat map of latent space, and the density of particles on it.

Its unit is one node spacing, its y axis points downwards. The picture of the atlas and the atlas of the
report are drawn from the same map.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.manifold.topology import TOPOLOGIES

_MAX_ON_A_CIRCLE = 48  # nodes of a ring; more would be so small on a circle that rows serve better
_GAP = 0.6  # between two panels, in node spacings
_BINS_PER_NODE, _MAX_BINS = 7, 1024  # an odd number of bins, so that a node lies in the middle of one
# Width of the Gaussian that smooths the density, in node spacings: of particles, and of the sizes of classes,
# which all lie on nodes, behind the class averages.
_BLUR, _BLUR_OF_SIZES = 0.4, 0.6


class Panel(NamedTuple):
    """A frame that classes lie in; x is its left edge, y its upper one.

    A round one has the `radius` of the disc that its particles lie in; the frame is half a node wider.
    """

    x: float
    y: float
    width: float
    height: float
    title: str = ""
    radius: float | None = None


@dataclass(frozen=True)
class LatentMap:
    """A flat map of classes.

    Parameters
    ----------
    xy : ndarray of shape (n_classes, 2)
        Where each class lies.
    panels : list of Panel
        Frames that classes lie in.
    caption : str
        What the directions mean.
    place : callable or None
        Latent positions (n, n_coordinates) to places (n, 2).
    is_closed : bool
        Whether opposite edges of a panel meet.
    is_circle : bool
        Whether classes lie on a circle.
    """

    xy: np.ndarray
    panels: list[Panel]
    caption: str
    place: Callable | None = None
    is_closed: bool = False
    is_circle: bool = False

    @property
    def extent(self):
        """Left, top, right and bottom of all panels."""
        x, y, width, height = np.array([panel[:4] for panel in self.panels], dtype=float).T
        return float(x.min()), float(y.min()), float((x + width).max()), float((y + height).max())


def latent_map(nodes, topology="grid"):
    """Lay the nodes of a latent space out on a plane.

    A square lies as it is; a line runs in rows, like text; a cube lies in slices; a short ring lies on a
    circle; a sphere is two hemispheres of equal area, each seen from outside; scattered nodes are seen along
    their two broadest directions.

    Parameters
    ----------
    nodes : array-like of shape (n_classes, n_coordinates)
        Latent position of each class.
    topology : {"grid", "ring", "torus", "sphere"}
        That of the clusterer.

    Returns
    -------
    LatentMap
    """
    nodes = np.asarray(nodes, dtype=float)
    if nodes.ndim != 2 or not 1 <= nodes.shape[1] <= 3:
        raise ParticleDataError(
            f"the latent positions of the classes have shape {nodes.shape}, expected (n_classes, 1 to 3). "
            f"Pass `latent_nodes_` of the fit."
        )
    if topology not in TOPOLOGIES:
        raise ParticleDataError(
            f"topology is {topology!r}, expected one of {', '.join(map(repr, TOPOLOGIES))}. "
            f"Pass `estimator.topology`."
        )
    are_directions = nodes.shape[1] == 3 and np.allclose(np.linalg.norm(nodes, axis=1), 1.0, atol=1e-3)
    if topology == "sphere" and not are_directions:
        raise ParticleDataError(
            f"latent_nodes has shape {nodes.shape}, expected unit vectors (n, 3) for topology='sphere'. "
            "Pass what an estimator with topology='sphere' gives."
        )
    axes = grid_axes(nodes)
    if topology == "sphere" or (axes is None and are_directions):
        return _hemispheres(nodes)
    if axes is None:
        return _scattered(nodes)
    if topology == "ring" and len(nodes) <= _MAX_ON_A_CIRCLE:
        return _circle(nodes)
    lay_out = (_rows, _square, _slices)[nodes.shape[1] - 1]
    panels, caption, place_steps = lay_out(axes)
    is_closed = TOPOLOGIES[topology].is_periodic

    def place(positions):
        return place_steps(_in_spacings(positions, axes, is_closed=is_closed))

    return LatentMap(place(nodes), panels, caption, place, is_closed and nodes.shape[1] > 1)


def grid_axes(nodes):
    """Coordinates along each axis of a full regular grid, in any order of nodes; None if it is not one."""
    axes = [np.unique(np.round(coordinate, 9)) for coordinate in nodes.T]
    is_full = math.prod(map(len, axes)) == len(nodes) == len(np.unique(np.round(nodes, 9), axis=0))
    return axes if is_full else None


def _in_spacings(positions, axes, *, is_closed):
    """Positions (n, n_coordinates) along regular axes, in node spacings: 0 is the first node."""
    n_nodes = np.array([len(coordinates) for coordinates in axes])
    first = np.array([coordinates[0] for coordinates in axes])
    spacing = np.array([np.ptp(c) / (len(c) - 1) if len(c) > 1 else 1.0 for c in axes])
    steps = (np.asarray(positions, dtype=float) - first) / spacing
    return (steps + 0.5) % n_nodes - 0.5 if is_closed else np.clip(steps, -0.5, n_nodes - 0.5)


def _rows(axes):
    n_nodes = len(axes[0])
    per_row = n_nodes if n_nodes <= 12 else math.ceil(n_nodes / round(math.sqrt(n_nodes / 2.6)))
    n_rows = math.ceil(n_nodes / per_row)

    def place(steps):
        row = np.clip(np.floor((steps[:, 0] + 0.5) / per_row), 0, n_rows - 1)
        return np.stack([steps[:, 0] - row * per_row, 1.25 * row], axis=1)

    panels = [
        Panel(-0.5, 1.25 * row - 0.5, min(per_row, n_nodes - row * per_row), 1.0) for row in range(n_rows)
    ]
    return panels, "one latent coordinate, in rows from left to right and top to bottom", place


def _square(axes):
    n_x, n_y = map(len, axes)

    def place(steps):
        return np.stack([steps[:, 0], n_y - 1 - steps[:, 1]], axis=1)

    return [Panel(-0.5, -0.5, n_x, n_y)], "first latent coordinate to the right, second up", place


def _slices(axes):
    n_x, n_y, n_z = map(len, axes)
    across = min(n_z, max(1, math.ceil(math.sqrt(1.5 * n_z * n_y / n_x))))
    step = np.array([n_x + _GAP, n_y + _GAP])

    def place(steps):
        level = np.clip(np.rint(steps[:, 2]), 0, n_z - 1)
        corner = np.stack([level % across, level // across], axis=1) * step
        return corner + np.stack([steps[:, 0], n_y - 1 - steps[:, 1]], axis=1)

    panels = [
        Panel(*(np.array([k % across, k // across]) * step - 0.5), n_x, n_y, f"third coordinate {level:.2g}")
        for k, level in enumerate(axes[2])
    ]
    caption = "first latent coordinate to the right, second up, a frame for each value of the third"
    return panels, caption, place


def _circle(nodes):
    """A ring: coordinate 0 to the right, growing anticlockwise; neighbours are one unit apart."""
    radius = max(0.5 / math.sin(math.pi / max(len(nodes), 2)), 0.8)

    def place(positions):
        angle = math.pi * np.asarray(positions, dtype=float)[:, 0]
        return radius * np.stack([np.cos(angle), -np.sin(angle)], axis=1)

    panel = Panel(-radius - 0.5, -radius - 0.5, 2 * radius + 1, 2 * radius + 1)
    caption = "a ring: coordinate 0 on the right, growing anticlockwise"
    return LatentMap(place(nodes), [panel], caption, place, is_circle=True)


def _hemispheres(nodes):
    """Lambert's map of equal area of each hemisphere, seen from outside; the two touch at +x."""
    spacing = math.sqrt(4 * math.pi / len(nodes))
    radius = math.sqrt(2) / spacing + 0.5

    def place(positions):
        positions = np.asarray(positions, dtype=float)
        x, y, z = (positions / np.linalg.norm(positions, axis=1, keepdims=True)).T
        side = np.where(z >= 0, 1.0, -1.0)
        scale = np.sqrt(2 / (1 + np.abs(z))) / spacing
        return np.stack([side * (x * scale - radius), -y * scale], axis=1)

    panels = [
        Panel(left, -radius, 2 * radius, 2 * radius, title, radius - 0.5)
        for left, title in ((-2 * radius, "z > 0"), (0.0, "z < 0"))
    ]
    caption = "two hemispheres of equal area, seen from outside; +x is where they touch"
    return LatentMap(place(nodes), panels, caption, place)


def _scattered(nodes):
    """The two broadest directions of scattered nodes, in median distances of neighbours."""
    centre = nodes.mean(axis=0)
    directions = np.eye(2) if nodes.shape[1] == 2 else np.linalg.svd(nodes - centre, full_matrices=False)[2]
    distance = cKDTree(nodes).query(nodes, k=min(2, len(nodes)))[0].reshape(len(nodes), -1)[:, -1]
    spacing = float(np.median(distance)) or 1.0

    def place(positions):
        flat = (np.asarray(positions, dtype=float) - centre) @ directions[:2].T / spacing
        return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1]))) * (1, -1)  # one coordinate: a line

    xy = place(nodes)
    caption = "latent coordinates" if nodes.shape[1] == 2 else "the two broadest directions of latent space"
    return LatentMap(xy, [Panel(*(xy.min(axis=0) - 0.5), *(np.ptp(xy, axis=0) + 1.0))], caption, place)


def density_of(flat, xy, weights=None):
    """Particles per node at every place of a map, smoothed within each panel.

    Parameters
    ----------
    flat : LatentMap
        The map.
    xy : ndarray of shape (n, 2)
        Places of what is counted.
    weights : ndarray of shape (n,) or None
        How much each counts, for classes; None for particles, which count one.

    Returns
    -------
    ndarray of shape (n_rows, n_columns)
        Covers the extent of the map.
    """
    left, top, right, bottom = flat.extent
    fine = max(1, min(_BINS_PER_NODE, math.floor(_MAX_BINS / max(right - left, bottom - top))))
    density = np.zeros((math.ceil((bottom - top) * fine), math.ceil((right - left) * fine)))
    blur = fine * (_BLUR if weights is None else _BLUR_OF_SIZES)
    mode = "wrap" if flat.is_closed else "reflect"
    for panel in flat.panels:
        row, column = round((panel.y - top) * fine), round((panel.x - left) * fine)
        own = density[row : row + round(panel.height * fine), column : column + round(panel.width * fine)]
        edges = [(panel.y, panel.y + panel.height), (panel.x, panel.x + panel.width)]
        counts, _, _ = np.histogram2d(*xy[:, ::-1].T, bins=own.shape, range=edges, weights=weights)
        per_node = own.size / (panel.width * panel.height)
        own[:] = gaussian_filter(counts, blur, mode=mode) * per_node
        if panel.radius is not None:  # what the Gaussian carries over the rim of the disc is missing inside
            y, x = (np.linspace(-panel.width / 2, panel.width / 2, n) for n in own.shape)
            inside = np.hypot(y[:, None], x) <= panel.radius
            own *= inside / np.maximum(gaussian_filter(inside.astype(float), blur), 0.3)
    return density
