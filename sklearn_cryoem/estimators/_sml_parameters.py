"""Checks of the parameters of SMLClusterer, and the grids that follow from them."""

import numbers
import os

import numpy as np

from sklearn_cryoem._core.validation import check_choice, check_number
from sklearn_cryoem.estimators._sml_noise import NOISE_MODELS
from sklearn_cryoem.estimators._sml_space import ImageSpace
from sklearn_cryoem.manifold.grid import LatentBasis, nearest_grid
from sklearn_cryoem.manifold.topology import FEWEST_ON_SPHERE, TOPOLOGIES

IMAGE_WIDTH, VECTOR_WIDTH = 0.5, 0.75  # in spacings of the basis functions
BASIS_PER_NODE = 0.8  # along each axis, as in ROME
MANY_FOLDS, FEW_FOLDS = 10, 4  # of cross-fitted EM: for small classes, whose templates miss every image
SMALL_CLASS = 40  # images of a class, on average

_POSITIVE = {"minimum": 0.0, "inclusive": False}


def check_parameters(estimator):
    """Raise unless every parameter is one that `fit` can use.

    Raises
    ------
    TypeError, ValueError
        Naming the parameter, what was expected and what was found.
    """
    given = vars(estimator)
    _check_topology(estimator)
    _check_grid("n_clusters", estimator, allow_auto=False)
    _check_grid("n_basis", estimator, allow_auto=True)
    if given["topology"] == "sphere" and np.prod(given["n_clusters"]) < FEWEST_ON_SPHERE:
        raise ValueError(
            f"SMLClusterer: n_clusters={given['n_clusters']} nodes enclose no sphere, expected at least "
            f"{FEWEST_ON_SPHERE}. Ask for more, or for topology='grid'."
        )
    if isinstance(given["basis_width"], str):
        check_choice("basis_width", given["basis_width"], ("auto",), owner=estimator)
    else:
        check_number("basis_width", given["basis_width"], owner=estimator, **_POSITIVE)
    check_number("initial_resolution", given["initial_resolution"], owner=estimator, **_POSITIVE)
    for name in ("max_resolution", "mask_diameter"):
        check_number(name, given[name], owner=estimator, allow_none=True, **_POSITIVE)
    check_number("initial_temperature", given["initial_temperature"], owner=estimator, minimum=1.0)
    if not isinstance(given["cache_folder"], str | os.PathLike | None):
        raise TypeError(
            f"The parameter 'cache_folder' of {type(estimator).__name__} is {given['cache_folder']!r}, "
            "expected the path of a folder, or None."
        )
    if isinstance(given["n_folds"], str):
        check_choice("n_folds", given["n_folds"], ("auto",), owner=estimator)
    else:
        check_number("n_folds", given["n_folds"], owner=estimator, minimum=1, integer=True)
    check_number("max_iter", given["max_iter"], owner=estimator, minimum=1, integer=True)
    check_number("tol", given["tol"], owner=estimator, minimum=0.0)
    if isinstance(given["alpha"], str):
        check_choice("alpha", given["alpha"], ("auto",), owner=estimator)
    else:
        check_number("alpha", given["alpha"], owner=estimator, minimum=0.0)
    for name, choices in {
        "noise": NOISE_MODELS,
        "init": ("pca", "random"),
        "class_average": ("soft", "hard"),
        "position": ("mean", "mode"),
    }.items():
        check_choice(name, given[name], choices, owner=estimator)


def _width(estimator):
    """Width of the Gaussians: narrow ones suit images, which change much from one view to the next."""
    if not isinstance(estimator.basis_width, str):
        return float(estimator.basis_width)
    on_images = isinstance(getattr(estimator, "_space", None), ImageSpace)
    return IMAGE_WIDTH if on_images and isinstance(estimator.n_basis, str) else VECTOR_WIDTH


def folds_of(estimator, n_samples, n_nodes=None):
    """Folds of cross-fitted EM, two images in each at least; without `n_nodes` those of a stream."""
    n_folds = estimator.n_folds
    if isinstance(n_folds, str):
        has_small_classes = n_nodes is not None and n_samples < SMALL_CLASS * n_nodes
        n_folds = MANY_FOLDS if has_small_classes else FEW_FOLDS
    return max(1, min(n_folds, n_samples // 2))


def latent_basis(estimator):
    """Grids of nodes and basis functions that the parameters ask for."""
    n_sides, fewest = _n_sides(estimator), TOPOLOGIES[estimator.topology].fewest_centres
    grid_shape = _shape(estimator.n_clusters, n_sides)
    if isinstance(estimator.n_basis, str):
        share = BASIS_PER_NODE ** (n_components_of(estimator) / n_sides)
        basis_shape = tuple(max(round(share * side), min(fewest, side)) for side in grid_shape)
    elif isinstance(estimator.n_basis, numbers.Integral):
        # an axis with a single node needs no more than one function
        long_axes = [axis for axis, side in enumerate(grid_shape) if side > 1] or [0]
        sides = nearest_grid(int(estimator.n_basis), len(long_axes))
        basis_shape = tuple(
            sides[long_axes.index(axis)] if axis in long_axes else 1 for axis in range(n_sides)
        )
    else:
        basis_shape = _shape(estimator.n_basis, n_sides)
    if any(m < min(fewest, side) for m, side in zip(basis_shape, grid_shape, strict=True)):
        raise ValueError(
            f"n_basis={estimator.n_basis} leaves {' x '.join(map(str, basis_shape))} basis functions, "
            f"expected at least {fewest} along each side of topology={estimator.topology!r}: fewer see "
            "mirror images as one. Raise n_basis, or use topology='grid'."
        )
    return LatentBasis(grid_shape, basis_shape, _width(estimator), estimator.topology)


def n_components_of(estimator):
    """Dimension of the latent space: `n_components`, or what is natural to the topology."""
    if estimator.n_components is None:
        return TOPOLOGIES[estimator.topology].default_components
    return int(estimator.n_components)


def _n_sides(estimator):
    return TOPOLOGIES[estimator.topology].n_sides(n_components_of(estimator))


def _shape(value, n_sides):
    if isinstance(value, numbers.Integral):
        return nearest_grid(int(value), n_sides)
    return tuple(int(side) for side in value)


def _check_topology(estimator):
    name, n_components = estimator.topology, estimator.n_components
    check_choice("topology", name, tuple(TOPOLOGIES), owner=estimator)
    check_number(
        "n_components", n_components, owner=estimator, minimum=1, maximum=3, integer=True, allow_none=True
    )
    possible = TOPOLOGIES[name].components
    if n_components is not None and n_components not in possible:
        fitting = [other for other, space in TOPOLOGIES.items() if n_components in space.components]
        raise ValueError(
            f"SMLClusterer: n_components={n_components} makes no sense with topology={name!r}, expected "
            f"{' or '.join(map(str, possible))}. Leave n_components out, or choose topology="
            f"{' or '.join(map(repr, fitting))}."
        )


def _check_grid(name, estimator, *, allow_auto):
    value = getattr(estimator, name)
    if allow_auto and isinstance(value, str):
        check_choice(name, value, ("auto",), owner=estimator)
        return
    if not isinstance(value, tuple | list | np.ndarray):
        check_number(name, value, owner=estimator, minimum=1, integer=True)
        return
    n_sides = _n_sides(estimator)
    if len(value) != n_sides:
        why = "as many as n_components" if n_sides == n_components_of(estimator) else "a number of points"
        raise ValueError(
            f"The parameter {name!r} of {type(estimator).__name__} is the grid shape {tuple(value)}, "
            f"expected {n_sides} side{'s' * (n_sides > 1)}, {why} (topology={estimator.topology!r}). "
            "Change one of the two."
        )
    for side in value:
        check_number(name, side, owner=estimator, minimum=1, integer=True)
