"""Shapes of the latent space: a cube, a ring or torus, a sphere; points, distances and means on each.

Every shape lies in a flat space, the embedding, in which distances are chords and means are averages that are
put back onto the shape. A ring is a torus of one dimension.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

GOLDEN_ANGLE = np.pi * (3.0 - np.sqrt(5.0))


# Basis functions are Gaussians of the chord in the embedding. A Gaussian of the arc would have a kink at the
# far side of a ring, and would not be positive definite on a sphere.
class Topology:
    """A shape of the latent space: here [-1, 1]^L with an edge, and regular grids that include it.

    The other shapes say what they do otherwise. `shape` is how many points lie along each side.

    Attributes
    ----------
    components : tuple of int
        Dimensions that make sense.
    default_components : int
        The one where nothing else is asked for.
    min_centres : int
        Basis functions along each side that tell all points apart; fewer see some as mirror images.
    min_points : int
        Points that make the shape.
    is_periodic : bool
        Whether coordinates run from -1 to 1, which are one point.
    """

    components: tuple[int, ...] = (1, 2, 3)
    default_components = 2
    min_centres = 1
    min_points = 1
    is_periodic = False

    def n_sides(self, n_components: int) -> int:
        """Length of the shape tuple of a set of points."""
        return n_components

    def points(self, shape: tuple[int, ...]) -> Float64:
        """Evenly spread points, a single one at 0; (n_points, n_coordinates), last axis fastest."""
        return _mesh([np.linspace(-1.0, 1.0, side) if side > 1 else np.zeros(1) for side in shape])

    def embed(self, positions: Float64) -> Float64:
        """Positions (n, n_coordinates) in the embedding; (n, E)."""
        return positions

    def unembed(self, embedded: Float64) -> Float64:
        """Positions (n, n_coordinates) on the shape that are nearest to points (n, E) of the embedding."""
        return embedded

    def spacing(self, shape: tuple[int, ...]) -> Float64:
        """Distance of neighbouring points along each axis of the embedding; (E,)."""
        return np.array([2.0 / (side - 1) if side > 1 else 2.0 for side in shape])

    def pairs(self, shape: tuple[int, ...]) -> Int:
        """Neighbouring points, a step along one axis apart; (n_pairs, 2), each once, lower index first."""
        index = np.arange(int(np.prod(shape))).reshape(shape)
        found = []
        for axis, side in enumerate(shape):
            first = index if self.is_periodic else np.take(index, range(side - 1), axis=axis)
            second = np.roll(index, -1, axis=axis).ravel()[first.ravel()]
            found.append(np.stack([first.ravel(), second], axis=1))
        pairs = np.sort(np.concatenate(found), axis=1)
        return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


class Torus(Topology):
    """A product of L circles, each with coordinates from -1 to 1, which are one point; a ring if L = 1."""

    components: tuple[int, ...] = (2, 3)
    min_centres = 3
    is_periodic = True

    def points(self, shape: tuple[int, ...]) -> Float64:
        """Regular grid over [-1, 1)^L; (n_points, L)."""
        return _mesh([-1.0 + 2.0 * np.arange(side) / side for side in shape])

    def embed(self, positions: Float64) -> Float64:
        """cos(pi s), sin(pi s) of every coordinate in turn, Eq. (2.7); (n, 2 L)."""
        angle = np.pi * positions
        return np.stack([np.cos(angle), np.sin(angle)], axis=-1).reshape(len(positions), -1)

    def unembed(self, embedded: Float64) -> Float64:
        """Circular means in [-1, 1); (n, L)."""
        positions = np.arctan2(embedded[:, 1::2], embedded[:, ::2]) / np.pi
        return np.where(positions >= 1.0, -1.0, positions)

    def spacing(self, shape: tuple[int, ...]) -> Float64:
        """Angles between neighbours; (2 L,)."""
        return np.repeat(2.0 * np.pi / np.array(shape, dtype=np.float64), 2)


class Ring(Torus):
    """One circle."""

    components = (1,)
    default_components = 1


class Sphere(Topology):
    """The unit sphere; positions are unit vectors, points a Fibonacci lattice."""

    components = (2,)
    default_components = 2
    min_centres = 4
    min_points = 4  # fewer enclose nothing

    def n_sides(self, n_components: int) -> int:
        """One: the number of points."""
        return 1

    def points(self, shape: tuple[int, ...]) -> Float64:
        """Fibonacci lattice, from the north pole to the south pole; (n_points, 3)."""
        index = np.arange(shape[0])
        z = 1.0 - (2.0 * index + 1.0) / shape[0]
        angle, radius = GOLDEN_ANGLE * index, np.sqrt(1.0 - z**2)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1)

    def embed(self, positions: Float64) -> Float64:
        """The same, at unit length; (n, 3)."""
        return self.unembed(positions)

    def unembed(self, embedded: Float64) -> Float64:
        """Directions of vectors (n, 3); the north pole where one has no length."""
        length = np.linalg.norm(embedded, axis=1, keepdims=True)
        pole = np.array([0.0, 0.0, 1.0])
        return np.where(length > 0, embedded / np.where(length > 0, length, 1.0), pole)

    def spacing(self, shape: tuple[int, ...]) -> Float64:
        """Side of the square that has the area of one point, as on a grid; (3,)."""
        return np.full(3, np.sqrt(4.0 * np.pi / shape[0]))

    def pairs(self, shape: tuple[int, ...]) -> Int:
        """Edges of the convex hull: the Delaunay triangulation of the sphere."""
        from scipy.spatial import ConvexHull  # slow to load, and the command line only reads TOPOLOGIES

        faces = ConvexHull(self.points(shape)).simplices  # (n_faces, 3)
        edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
        return np.unique(np.sort(edges, axis=1).astype(np.int64), axis=0)


TOPOLOGIES: dict[str, Topology] = {"grid": Topology(), "ring": Ring(), "torus": Torus(), "sphere": Sphere()}


def _mesh(axes: list[Float64]) -> Float64:
    """Points (n_points, L) with these coordinates along each axis, last axis fastest."""
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
