"""E-step: posterior node probabilities and the sums over images that the M-step needs, Eq. (3.1)-(3.2)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy import sparse

from sklearn_cryoem._core.em import Additive
from sklearn_cryoem._core.memory import claim_room
from sklearn_cryoem._core.parallel import ordered_map, row_blocks
from sklearn_cryoem.manifold.blocks import ROWS_AT_ONCE, Blocks, FeatureBlock, FeatureLayout, in_turn, shards

Floating = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

ENOUGH_NATS = 0.01  # products in float32 are good enough where they are this accurate
COLUMNS_AT_ONCE = 2048  # of a product that is added: nothing else of the size of the sums exists
SPARSE_SHARE = 0.1  # of responsibilities above 0: below, sparse products win, at 2 % by 5 times
MIN_SPARSE_COLUMNS = 512  # for fewer, finding the non-zero responsibilities takes longer than the product


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
        Above 1 the posterior is flattened, Eq. (3.17).
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
        log_joint = self.log_joint(self.in_sufficient_precision(block))  # (n, K)
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
    log_evidence : ndarray of shape (n_parts,), float64
        Sum of log p(Y_i).
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
        Templates, noise and temperature: one for all images, or with "folds" one for each fold. Their layout
        says how many shells are compared.
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
    n_shells = matchers[0].layout.n_shells if n_shells is None else n_shells
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
        faces = (_compared(face, matchers, n_parts) for face in loaded.faces(layout))
        for part, (rows, block, (weights, evidence)) in itertools.chain.from_iterable(map(enumerate, faces)):
            left = transposed(weights, layout.n_features)
            numerator, denominator = with_precision_of(block.data, numerator, denominator)
            add_product(numerator[part], left, block.data)  # Eq. (3.2)
            if block.norm is not None:
                add_product(denominator[part], left, block.norm)
            sums.mass[part] += weights.sum(axis=0, dtype=np.float64)
            sums.power[part] += block.power.sum(axis=0)
            sums.log_evidence[part] += evidence.sum()
            sums.n_samples[part] += len(block)
            labels[rows] = weights.argmax(axis=1)  # those of the images themselves come last
        if split == "halves":
            sums.labels.append(labels)
    if loaded.norm is None:
        denominator[:] = sums.mass[:, :, None]  # c = 1, a column for each shell
    return dataclasses.replace(sums, numerator=numerator, denominator=denominator)


def _compared(
    loaded: FeatureBlock, matchers: list[Matcher], n_parts: int
) -> Iterator[tuple[slice | Int, FeatureBlock, Posterior]]:
    """Which rows of a block each part has, these rows, and their posterior."""
    if len(matchers) == 1:
        block = matchers[0].in_sufficient_precision(loaded)
        weights, evidence = matchers[0].posterior(block.prefix(matchers[0].layout))
        for part in range(n_parts):
            half = slice(part, None, n_parts)
            yield half, block.take(half), Posterior(weights[half], evidence[half])
        return
    folds = loaded.folds(n_parts)
    for part, matcher in enumerate(matchers):
        rows = np.flatnonzero(folds == part)
        block = matcher.in_sufficient_precision(loaded.take(rows))
        yield rows, block, matcher.posterior(block.prefix(matcher.layout))


def transposed(weights: Floating, n_columns: int) -> Any:
    """R^T (K, n) of responsibilities R (n, K), as a sparse matrix where that makes products faster.

    Parameters
    ----------
    weights : ndarray of shape (n, K)
        Responsibilities; those that do not matter are exactly 0.
    n_columns : int
        Columns of what it is multiplied with.
    """
    is_sparse = n_columns >= MIN_SPARSE_COLUMNS and np.count_nonzero(weights) < SPARSE_SHARE * weights.size
    return sparse.csr_matrix(weights.T) if is_sparse else weights.T


def with_precision_of(values: Floating, *sums: Floating) -> tuple[Floating, ...]:
    """Sums in the precision of `values`, if that is more than their own."""
    return tuple(each.astype(np.result_type(each, values), copy=False) for each in sums)


def add_product(total: Floating, left: Any, values: Floating) -> None:
    """Add ``left @ values`` to `total` in place.

    Parameters
    ----------
    total : ndarray of shape (K, C)
        Changed in place; see `with_precision_of`.
    left : matrix of shape (K, n)
        Dense or sparse, from `transposed`.
    values : ndarray of shape (n, C)
        In the precision of the products.
    """
    for columns in row_blocks(values.shape[1], COLUMNS_AT_ONCE):
        total[:, columns] += left @ values[:, columns]
