"""E-step: posterior node probabilities and the statistics that the M-step needs, Eq. (3.1)-(3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sklearn_cryoem._core.workers import sum_in_order
from sklearn_cryoem.manifold.blocks import Blocks, FeatureBlock, FeatureLayout, shards

Floating = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]

SMALLEST_POSTERIOR = 1e-30  # below it 0: subnormal numbers make products several times slower


class Posterior(NamedTuple):
    """What a block of images says about the nodes."""

    responsibilities: Floating
    """(n, K), rows sum to 1."""
    log_evidence: Float64
    """(n,) log p(Y_i), Eq. (2.5), tempered if the temperature is not 1."""


@dataclass(frozen=True)
class Matcher:
    """Node templates prepared for the matrix products of Eq. (3.1). Build with `Matcher.of`.

    Attributes
    ----------
    layout : FeatureLayout
        The shells in use.
    scaled : ndarray of shape (K, P)
        beta mu, in the precision of the data.
    half_norms : ndarray of shape (K, Q)
        1/2 beta mu^2, summed over the features that share a CTF value.
    precision : ndarray of shape (S,), float64
        beta of each shell.
    temperature : float
        Above 1 the posterior is flattened: annealing.
    """

    layout: FeatureLayout
    scaled: Floating
    half_norms: Floating
    precision: Float64
    temperature: float = 1.0

    @classmethod
    def of(
        cls,
        templates: Float64,
        noise_variance: Float64,
        layout: FeatureLayout,
        *,
        dtype: DTypeLike = np.float32,
        temperature: float = 1.0,
    ) -> Matcher:
        """Prepare templates (K, P) under a noise variance for each shell (S,)."""
        precision = 1.0 / noise_variance  # (S,)
        scaled = templates * precision[layout.shell]  # (K, P)
        half_norms = 0.5 * layout.sum_norms(scaled * templates)  # (K, Q)
        return cls(layout, scaled.astype(dtype), half_norms.astype(dtype), precision, temperature)

    def log_joint(self, block: FeatureBlock) -> Floating:
        """Return log p(y_i | node k) without the parts that no node changes; (n, K), Eq. (3.1)."""
        match = block.data @ self.scaled.T  # (n, K), the first product
        if block.norm is None:
            match -= self.half_norms.sum(axis=1)
        else:
            match -= block.norm @ self.half_norms.T  # the second
        match *= match.dtype.type(self.layout.information)  # Eq. (3.10)
        return match

    def log_constant(self, block: FeatureBlock) -> Float64:
        """Return const_i of Eq. (3.1): -1/2 beta |y_i|^2 and the normaliser of the Gaussian; (n,)."""
        normaliser = 0.5 * float(self.layout.shell_sizes @ np.log(self.precision / (2.0 * np.pi)))
        return self.layout.information * (normaliser - 0.5 * (block.power @ self.precision))

    def posterior(self, block: FeatureBlock) -> Posterior:
        """Responsibilities and evidence of a block, Eq. (3.1) and Eq. (2.5)."""
        log_joint = self.log_joint(block)  # (n, K)
        if self.temperature != 1.0:
            log_joint /= log_joint.dtype.type(self.temperature)
        largest = log_joint.max(axis=1, keepdims=True)
        log_joint -= largest
        weights = np.exp(log_joint, out=log_joint)
        total = weights.sum(axis=1, dtype=np.float64)  # (n,)
        weights /= total[:, None].astype(weights.dtype)
        weights[weights < SMALLEST_POSTERIOR] = 0.0
        n_nodes = weights.shape[1]
        log_mean = largest[:, 0].astype(np.float64) + np.log(total / n_nodes)  # prior of Eq. (2.4)
        return Posterior(weights, self.temperature * log_mean + self.log_constant(block))


@dataclass(frozen=True)
class Statistics:
    """Sums over images; they add over blocks, shards and machines, Eq. (3.2).

    The noise precision is left out: it is the same for all images, so the M-step applies it.

    Attributes
    ----------
    cross : ndarray of shape (K, P), float64
        B' = R^T (c y).
    gram : ndarray of shape (K, Q), float64
        G' = R^T c^2.
    power : ndarray of shape (S,), float64
        Sum of y^2 over each shell.
    node_mass : ndarray of shape (K,), float64
        Sum of responsibilities: soft class sizes.
    log_evidence : float
        Sum of log p(Y_i).
    n_samples : int
        Number of images.
    """

    cross: Float64
    gram: Float64
    power: Float64
    node_mass: Float64
    log_evidence: float
    n_samples: int

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.cross + other.cross,
            self.gram + other.gram,
            self.power + other.power,
            self.node_mass + other.node_mass,
            self.log_evidence + other.log_evidence,
            self.n_samples + other.n_samples,
        )


def block_statistics(block: FeatureBlock, responsibilities: Floating, log_evidence: Float64) -> Statistics:
    """Statistics of one block, Eq. (3.2): two matrix products in the precision of the data."""
    node_mass = responsibilities.sum(axis=0, dtype=np.float64)  # (K,)
    cross = responsibilities.T @ block.data  # (K, P)
    if block.norm is None:
        gram = np.repeat(node_mass[:, None], block.power.shape[1], axis=1)  # (K, Q), a column for each shell
    else:
        gram = responsibilities.T @ block.norm  # (K, Q)
    return Statistics(
        cross.astype(np.float64),
        gram.astype(np.float64),
        block.power.sum(axis=0),
        node_mass,
        float(log_evidence.sum()),
        len(block),
    )


def e_step(
    blocks: Blocks,
    matcher: Matcher,
    *,
    n_shells: int | None = None,
    n_jobs: int | None = None,
) -> Statistics:
    """Go through all blocks once and return the statistics of Eq. (3.2).

    Parameters
    ----------
    blocks : Blocks
        The data.
    matcher : Matcher
        Templates, noise and temperature; its layout says how many shells are used.
    n_shells : int, optional
        Shells of the statistics, at least those of the matcher: how frequency marching lets new ones in. By
        default those of the matcher.
    n_jobs : int, optional
        Number of workers. The result is the same bits for any number.

    Returns
    -------
    statistics : Statistics

    Notes
    -----
    O(n_images * n_nodes * n_features): four matrix products a block. Holds K (P + Q) numbers a worker.
    """
    n_shells = matcher.layout.n_shells if n_shells is None else n_shells
    return sum_in_order(partial(_shard_statistics, blocks, matcher, n_shells), shards(blocks), n_jobs=n_jobs)


def _shard_statistics(blocks: Blocks, matcher: Matcher, n_shells: int, shard: range) -> Statistics:
    total: Statistics | None = None
    for index in shard:
        block = blocks.load(index, n_shells)
        part = block_statistics(block, *matcher.posterior(block.prefix(matcher.layout)))
        total = part if total is None else total + part
    if total is None:
        raise ValueError("A shard holds no block: give at least one row of data.")
    return total
