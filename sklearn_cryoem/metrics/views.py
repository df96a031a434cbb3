"""How alike the views within a class are: the paper's measure of classification accuracy on known views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

MAX_PAIRS = 20_000_000
_ROWS_A_BLOCK = 1024


def view_distances(
    labels: ArrayLike, directions: ArrayLike, *, max_pairs: int = MAX_PAIRS, random_state: Any = None
) -> NDArray[np.float32]:
    """Angles between the view directions of all pairs of particles in the same class, in degrees.

    Parameters
    ----------
    labels : array_like of shape (n_images,), int
        Class of each particle; particles with a negative label are left out.
    directions : array_like of shape (n_images, 3)
        View directions; need not have unit length. Leave junk out beforehand: NaN is refused.
    max_pairs : int
        If there are more pairs than this, that many are drawn at random, with replacement.
    random_state : int, RandomState instance or None
        Seed of that draw.

    Returns
    -------
    angles : ndarray of shape (n_pairs,), float32
        In degrees, 0 to 180. Opposite views are mirror images of each other and count as 180 degrees apart.

    Raises
    ------
    ValueError
        If shapes disagree or a direction is NaN or zero.
    """
    members, unit = _members(labels, directions)
    n_pairs = np.array([len(rows) * (len(rows) - 1) // 2 for rows in members], dtype=np.int64)
    if n_pairs.sum() > max_pairs:
        cosines = _sampled_cosines(members, unit, n_pairs, max_pairs, check_random_state(random_state))
    else:
        cosines = np.concatenate([np.empty(0), *_pair_cosines(members, unit)])
    return np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))).astype(np.float32)


def fraction_within(labels: ArrayLike, directions: ArrayLike, degrees: float = 10.0) -> float:
    """Fraction of same-class pairs whose view directions are at most `degrees` apart, over all pairs.

    Parameters
    ----------
    labels : array_like of shape (n_images,), int
        Class of each particle; particles with a negative label are left out.
    directions : array_like of shape (n_images, 3)
        View directions.
    degrees : float
        For random classes over uniform views the fraction is (1 - cos(degrees)) / 2: 0.0076 at 10 degrees.

    Returns
    -------
    fraction : float
        NaN if no class has two particles.
    """
    members, unit = _members(labels, directions)
    limit = np.cos(np.radians(degrees)) - 1e-12
    close = total = 0
    for cosines in _pair_cosines(members, unit):
        close += int(np.count_nonzero(cosines >= limit))
        total += cosines.size
    return close / total if total else float("nan")


class EffectiveClasses(NamedTuple):
    """How many classes a classification really uses, Eq. (3.8)."""

    occupied: int
    """Classes with at least one particle."""
    perplexity: float
    """exp(entropy of the class sizes): the number of equal classes that would be as mixed."""


def effective_classes(labels: ArrayLike) -> EffectiveClasses:
    """Count classes that hold particles, and the exponential of the entropy of their sizes, Eq. (3.8).

    Parameters
    ----------
    labels : array_like of shape (n_images,), int
        Class of each particle; negative labels are left out.

    Returns
    -------
    effective : EffectiveClasses
        ``(occupied, perplexity)``.
    """
    values = np.asarray(labels)
    _, sizes = np.unique(values[values >= 0], return_counts=True)
    if sizes.size == 0:
        return EffectiveClasses(0, 0.0)
    share = sizes / sizes.sum()
    return EffectiveClasses(int(sizes.size), float(np.exp(-(share * np.log(share)).sum())))


def _members(labels: ArrayLike, directions: ArrayLike) -> tuple[list[NDArray[np.intp]], NDArray[np.float64]]:
    """Row numbers of each class, and unit directions (n_images, 3)."""
    values, vectors = np.asarray(labels), np.asarray(directions, dtype=np.float64)
    if values.ndim != 1 or vectors.shape != (len(values), 3):
        raise ValueError(
            f"labels has shape {values.shape} and directions {vectors.shape}, expected (n_images,) and "
            "(n_images, 3). Give one label and one view direction for each particle."
        )
    kept = values >= 0
    length = np.linalg.norm(vectors, axis=1)
    if not (np.isfinite(length[kept]) & (length[kept] > 0)).all():
        raise ValueError(
            "A view direction is NaN or zero. Leave those particles (junk has no view) out of labels and "
            "directions, or give them the label -1."
        )
    unit = vectors / np.where(length > 0, length, 1.0)[:, None]
    rows = np.flatnonzero(kept)
    order = rows[np.argsort(values[rows], kind="stable")]
    _, starts = np.unique(values[order], return_index=True)
    return np.split(order, starts[1:]), unit


def _pair_cosines(
    members: list[NDArray[np.intp]], unit: NDArray[np.float64]
) -> Iterator[NDArray[np.float64]]:
    """Cosines of all pairs i < j within each class, block by block; one small GEMM each."""
    for rows in members:
        vectors = unit[rows]
        for start in range(0, len(rows), _ROWS_A_BLOCK):
            block = vectors[start : start + _ROWS_A_BLOCK]
            cosines = block @ vectors[start:].T
            yield cosines[np.triu_indices(len(block), 1, cosines.shape[1])]


def _sampled_cosines(
    members: list[NDArray[np.intp]],
    unit: NDArray[np.float64],
    n_pairs: NDArray[np.int64],
    n_samples: int,
    rng: np.random.RandomState,
) -> NDArray[np.float64]:
    """Cosines of random pairs; each same-class pair is as likely."""
    drawn = rng.choice(len(members), size=n_samples, p=n_pairs / n_pairs.sum())
    sizes = np.array([len(rows) for rows in members])
    starts = np.cumsum(sizes) - sizes
    first = (rng.random_sample(n_samples) * sizes[drawn]).astype(np.int64)
    second = (rng.random_sample(n_samples) * (sizes[drawn] - 1)).astype(np.int64)
    second += second >= first  # any member but the first
    order = np.concatenate(members)
    one, other = unit[order[starts[drawn] + first]], unit[order[starts[drawn] + second]]
    return np.einsum("ij,ij->i", one, other)
