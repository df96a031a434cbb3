"""The latent space: nodes and basis functions spread evenly over it, Eq. (2.2)-(2.4)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sklearn_cryoem.manifold.topology import TOPOLOGIES, Topology

Float64 = NDArray[np.float64]

ASPECT_PENALTY = 0.1  # a grid twice as long as wide is as bad as one with 7 % too many nodes


def nearest_grid(n_nodes: int, n_components: int) -> tuple[int, ...]:
    """Shape of the regular grid that has about `n_nodes` nodes and is about as long as wide.

    Parameters
    ----------
    n_nodes : int
        Number of nodes wanted, at least 1.
    n_components : int
        Latent dimension L: 1, 2 or 3.

    Returns
    -------
    shape : tuple of L ints, longest side first

    Notes
    -----
    The smallest sum of the absolute log(product / n_nodes) and 0.1 log(longest / shortest): 225 gives
    15 x 15, 300 gives 18 x 17, and 3 gives 3 x 1, since few nodes must be as many as asked for.
    """
    if n_components == 1:
        return (n_nodes,)
    root = n_nodes ** (1.0 / n_components)
    sides = range(1, min(n_nodes, int(2 * root) + 1) + 1)

    def badness(shape: tuple[int, ...]) -> float:
        product = float(np.prod(shape))
        return float(abs(np.log(product / n_nodes)) + ASPECT_PENALTY * np.log(shape[0] / shape[-1]))

    shapes = (tuple(reversed(s)) for s in itertools.combinations_with_replacement(sides, n_components))
    return min(shapes, key=badness)


@dataclass(frozen=True)
class LatentBasis:
    """Nodes, and the basis functions seen from them.

    Attributes
    ----------
    grid_shape : tuple of ints
        The K nodes: sides of a regular grid, or (K,) on a sphere.
    basis_shape : tuple of ints
        The M Gaussians, likewise.
    width : float
        Standard deviation of the Gaussians in units of their spacing.
    topology : {"grid", "ring", "torus", "sphere"}
        Shape of the latent space.
    """

    grid_shape: tuple[int, ...]
    basis_shape: tuple[int, ...]
    width: float
    topology: str = "grid"

    @property
    def space(self) -> Topology:
        """Points, distances and means of the latent space."""
        return TOPOLOGIES[self.topology]

    @cached_property
    def nodes(self) -> Float64:
        """Latent positions s_k of the nodes, Eq. (2.4); (n_nodes, n_coordinates)."""
        return self.space.points(self.grid_shape)

    @cached_property
    def embedding(self) -> Float64:
        """Nodes where distances are chords and means are averages; (n_nodes, E). On a grid the nodes."""
        return self.space.embed(self.nodes)

    @property
    def node_steps(self) -> Float64:
        """Distance of neighbouring nodes along each axis of the embedding; (E,)."""
        return self.space.spacing(self.grid_shape)

    @cached_property
    def phi(self) -> Float64:
        """Basis functions at the nodes; (n_nodes, M + 1), the last column is the bias."""
        return self.at(self.nodes)

    @cached_property
    def mean_square(self) -> float:
        """Variance of a node's template where every weight but the bias has variance 1."""
        return float((self.phi[:, :-1] ** 2).sum(axis=1).mean())

    def at(self, positions: ArrayLike) -> Float64:
        """Basis functions at any latent positions, Eq. (2.3) and Eq. (2.7).

        Parameters
        ----------
        positions : array_like of shape (n, n_coordinates)
            Latent positions, such as `nodes`: over [-1, 1] along every axis, or unit vectors on a sphere.

        Returns
        -------
        phi : ndarray of shape (n, M + 1)
        """
        space = self.space
        centres = space.embed(space.points(self.basis_shape))  # (n_basis, E)
        embedded = space.embed(np.asarray(positions, dtype=np.float64))  # (n, E)
        offset = (embedded[:, None, :] - centres) / (self.width * space.spacing(self.basis_shape))
        gaussians = np.exp(-0.5 * (offset**2).sum(axis=-1))  # (n, n_basis), Eq. (2.3)
        return np.hstack([gaussians, np.ones((len(gaussians), 1))])
