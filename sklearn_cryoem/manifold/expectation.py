"""E-step: posterior node probabilities and the sums over images that the M-step needs, Eq. (3.1)-(3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sklearn_cryoem._core.em import Additive
from sklearn_cryoem._core.memory import claim_room
from sklearn_cryoem._core.parallel import ordered_map, row_blocks
from sklearn_cryoem.manifold.blocks import ROWS_AT_ONCE, Blocks, FeatureBlock, FeatureLayout, in_turn, shards
from sklearn_cryoem.manifold.products import add_product, transposed, with_precision_of

Floating = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

ENOUGH_NATS = 0.01  # products in float32 are good enough where they are this accurate


class Posterior(NamedTuple):
    """What a block of images says about the nodes."""

    responsibilities: Floating
    """(n, K), rows sum to 1."""
    log_evidence: Float64
    """(n,) log p(Y_i), Eq. (2.5)."""
    label: Int | None = None
    """(n,) class by the whole map, where that was asked for."""


class Factors(NamedTuple):
    """What blocks are multiplied with."""

    scaled: Floating
    """beta mu, (K, P)."""
    half_norms: Floating
    """1/2 beta mu^2, summed over the features that share a CTF value, (K, Q)."""

    @classmethod
    def of(cls, templates: Float64, precision: Float64, layout: FeatureLayout, dtype: DTypeLike) -> Factors:
        """Scale templates (K, P), a few rows at a time, by the precision (S,) or (K, S) of their shells."""
        precision = np.broadcast_to(precision, (len(templates), layout.n_shells))
        scaled = np.empty(templates.shape, dtype=dtype)
        half_norms = np.empty((len(templates), layout.n_norms), dtype=dtype)
        for rows in row_blocks(len(templates), ROWS_AT_ONCE):
            product = templates[rows] * precision[rows, layout.shell]
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
        beta of each shell, 0 where no likelihood counts it.
    factors : Factors
        beta mu and its norms, in the precision of the data.
    of_node : ndarray of shape (K, S), float64, or None
        Precision for each node, whose template has a variance of its own; None for that of the shell.
    """

    layout: FeatureLayout
    templates: Float64
    precision: Float64
    factors: Factors
    of_node: Float64 | None = None

    @classmethod
    def of(
        cls,
        templates: Float64,
        noise_variance: Float64,
        layout: FeatureLayout,
        *,
        dtype: DTypeLike = np.float32,
        spread: Float64 | None = None,
    ) -> Matcher:
        """Prepare templates (K, P) under a noise variance (S,), and one of their own (K, S), Eq. (3.17)."""
        claim_room()  # a pass begins here
        precision = layout.counts / noise_variance  # (S,), Eq. (3.31)
        of_node = None if spread is None else layout.counts / (noise_variance + spread)  # (K, S)
        factors = Factors.of(templates, precision if of_node is None else of_node, layout, dtype)
        return cls(layout, templates, precision, factors, of_node)

    @cached_property
    def double_factors(self) -> Factors:
        """The factors in double precision, made when they are first needed."""
        precision = self.precision if self.of_node is None else self.of_node
        return Factors.of(self.templates, precision, self.layout, np.float64)

    def in_sufficient_precision(self, block: FeatureBlock) -> FeatureBlock:
        """Return `block` in double precision where single precision does not suffice.

        Parts of Eq. (3.1) as large as half of beta |y|^2 cancel: near the variance floor, where duplicates
        drive the noise, that is a million nats, and float32 loses whole nats of the differences that count.

        `block` has the shells of the matcher or more.
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
        match -= block.norm @ half_norms.T  # the second
        if self.of_node is not None:  # Eq. (3.17)
            seen = slice(self.layout.n_ignored, None)
            log_ratio = np.log(self.of_node[:, seen] / self.precision[seen])
            log_size = log_ratio @ self.layout.shell_sizes[seen]  # (K,)
            match += 0.5 * (log_size - block.power @ (self.of_node - self.precision).T).astype(match.dtype)
        if self.layout.information != 1.0:
            match *= match.dtype.type(self.layout.information)  # Eq. (3.10)
        return match

    def log_constant(self, block: FeatureBlock) -> Float64:
        """Return const_i of Eq. (3.1): -1/2 beta |y_i|^2 and the normaliser of the Gaussian; (n,)."""
        seen = slice(self.layout.n_ignored, None)
        sizes = self.layout.shell_sizes[seen]
        of_shells = 0.5 * float(sizes @ np.log(self.precision[seen] / (2.0 * np.pi)))
        normaliser = of_shells - 0.5 * (block.log_noise[:, seen] @ sizes)  # (n,), Eq. (3.14)
        return self.layout.information * (normaliser - 0.5 * (block.power @ self.precision))

    def posterior(self, block: FeatureBlock) -> Posterior:
        """Responsibilities and evidence of a block, Eq. (3.1) and Eq. (2.5).

        Responsibilities that no sum over the nodes can tell from 0 in their precision are 0. Near the end of
        a fit most are, and sums over images are then sparse products.
        """
        log_joint = self.log_joint(self.in_sufficient_precision(block))  # (n, K)
        largest = log_joint.max(axis=1, keepdims=True)
        log_joint -= largest
        weights = np.exp(log_joint, out=log_joint)
        total = weights.sum(axis=1, keepdims=True)  # (n, 1)
        weights *= 1.0 / total
        n_nodes = weights.shape[1]
        np.putmask(weights, weights < np.finfo(weights.dtype).eps / n_nodes, 0.0)
        log_mean = (largest.astype(np.float64) + np.log(total / n_nodes))[:, 0]  # prior of Eq. (2.4)
        return Posterior(weights, log_mean + self.log_constant(block))


@dataclass(frozen=True)
class Statistics(Additive):
    """Sums over each part of the images, Eq. (3.2): over all of them, each fold, or each half.

    Arrays have an axis of parts in front, but not those that `part` and `total` return.

    Attributes
    ----------
    numerator : ndarray of shape (n_parts, K, P)
        B' = R^T (c y), the numerator of templates.
    denominator : ndarray of shape (n_parts, K, Q)
        G' = R^T c^2, their denominator.
    power : ndarray of shape (n_parts, S), float64
        Sum of y^2 over each shell.
    mass : ndarray of shape (n_parts, K), float64
        Sum of responsibilities: soft class sizes.
    log_evidence, log_noise : ndarray of shape (n_parts,), float64
        Sums of log p(Y_i) and of the log likelihood of noise alone.
    n_samples : ndarray of shape (n_parts,), int
        Number of images.
    labels : list of ndarray
        Most probable node of each image, block by block, of a sweep over halves.
    """

    numerator: NDArray[Any]
    denominator: NDArray[Any]
    power: Float64
    mass: Float64
    log_evidence: Any
    log_noise: Any
    n_samples: Any
    labels: list[Int]

    @classmethod
    def zeros(cls, n_parts: int, n_nodes: int, layout: FeatureLayout, dtype: DTypeLike) -> Statistics:
        """Sums over no image, in the precision of the data."""
        return cls(
            numerator=np.zeros((n_parts, n_nodes, layout.n_features), dtype),
            denominator=np.zeros((n_parts, n_nodes, layout.n_norms), dtype),
            power=np.zeros((n_parts, layout.n_shells)),
            mass=np.zeros((n_parts, n_nodes)),
            log_evidence=np.zeros(n_parts),
            log_noise=np.zeros(n_parts),
            n_samples=np.zeros(n_parts, dtype=np.int64),
            labels=[],
        )

    def mapped(self, function: Callable[[Any], Any]) -> Statistics:
        """Apply `function` to every array; labels are left out."""
        arrays = {name: function(value) for name, value in vars(self).items() if name != "labels"}
        return Statistics(**arrays, labels=[])

    def part(self, index: int) -> Statistics:
        """Sums over one part, as views."""
        return self.mapped(lambda array: array[index])

    def total(self) -> Statistics:
        """Sums over all parts."""
        return self.part(0) if len(self.numerator) == 1 else self.mapped(lambda array: array.sum(axis=0))

    def without(
        self, part: Statistics, features: slice = slice(None), norms: slice = slice(None)
    ) -> tuple[Float64, Float64]:
        """Columns of both sums over other images, or all where there are no others: copies share a fold."""
        numerator, denominator = self.numerator[:, features], self.denominator[:, norms]
        if self.n_samples == part.n_samples:
            return numerator, denominator
        others = denominator - part.denominator[:, norms]  # squares: positive, whatever their last digits
        return numerator - part.numerator[:, features], np.maximum(others, 0.0)

    def scaled(self, factor: float) -> Statistics:
        """The same sums as if every image counted `factor` times."""
        return self.mapped(lambda array: factor * array)


def sweep(
    blocks: Blocks,
    matchers: list[Matcher],
    split: str = "all",
    *,
    n_shells: int | None = None,
    n_jobs: int | None = None,
) -> Statistics:
    """Compare all images with the templates and add up statistics in float64, Eq. (3.1)-(3.2).

    Parameters
    ----------
    blocks : Blocks
        The data.
    matchers : list of Matcher
        Templates and noise: one for all images, or with "folds" one for each fold. Their layout says how many
        shells are compared.
    split : {"all", "folds", "halves"}
        The parts: all images; folds, see `FeatureBlock.folds`; or the even and the odd rows, with labels.
    n_shells : int, optional
        Shells of the statistics, at least those of the matchers: how frequency marching lets new ones in. By
        default those of the matchers.
    n_jobs : int, optional
        Number of workers. The result is the same bits for any number.

    Notes
    -----
    O(n_images * n_nodes * n_features): four matrix products a block, two of them sparse where the
    responsibilities are. For each part K (P + Q) numbers are held in float64, and as many in the precision
    of the data for each worker and one more.
    """
    n_shells = n_shells or matchers[0].layout.n_shells
    add_up = partial(_shard_sums, blocks, matchers, split, n_shells)
    total: Statistics | None = None
    # Sums of halves are twice as large as those of an E-step: none of them waits for its turn.
    for part in ordered_map(add_up, shards(blocks), n_jobs=n_jobs, max_waiting=0 if split == "halves" else 1):
        if total is None:
            total = part.in_double()
        else:
            total += part
        del part  # before the next is made
    if total is None:
        raise ValueError("There are no images to compare: give at least one row of data.")
    return total


def _shard_sums(
    blocks: Blocks, matchers: list[Matcher], split: str, n_shells: int, shard: range
) -> Statistics:
    """Statistics of some blocks; sums are in the precision of the data."""
    layout, n_nodes = blocks.layout.truncate(n_shells), len(matchers[0].templates)
    n_parts = {"all": 1, "folds": len(matchers), "halves": 2}[split]
    sums = Statistics.zeros(n_parts, n_nodes, layout, matchers[0].factors.scaled.dtype)
    numerator, denominator = sums.numerator, sums.denominator
    for loaded in in_turn(blocks, shard, n_shells):
        labels = np.empty(len(loaded), dtype=np.int64)
        faces = (_compared(face, matchers, split) for face in loaded.faces(layout))
        for part, (rows, block, (weights, evidence, _), alone) in chain.from_iterable(map(enumerate, faces)):
            left = transposed(weights, layout.n_features)
            numerator, denominator = with_precision_of(block.data, numerator, denominator)
            add_product(numerator[part], left, block.data)  # Eq. (3.2)
            add_product(denominator[part], left, block.norm)
            sums.mass[part] += weights.sum(axis=0, dtype=np.float64)
            sums.power[part] += block.power.sum(axis=0)
            sums.log_evidence[part] += evidence.sum()
            sums.log_noise[part] += alone.sum()
            sums.n_samples[part] += len(block)
            labels[rows] = weights.argmax(axis=1)  # those of the images themselves come last
        if split == "halves":
            sums.labels.append(labels)
    return dataclasses.replace(sums, numerator=numerator, denominator=denominator)


def _compared(
    loaded: FeatureBlock, matchers: list[Matcher], split: str
) -> Iterator[tuple[slice | Int, FeatureBlock, Posterior, Float64]]:
    """Which rows of a block each part has, these rows, their posterior and the likelihood of noise alone."""
    if split != "folds":
        block = matchers[0].in_sufficient_precision(loaded)
        used = block.prefix(matchers[0].layout)
        (weights, evidence, _), alone = matchers[0].posterior(used), matchers[0].log_constant(used)
        n_parts = 2 if split == "halves" else 1
        for part in range(n_parts):
            half = slice(part, None, n_parts)
            yield half, block.take(half), Posterior(weights[half], evidence[half]), alone[half]
        return
    folds = loaded.folds(len(matchers))
    for part, matcher in enumerate(matchers):
        rows = np.flatnonzero(folds == part)
        block = matcher.in_sufficient_precision(loaded.take(rows))
        used = block.prefix(matcher.layout)
        yield rows, block, matcher.posterior(used), matcher.log_constant(used)


def posterior_by_folds(block: FeatureBlock, matchers: list[Matcher]) -> Posterior:
    """Posterior of a block under one matcher, or of each fold under its own, Eq. (3.17)."""
    if len(matchers) == 1:
        return matchers[0].posterior(block.prefix(matchers[0].layout))
    folds = block.folds(len(matchers))
    weights = np.empty((len(block), len(matchers[0].templates)), dtype=block.data.dtype)
    evidence = np.empty(len(block))
    for fold, matcher in enumerate(matchers):
        rows = np.flatnonzero(folds == fold)
        weights[rows], evidence[rows], _ = matcher.posterior(block.take(rows).prefix(matcher.layout))
    return Posterior(weights, evidence)
