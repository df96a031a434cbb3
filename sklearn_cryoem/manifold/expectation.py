"""E-step: posterior node probabilities and the statistics that the M-step needs, Eq. (3.1)-(3.2)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sklearn_cryoem._core.memory import claim_room
from sklearn_cryoem._core.parallel import row_blocks
from sklearn_cryoem.manifold.blocks import ROWS_AT_ONCE, Blocks, FeatureBlock, FeatureLayout, in_turn, shards
from sklearn_cryoem.manifold.sums import add_product, sum_in_place, transposed, with_digits_of

Floating = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]
Sums = NDArray[Any]  # float32 or float64

ENOUGH_NATS = 0.01  # products in float32 are good enough where they are this accurate


class Posterior(NamedTuple):
    """What a block of images says about the nodes."""

    responsibilities: Floating
    """(n, K), rows sum to 1."""
    log_evidence: Float64
    """(n,) log p(Y_i), Eq. (2.5), tempered if the temperature is not 1."""


class Factors(NamedTuple):
    """What blocks are multiplied with."""

    scaled: Floating
    """beta mu, (K, P)."""
    half_norms: Floating
    """1/2 beta mu^2, summed over the features that share a CTF value, (K, Q)."""

    @classmethod
    def of(cls, templates: Float64, precision: Float64, layout: FeatureLayout, dtype: DTypeLike) -> Factors:
        """Scale templates (K, P), a few rows at a time."""
        beta = precision[layout.shell]  # (P,)
        scaled = np.empty(templates.shape, dtype=dtype)
        half_norms = np.empty((len(templates), layout.n_norms), dtype=dtype)
        for rows in row_blocks(len(templates), ROWS_AT_ONCE):
            product = templates[rows] * beta
            scaled[rows] = product
            half_norms[rows] = 0.5 * layout.sum_norms(product * templates[rows])
        return cls(scaled, half_norms)


@dataclass(frozen=True)
class Matcher:
    """Node templates prepared for the matrix products of Eq. (3.1). Build with `Matcher.of`.

    Attributes
    ----------
    layout : FeatureLayout
        The shells in use.
    templates : ndarray of shape (K, P), float64
        mu.
    precision : ndarray of shape (S,), float64
        beta of each shell.
    factors : Factors
        beta mu and its norms, in the precision of the data.
    temperature : float
        Above 1 the posterior is flattened: annealing.
    """

    layout: FeatureLayout
    templates: Float64
    precision: Float64
    factors: Factors
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
        claim_room()  # a pass begins here
        precision = 1.0 / noise_variance  # (S,)
        return cls(layout, templates, precision, Factors.of(templates, precision, layout, dtype), temperature)

    @cached_property
    def double_factors(self) -> Factors:
        """The factors in double precision, made when they are first needed."""
        return Factors.of(self.templates, self.precision, self.layout, np.float64)

    def in_enough_digits(self, block: FeatureBlock) -> FeatureBlock:
        """Return `block` in double precision where the digits of single precision do not suffice.

        Parts of Eq. (3.1) as large as half of beta |y|^2 cancel: near the variance floor, where duplicates
        drive the noise, that is a million nats, and float32 loses whole nats of the differences that count.

        Parameters
        ----------
        block : FeatureBlock
            Images, with the shells of the matcher or more.
        """
        if block.data.dtype == np.float64:
            return block
        power = block.power[:, : self.layout.n_shells]
        largest = 0.5 * self.layout.information * float((power @ self.precision).max(initial=0.0))
        return block.in_double() if largest * np.finfo(block.data.dtype).eps > ENOUGH_NATS else block

    def log_joint(self, block: FeatureBlock) -> Floating:
        """Return log p(y_i | node k) without the parts that no node changes; (n, K), Eq. (3.1)."""
        in_precision = block.data.dtype == self.factors.scaled.dtype
        scaled, half_norms = self.factors if in_precision else self.double_factors
        match: Floating = block.data @ scaled.T  # (n, K), the first product
        if block.norm is None:
            match -= half_norms.sum(axis=1)
        else:
            match -= block.norm @ half_norms.T  # the second
        if self.layout.information != 1.0:
            match *= match.dtype.type(self.layout.information)  # Eq. (3.10)
        return match

    def log_constant(self, block: FeatureBlock) -> Float64:
        """Return const_i of Eq. (3.1): -1/2 beta |y_i|^2 and the normaliser of the Gaussian; (n,)."""
        sizes = self.layout.shell_sizes
        normaliser: Float64 | float = 0.5 * float(sizes @ np.log(self.precision / (2.0 * np.pi)))
        if block.log_noise is not None:
            normaliser = normaliser - 0.5 * (block.log_noise @ sizes)  # Eq. (3.14)
        return self.layout.information * (normaliser - 0.5 * (block.power @ self.precision))

    def posterior(self, block: FeatureBlock) -> Posterior:
        """Responsibilities and evidence of a block, Eq. (3.1) and Eq. (2.5).

        Responsibilities that no sum over the nodes can tell from 0 in their precision are 0. Near the end of
        a fit most are, and sums over images are then sparse products.
        """
        log_joint = self.log_joint(self.in_enough_digits(block))  # (n, K)
        if self.temperature != 1.0:
            log_joint /= log_joint.dtype.type(self.temperature)
        largest = log_joint.max(axis=1, keepdims=True)
        log_joint -= largest
        weights = np.exp(log_joint, out=log_joint)
        total = weights.sum(axis=1, keepdims=True)  # (n, 1)
        weights *= 1.0 / total
        n_nodes = weights.shape[1]
        np.putmask(weights, weights < np.finfo(weights.dtype).eps / n_nodes, 0.0)
        log_mean = (largest.astype(np.float64) + np.log(total / n_nodes))[:, 0]  # prior of Eq. (2.4)
        return Posterior(weights, self.temperature * log_mean + self.log_constant(block))


@dataclass(frozen=True)
class Statistics:
    """Sums over images; they add over blocks, shards and machines, Eq. (3.2).

    The noise precision is left out: it is the same for all images, so the M-step applies it.

    Attributes
    ----------
    cross : ndarray of shape (K, P)
        B' = R^T (c y); of one shard in the precision of the data, else float64.
    gram : ndarray of shape (K, Q)
        G' = R^T c^2; likewise.
    power : ndarray of shape (S,), float64
        Sum of y^2 over each shell.
    node_mass : ndarray of shape (K,), float64
        Sum of responsibilities: soft class sizes.
    log_evidence : float
        Sum of log p(Y_i).
    n_samples : int
        Number of images.
    """

    cross: Sums
    gram: Sums
    power: Float64
    node_mass: Float64
    log_evidence: float
    n_samples: int

    def in_double(self) -> Statistics:
        """Return the same sums in float64: the total that those of other shards are added to."""
        cross, gram = (sums.astype(np.float64, copy=False) for sums in (self.cross, self.gram))
        return dataclasses.replace(self, cross=cross, gram=gram)

    def __iadd__(self, other: Statistics) -> Statistics:
        for mine, theirs in zip(self._arrays, other._arrays, strict=True):
            mine += theirs
        evidence = self.log_evidence + other.log_evidence
        return Statistics(*self._arrays, evidence, self.n_samples + other.n_samples)

    @property
    def _arrays(self) -> tuple[Sums, Sums, Float64, Float64]:
        return self.cross, self.gram, self.power, self.node_mass

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.cross + other.cross,
            self.gram + other.gram,
            self.power + other.power,
            self.node_mass + other.node_mass,
            self.log_evidence + other.log_evidence,
            self.n_samples + other.n_samples,
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
    O(n_images * n_nodes * n_features): four matrix products a block, two of them sparse where the
    responsibilities are. Holds K (P + Q) numbers in float64, and as many in the precision of the data for
    each worker and one more.
    """
    n_shells = matcher.layout.n_shells if n_shells is None else n_shells
    return sum_in_place(partial(_shard_statistics, blocks, matcher, n_shells), shards(blocks), n_jobs=n_jobs)


def _shard_statistics(blocks: Blocks, matcher: Matcher, n_shells: int, shard: range) -> Statistics:
    if not shard:
        raise ValueError("A shard holds no block: give at least one row of data.")
    layout, n_nodes = blocks.layout.truncate(n_shells), len(matcher.templates)
    dtype = matcher.factors.scaled.dtype
    cross: Sums = np.zeros((n_nodes, layout.n_features), dtype)
    gram: Sums = np.zeros((n_nodes, layout.n_norms), dtype)
    node_mass, power = np.zeros(n_nodes), np.zeros(layout.n_shells)
    log_evidence, n_samples = 0.0, 0
    for loaded in in_turn(blocks, shard, n_shells):
        block = matcher.in_enough_digits(loaded)
        weights, evidence = matcher.posterior(block.prefix(matcher.layout))
        left = transposed(weights, block.data.shape[1])
        cross, gram = with_digits_of(block.data, cross, gram)
        add_product(cross, left, block.data)  # Eq. (3.2)
        if block.norm is not None:
            add_product(gram, left, block.norm)
        node_mass += weights.sum(axis=0)
        power += block.power.sum(axis=0)
        log_evidence += float(evidence.sum())
        n_samples += len(block)
        has_norm = block.norm is not None
    if not has_norm:
        gram[:] = node_mass[:, None]  # c = 1, a column for each shell
    return Statistics(cross, gram, power, node_mass, log_evidence, n_samples)
