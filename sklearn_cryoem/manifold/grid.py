"""The latent space: regular grids of nodes and of basis functions over [-1, 1]^L, Eq. (2.2)-(2.4)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


def regular_grid(shape: tuple[int, ...]) -> Float64:
    """Points of a regular grid over [-1, 1]^L; (n_points, L), last axis fastest. A single point sits at 0."""
    axes = [np.linspace(-1.0, 1.0, side) if side > 1 else np.zeros(1) for side in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(shape))


@dataclass(frozen=True)
class LatentBasis:
    """Nodes, and the basis functions seen from them.

    Attributes
    ----------
    grid_shape : tuple of L ints
        Regular grid of the K nodes.
    basis_shape : tuple of L ints
        Regular grid of the M Gaussians.
    width : float
        Standard deviation of the Gaussians in units of their spacing.
    """

    grid_shape: tuple[int, ...]
    basis_shape: tuple[int, ...]
    width: float

    @cached_property
    def nodes(self) -> Float64:
        """Latent positions s_k of the nodes, Eq. (2.4); (n_nodes, L)."""
        return regular_grid(self.grid_shape)

    @cached_property
    def phi(self) -> Float64:
        """Basis functions at the nodes; (n_nodes, M + 1), the last column is the bias."""
        return self.at(self.nodes)

    @cached_property
    def mean_square(self) -> float:
        """Variance of a node's template where every weight but the bias has variance 1."""
        return float((self.phi[:, :-1] ** 2).sum(axis=1).mean())

    def at(self, positions: ArrayLike) -> Float64:
        """Basis functions at any latent positions, Eq. (2.3).

        Parameters
        ----------
        positions : array_like of shape (n, L)
            Latent positions; the nodes span [-1, 1] along every axis.

        Returns
        -------
        phi : ndarray of shape (n, M + 1)
        """
        centres = regular_grid(self.basis_shape)  # (n_basis, L)
        # each axis has its own spacing, so the Gaussians are as anisotropic as the grid
        spacing = np.array([2.0 / (side - 1) if side > 1 else 2.0 for side in self.basis_shape])
        offset = (np.asarray(positions, dtype=np.float64)[:, None, :] - centres) / (self.width * spacing)
        gaussians = np.exp(-0.5 * (offset**2).sum(axis=-1))  # (n, n_basis), Eq. (2.3)
        return np.hstack([gaussians, np.ones((len(gaussians), 1))])
