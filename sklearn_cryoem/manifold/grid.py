"""The latent space that parameters ask for: grids of nodes and of basis functions, Eq. (2.2)-(2.4)."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sklearn_cryoem._core.validation import check_choice, check_number
from sklearn_cryoem.manifold.topology import TOPOLOGIES, Topology

Float64 = NDArray[np.float64]
Sides = int | Sequence[int]  # a number of points, or a grid side by side

OWNER = "SMLClusterer"  # whose parameters these are, for messages
ASPECT_PENALTY = 0.1  # a grid twice as long as wide is as bad as one with 7 % too many nodes
BASIS_PER_NODE = 0.8  # along each axis, of vectors and as in ROME; of images 1
# Standard deviation of the Gaussians in units of their spacing. Views of particles change much from one node
# to the next: narrow Gaussians do not smooth away what cross-fitted EM has found, Eq. (3.19). From about 2 on
# the systems for the weights are singular.
IMAGE_WIDTH, VECTOR_WIDTH = 0.5, 0.75


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
    has_paper_prior : bool
        Whether the prior is that of the paper, Eq. (2.6): one precision for all shells, and for the bias too.
    """

    grid_shape: tuple[int, ...]
    basis_shape: tuple[int, ...]
    width: float
    topology: str = "grid"
    has_paper_prior: bool = False

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

    @property
    def has_prior(self) -> Float64:
        """1 for each weight that has a prior, 0 for a bias without; (M + 1,)."""
        flags = np.ones(self.phi.shape[1])
        flags[-1] = self.has_paper_prior
        return flags

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


def latent_basis(
    n_clusters: Sides, n_basis: Sides | str, topology: str, n_components: int | None, is_dense: bool
) -> LatentBasis:
    """Grids of nodes and basis functions that the parameters of an SMLClusterer ask for.

    Parameters
    ----------
    n_clusters, n_basis, topology, n_components
        As of SMLClusterer.
    is_dense : bool
        Whether "auto" means a narrow function for each node, for images, Eq. (3.19).

    Raises
    ------
    TypeError, ValueError
        If one of the parameters is none that makes sense, alone or with the others.
    """
    check_topology(topology, n_components)
    dimension = TOPOLOGIES[topology].default_components if n_components is None else n_components
    space = TOPOLOGIES[topology]
    n_sides, min_side = space.n_sides(dimension), space.min_centres
    check_sides("n_clusters", n_clusters, topology, n_sides)
    if np.prod(n_clusters) < space.min_points:
        raise ValueError(
            f"SMLClusterer: n_clusters={n_clusters} nodes make no {topology}, expected at least "
            f"{space.min_points}. Ask for more, or for topology='grid'."
        )
    grid_shape = grid_of(n_clusters, n_sides)
    width = VECTOR_WIDTH
    if isinstance(n_basis, str):
        check_choice("n_basis", n_basis, ("auto",), owner=OWNER)
        share = 1.0 if is_dense else BASIS_PER_NODE ** (dimension / n_sides)
        basis_shape = tuple(max(round(share * side), min(min_side, side)) for side in grid_shape)
        width = IMAGE_WIDTH if is_dense else VECTOR_WIDTH
    else:
        check_sides("n_basis", n_basis, topology, n_sides)
        basis_shape = grid_of(n_basis, n_sides)
        if isinstance(
            n_basis, numbers.Integral
        ):  # an axis with a single node needs no more than one function
            long_axes = [axis for axis, side in enumerate(grid_shape) if side > 1] or [0]
            sides = dict(zip(long_axes, nearest_grid(int(n_basis), len(long_axes)), strict=True))
            basis_shape = tuple(sides.get(axis, 1) for axis in range(n_sides))
    if any(m < min(min_side, side) for m, side in zip(basis_shape, grid_shape, strict=True)):
        raise ValueError(
            f"n_basis={n_basis} leaves {' x '.join(map(str, basis_shape))} basis functions, expected at "
            f"least {min_side} along each side of topology={topology!r}: fewer see mirror images as one. "
            "Raise n_basis, or use topology='grid'."
        )
    return LatentBasis(grid_shape, basis_shape, width, topology)


def grid_of(value: Sides, n_sides: int) -> tuple[int, ...]:
    """Shape of a grid that is given by its number of points, or side by side."""
    if isinstance(value, int | numbers.Integral):
        return nearest_grid(int(value), n_sides)
    return tuple(int(side) for side in value)


def check_topology(topology: str, n_components: int | None) -> None:
    """Raise unless topology and dimension go together."""
    check_choice("topology", topology, tuple(TOPOLOGIES), owner=OWNER)
    check_number(
        "n_components", n_components, owner=OWNER, minimum=1, maximum=3, integer=True, allow_none=True
    )
    possible = TOPOLOGIES[topology].components
    if n_components is not None and n_components not in possible:
        fitting = [other for other, space in TOPOLOGIES.items() if n_components in space.components]
        raise ValueError(
            f"SMLClusterer: n_components={n_components} makes no sense with topology={topology!r}, expected "
            f"{' or '.join(map(str, possible))}. Leave n_components out, or choose topology="
            f"{' or '.join(map(repr, fitting))}."
        )


def check_sides(name: str, value: Sides, topology: str, n_sides: int) -> None:
    """Raise unless a parameter is a number of points, or a grid shape of so many sides."""
    if not isinstance(value, tuple | list | np.ndarray):
        check_number(name, value, owner=OWNER, minimum=1, integer=True)
        return
    if len(value) != n_sides:
        raise ValueError(
            f"The parameter {name!r} of SMLClusterer is the grid shape {tuple(value)}, expected {n_sides} "
            f"side{'s' * (n_sides > 1)} for topology={topology!r}. Change it, n_components or topology."
        )
    for side in value:
        check_number(name, side, owner=OWNER, minimum=1, integer=True)
