"""What comes out of a fitted manifold: class averages, how far posteriors hold, latent positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.special import xlogy

from sklearn_cryoem._core.em import Additive
from sklearn_cryoem._core.parallel import ordered_map, row_blocks
from sklearn_cryoem.manifold.blocks import ROWS_AT_ONCE, Blocks, FeatureLayout, sum_over_start
from sklearn_cryoem.manifold.expectation import Matcher, Posterior, Statistics
from sklearn_cryoem.manifold.maximisation import solve_weights
from sklearn_cryoem.manifold.state import Manifold

Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

Result = TypeVar("Result")

MAX_RIDGE = 1e3  # noise over signal, at most: where there is no signal an average is as good as 0
SHARES = np.geomspace(1 / 64, 1.0, 25)  # of the log likelihood that are tried


def wiener_ridge(signal: Float64, noise: Float64) -> Float64:
    """What a Wiener filter adds to sums of c^2: noise over signal, where there is any; of one shape."""
    least = np.maximum(noise, np.finfo(np.float64).tiny) / MAX_RIDGE
    return np.asarray(noise / np.maximum(signal, least))


def signal_ridge(halves: Statistics, noise: Float64, layout: FeatureLayout) -> Float64:
    """Noise over signal in every shell, of all classes together, Eq. (3.6); (S,).

    Parameters
    ----------
    halves : Statistics
        Of a sweep over halves.
    noise : ndarray of shape (S,)
        Variance of the noise in a feature.
    layout : FeatureLayout
        The shells in use.
    """
    numerator, denominator = halves.numerator, halves.denominator
    shared, seen = np.zeros(layout.n_shells), np.zeros(layout.n_shells)
    for rows in row_blocks(numerator.shape[1], ROWS_AT_ONCE):
        shared += layout.sum_shells((numerator[0, rows] * numerator[1, rows]).sum(axis=0))
        weight = (denominator[0, rows] * denominator[1, rows]).sum(axis=0)  # (Q,)
        seen += layout.sum_shells(weight[layout.norm_index])
    return wiener_ridge(np.divide(shared, seen, out=np.zeros_like(shared), where=seen > 0), noise)


def class_averages(
    halves: Statistics, ridge: Float64, layout: FeatureLayout, half: int | None = None
) -> Float64:
    """Class averages, Eq. (3.6), confined by Eq. (3.16); (K, P).

    Parameters
    ----------
    halves : Statistics
        Of a sweep over halves.
    ridge : ndarray of shape (S,)
        What is added to the sum of c^2 in each shell.
    layout : FeatureLayout
        The shells in use.
    half : {0, 1}, optional
        Which half of the images; all of them by default.
    """
    averages = np.empty(halves.numerator.shape[1:])  # (K, P)
    for rows in row_blocks(len(averages), ROWS_AT_ONCE):
        numerator, denominator = (
            sums[:, rows].sum(axis=0) if half is None else sums[half, rows]
            for sums in (halves.numerator, halves.denominator)
        )
        denominator = denominator[:, layout.norm_index] + ridge[layout.shell]
        # a node without images averages to 0
        averages[rows] = numerator / np.where(denominator > 0, denominator, 1.0)
    return layout.confine(averages)


@dataclass(frozen=True)
class _Certainty(Additive):
    """Sums over images of posteriors of their labels."""

    claimed: Float64  # with each of SHARES
    held_out: float  # under the templates of the other half


def information_share(
    blocks: Blocks,
    manifold: Manifold,
    halves: Statistics,
    *,
    dtype: DTypeLike = np.float32,
    n_jobs: int | None = None,
) -> float:
    """Share of the log likelihood that images bear out, Eq. (3.17); from 1/64 to 1.

    Parameters
    ----------
    blocks : Blocks
        The data that the manifold was fitted to.
    manifold : Manifold
        The fit.
    halves : Statistics
        Of a sweep over halves of the same data.
    dtype : dtype
        Precision of the matrix products.
    n_jobs : int, optional
        Number of workers.

    Notes
    -----
    Two M-steps, and a pass over at most 10,000 images.
    """
    layout, basis = blocks.layout, manifold.basis
    matchers = [manifold.matcher(layout, dtype=dtype)]
    for other in (1, 0):  # even rows are compared with what odd ones alone give
        sums = halves.part(other)
        weights = solve_weights(
            sums.numerator, sums.denominator, basis, manifold.noise_variance, manifold.alpha, layout,
            n_jobs=n_jobs,
        )  # fmt: skip
        matchers.append(dataclasses.replace(manifold, weights=weights).matcher(layout, dtype=dtype))
    total = sum_over_start(partial(_block_certainty, blocks, matchers), blocks, n_jobs=n_jobs)
    return float(np.exp(np.interp(total.held_out, total.claimed, np.log(SHARES))))


def _block_certainty(blocks: Blocks, matchers: list[Matcher], index: int) -> _Certainty:
    matcher, *held_out = matchers
    block = matcher.in_sufficient_precision(blocks.load(index, matcher.layout.n_shells))
    log_joint = matcher.log_joint(block)  # (n, K)
    labels = log_joint.argmax(axis=1)
    log_joint -= log_joint.max(axis=1, keepdims=True)
    claimed = [
        (1.0 / np.exp(log_joint * share).sum(axis=1)).sum() for share in SHARES.astype(log_joint.dtype)
    ]
    borne_out = 0.0
    for half, other in enumerate(held_out):
        rows = slice(half, None, 2)
        posterior = other.posterior(block.take(rows)).responsibilities
        borne_out += float(np.take_along_axis(posterior, labels[rows, None], axis=1).sum())
    return _Certainty(np.array(claimed, dtype=np.float64), borne_out)


def map_posterior(
    function: Callable[[Posterior], Result], blocks: Blocks, matcher: Matcher, *, n_jobs: int | None = None
) -> Iterator[Result]:
    """Yield `function(posterior)` for every block in turn, so that no (n_images, K) array need exist."""
    return ordered_map(partial(_of_block, function, blocks, matcher), range(len(blocks)), n_jobs=n_jobs)


def _of_block(
    function: Callable[[Posterior], Result], blocks: Blocks, matcher: Matcher, index: int
) -> Result:
    return function(matcher.posterior(blocks.load(index, matcher.layout.n_shells)))


def most_probable(posterior: Posterior) -> Int:
    """Node of each image; (n,)."""
    return np.asarray(posterior.responsibilities.argmax(axis=1))


def label_sums(posterior: Posterior) -> Float64:
    """Sums of posteriors, and last that of r log r, over the images of a block, for Eq. (3.8); (1, K + 1)."""
    shares = posterior.responsibilities.astype(np.float64)  # (n, K)
    return np.append(shares.sum(axis=0), xlogy(shares, shares).sum())[None]


def mean_positions(posterior: Posterior, places: Float64) -> Float64:
    """Posterior means of latent positions in the embedding, Eq. (3.7); (n, E).

    Parameters
    ----------
    posterior : Posterior
        Of a block.
    places : ndarray of shape (K, E)
        The nodes in the embedding, where means are averages: see `LatentBasis.embedding`.
    """
    return np.asarray(posterior.responsibilities.astype(np.float64) @ places)


def class_and_place(posterior: Posterior, places: Float64) -> Float64:
    """Most probable node, its posterior, and the mean position of each image; (n, 2 + E)."""
    largest = posterior.responsibilities.max(axis=1)
    return np.column_stack([most_probable(posterior), largest, mean_positions(posterior, places)])
