"""What comes out of a fitted manifold: labels, class averages, half-set averages, latent positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sklearn_cryoem._core.parallel import ordered_map, row_blocks
from sklearn_cryoem.manifold.blocks import (
    ROWS_AT_ONCE,
    Blocks,
    FeatureLayout,
    in_turn,
    shards,
    sum_over_start,
)
from sklearn_cryoem.manifold.expectation import Matcher, Posterior, Statistics
from sklearn_cryoem.manifold.fit import Manifold
from sklearn_cryoem.manifold.maximisation import solve_weights
from sklearn_cryoem.manifold.sums import add_product, sum_in_place, transposed, with_digits_of

Sums = NDArray[Any]  # float32 or float64
Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

Result = TypeVar("Result")

WIDEST_RIDGE = 1e3  # noise over signal, at most: where there is no signal an average is as good as 0
SHARES = np.geomspace(1 / 64, 1.0, 25)  # of the log likelihood that are tried


def wiener_ridge(signal: Float64, noise: Float64) -> Float64:
    """What a Wiener filter adds to sums of c^2: noise over signal, where there is any; of one shape."""
    least = np.maximum(noise, np.finfo(np.float64).tiny) / WIDEST_RIDGE
    return np.asarray(noise / np.maximum(signal, least))


@dataclass(frozen=True)
class ClassStatistics:
    """Sums for class averages over even (0) and odd (1) rows, and the label of every image.

    Attributes
    ----------
    cross : ndarray of shape (2, K, P)
        R^T (c y) of each half; of one shard in the precision of the data, else float64.
    gram : ndarray of shape (2, K, Q)
        R^T c^2 of each half; likewise.
    node_mass : ndarray of shape (K,), float64
        Soft class sizes.
    labels : ndarray of shape (n,), int
        Most probable node of each image.
    """

    cross: Sums
    gram: Sums
    node_mass: Float64
    labels: Int

    def in_double(self) -> ClassStatistics:
        """Return the same sums in float64: the total that those of other shards are added to."""
        cross, gram = (sums.astype(np.float64, copy=False) for sums in (self.cross, self.gram))
        return ClassStatistics(cross, gram, self.node_mass, self.labels)

    def __iadd__(self, other: ClassStatistics) -> ClassStatistics:
        sums = self.cross, self.gram, self.node_mass
        for mine, theirs in zip(sums, (other.cross, other.gram, other.node_mass), strict=True):
            mine += theirs
        return ClassStatistics(*sums, np.concatenate([self.labels, other.labels]))

    def __add__(self, other: ClassStatistics) -> ClassStatistics:
        return ClassStatistics(
            self.cross + other.cross,
            self.gram + other.gram,
            self.node_mass + other.node_mass,
            np.concatenate([self.labels, other.labels]),
        )

    def signal_ridge(self, noise: Float64, layout: FeatureLayout) -> Float64:
        """Noise over signal in every shell, of all classes together, Eq. (3.6); (S,).

        Parameters
        ----------
        noise : ndarray of shape (S,)
            Variance of the noise in a feature.
        layout : FeatureLayout
            The shells in use.
        """
        shared, seen = np.zeros(layout.n_shells), np.zeros(layout.n_shells)
        for rows in row_blocks(self.cross.shape[1], ROWS_AT_ONCE):
            shared += layout.sum_shells((self.cross[0, rows] * self.cross[1, rows]).sum(axis=0))
            weight = (self.gram[0, rows] * self.gram[1, rows]).sum(axis=0)  # (Q,)
            seen += layout.sum_shells(weight[layout.norm_index])
        return wiener_ridge(np.divide(shared, seen, out=np.zeros_like(shared), where=seen > 0), noise)

    def averages(self, ridge: Float64, layout: FeatureLayout, half: int | None = None) -> Float64:
        """Class averages, Eq. (3.6); (K, P).

        Parameters
        ----------
        ridge : ndarray of shape (S,)
            What is added to the sum of c^2 in each shell.
        layout : FeatureLayout
            The shells in use.
        half : {0, 1}, optional
            Which half of the images; all of them by default.
        """
        averages = np.empty(self.cross.shape[1:])  # (K, P)
        for rows in row_blocks(len(averages), ROWS_AT_ONCE):
            cross, gram = (
                sums[:, rows].sum(axis=0) if half is None else sums[half, rows]
                for sums in (self.cross, self.gram)
            )
            denominator = gram[:, layout.norm_index] + ridge[layout.shell]
            # a node without images averages to 0
            averages[rows] = cross / np.where(denominator > 0, denominator, 1.0)
        return averages


def class_statistics(
    blocks: Blocks, matcher: Matcher, *, hard: bool = False, n_jobs: int | None = None
) -> ClassStatistics:
    """Go through the data once more with the final parameters.

    Parameters
    ----------
    blocks : Blocks
        The data.
    matcher : Matcher
        Final templates and noise.
    hard : bool
        Count each image for its most probable node alone.
    n_jobs : int, optional
        Number of workers.
    """
    # sums of two halves are twice as large as those of an E-step, so that none of them waits
    shard = partial(_shard_classes, blocks, matcher, hard)
    return sum_in_place(shard, shards(blocks), n_jobs=n_jobs, max_waiting=0)


def _shard_classes(blocks: Blocks, matcher: Matcher, hard: bool, shard: range) -> ClassStatistics:
    layout, n_nodes = matcher.layout, len(matcher.templates)
    dtype = matcher.factors.scaled.dtype
    cross: Sums = np.zeros((2, n_nodes, layout.n_features), dtype)
    gram: Sums = np.zeros((2, n_nodes, layout.n_norms), dtype)
    node_mass, labels = np.zeros(n_nodes), []
    for loaded in in_turn(blocks, shard, layout.n_shells):
        block = matcher.in_enough_digits(loaded)
        weights: NDArray[np.floating[Any]] = matcher.posterior(block).responsibilities  # (n, K)
        labels.append(weights.argmax(axis=1))
        node_mass += weights.sum(axis=0)
        if hard:
            weights = np.eye(n_nodes, dtype=weights.dtype)[labels[-1]]
        cross, gram = with_digits_of(block.data, cross, gram)
        for half in (0, 1):
            # blocks begin at even rows, so parity inside the block is parity in the data
            rows = slice(half, None, 2)
            left = transposed(weights[rows], layout.n_features)
            add_product(cross[half], left, block.data[rows])
            if block.norm is None:
                gram[half] += weights[rows].sum(axis=0)[:, None]
            else:
                add_product(gram[half], left, block.norm[rows])
    return ClassStatistics(cross, gram, node_mass, np.concatenate(labels))


@dataclass(frozen=True)
class _Certainty:
    """Sums over images of posteriors of their labels; they add over blocks."""

    claimed: Float64  # with each of SHARES
    held_out: float  # under the templates of the other half

    def __add__(self, other: _Certainty) -> _Certainty:
        return _Certainty(self.claimed + other.claimed, self.held_out + other.held_out)


def information_share(
    blocks: Blocks,
    manifold: Manifold,
    classes: ClassStatistics,
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
    classes : ClassStatistics
        Of the same data.
    dtype : dtype
        Precision of the matrix products.
    n_jobs : int, optional
        Number of workers.

    Notes
    -----
    Two M-steps, and a pass over at most 10,000 images.
    """
    layout, none = blocks.layout, np.zeros(blocks.layout.n_shells)
    matchers = [manifold.matcher(layout, dtype=dtype)]
    for other in (1, 0):  # even rows are compared with what odd ones alone give
        half = Statistics(classes.cross[other], classes.gram[other], none, classes.node_mass, 0.0, 0)
        weights = solve_weights(
            half, manifold.basis, manifold.noise_variance, manifold.alpha, layout, n_jobs=n_jobs
        )
        matchers.append(dataclasses.replace(manifold, weights=weights).matcher(layout, dtype=dtype))
    total = sum_over_start(partial(_block_certainty, blocks, matchers), blocks, n_jobs=n_jobs)
    return float(np.exp(np.interp(total.held_out, total.claimed, np.log(SHARES))))


def _block_certainty(blocks: Blocks, matchers: list[Matcher], index: int) -> _Certainty:
    matcher, *held_out = matchers
    block = matcher.in_enough_digits(blocks.load(index, matcher.layout.n_shells))
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


def latent_positions(posterior: Posterior, nodes: Float64, mode: str) -> Float64:
    """Where images lie in the latent space, Eq. (3.7); (n, L).

    Parameters
    ----------
    posterior : Posterior
        Of a block.
    nodes : ndarray of shape (K, L)
        Latent positions of the nodes.
    mode : {"mean", "mode"}
        Posterior mean, or the most probable node.
    """
    if mode == "mode":
        return np.asarray(nodes[posterior.responsibilities.argmax(axis=1)])
    return posterior.responsibilities.astype(np.float64) @ nodes
