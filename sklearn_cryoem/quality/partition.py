"""What the labels of a whole run tell: do they come out again, follow the defocus, and what is kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

from sklearn_cryoem.particles import CTFTable

Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

FIFTHS = 5


class DefocusShare(NamedTuple):
    """How far classes follow the defocus.

    Attributes
    ----------
    share : float
        Part of the variance of the defocus that lies between classes; NaN where there is no such variance.
    by_chance : float
        What it is on average where classes do not know of the defocus.
    p_value : float
        Probability that chance gives as much.
    deviation : ndarray of shape (n_classes,)
        Mean defocus of each class, less that of all, in standard errors of a random class of its size.
    """

    share: float
    by_chance: float
    p_value: float
    deviation: Float64


def stability(others: list[Int], rows: list[NDArray[np.intp]]) -> Float64:
    """Of the pairs of each class, the fraction that other labels hold together too, above chance, Eq. (6.7).

    Parameters
    ----------
    others : list of ndarray of shape (n_images,), int
        Other labels of the same particles; those of -1 do not count.
    rows : list of ndarray
        Particles of each class.

    Returns
    -------
    ndarray of shape (n_classes,)
        1 where all stay together, about 0 where classes are drawn by lot; NaN of a class without a pair.
    """
    if not others:
        return np.full(len(rows), np.nan)
    kept = np.full((len(others), len(rows)), np.nan)
    for start, other in enumerate(others):
        chance = _pairs_together(other)
        for number, some in enumerate(rows):
            kept[start, number] = (
                (_pairs_together(other[some]) - chance) / (1.0 - chance) if chance < 1 else np.nan
            )
    return kept.mean(axis=0)


def _pairs_together(labels: Int) -> float:
    """Of all pairs of those that have a label, the fraction with the same one; NaN without a pair."""
    sizes = np.bincount(labels[labels >= 0]).astype(np.float64)
    n_pairs = sizes.sum() * (sizes.sum() - 1.0)
    return float((sizes * (sizes - 1.0)).sum() / n_pairs) if n_pairs > 0 else np.nan


def defocus_share(ctf: CTFTable, labels: Int, n_classes: int) -> DefocusShare:
    """Share of the variance of the defocus that lies between classes, and what chance gives, Eq. (6.8).

    Parameters
    ----------
    ctf : CTFTable
        Of the particles.
    labels : ndarray of shape (n_images,), int
        Class of each; -1 for none.
    n_classes : int
        Number of classes.

    Returns
    -------
    DefocusShare
    """
    known = labels >= 0
    label = labels[known]
    defocus = 0.5 * (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom)[known]
    sizes = np.bincount(label, minlength=n_classes)
    n_images, n_filled = len(label), np.count_nonzero(sizes)
    nothing = DefocusShare(np.nan, np.nan, np.nan, np.full(n_classes, np.nan))
    if not 1 < n_filled < n_images:
        return nothing
    deviation = defocus - defocus.mean()
    means = np.bincount(label, weights=deviation, minlength=n_classes) / np.maximum(sizes, 1)
    total, between = (deviation**2).sum(), (sizes * means**2).sum()
    if total <= np.finfo(np.float64).eps * (defocus**2).sum():
        return nothing
    share = between / total  # Eq. (6.8)
    free = n_filled - 1, n_images - n_filled
    ratio = (share / free[0]) / max((1.0 - share) / free[1], np.finfo(np.float64).tiny)
    with np.errstate(divide="ignore", invalid="ignore"):  # a class of none, and one of all
        error = np.sqrt(total / (n_images - 1) * (1.0 / sizes - 1.0 / n_images))
        deviations = np.where((sizes > 0) & (error > 0), means / error, np.nan)
    by_chance = float(free[0] / (n_images - 1))
    return DefocusShare(float(share), by_chance, float(f_distribution.sf(ratio, *free)), deviations)


def kept_by_rarity(table: pd.DataFrame) -> list[float]:
    """Share of the particles that are kept in each fifth of them, from the smallest classes to the largest.

    A rare view has a small class. Nothing but sizes and the suggestion goes in, so the figure cannot hide a
    view by calling it junk; where the junk is in small classes as well, it counts there.

    Parameters
    ----------
    table : DataFrame
        From `suggest_classes`.

    Returns
    -------
    list of float
        Of length 5; empty without particles.
    """
    order = table.sort_values("size", kind="stable")
    kept = np.repeat(order["keep"].to_numpy(dtype=np.float64), order["size"])  # (n_images,), rarest first
    return [float(part.mean()) for part in np.array_split(kept, FIFTHS)] if len(kept) >= FIFTHS else []
