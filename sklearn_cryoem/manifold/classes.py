"""What comes out of a fitted manifold: class averages, how far posteriors hold, latent positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.special import xlogy

from sklearn_cryoem._core.parallel import ordered_map, row_blocks
from sklearn_cryoem.manifold.blocks import ROWS_AT_ONCE, Blocks, FeatureLayout
from sklearn_cryoem.manifold.derived_blocks import ShellNorms
from sklearn_cryoem.manifold.expectation import (
    Matcher,
    Posterior,
    Statistics,
    posterior_by_folds,
    sweep,
)
from sklearn_cryoem.manifold.maximisation import solve_weights
from sklearn_cryoem.manifold.state import Manifold

Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

Result = TypeVar("Result")

MAX_RIDGE = 1e3  # noise over signal, at most: where there is no signal an average is as good as 0


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
class HeldOut:
    """What makes posteriors as certain as they are right, Eq. (3.17).

    Attributes
    ----------
    weights : ndarray of shape (n_folds, M + 1, P), float32
        W that all images but those of a fold give.
    spread : ndarray of shape (K, S)
        Variance that the uncertainty of each template adds to a feature of an image.
    """

    weights: NDArray[np.float32]
    spread: Float64

    def matchers(self, manifold: Manifold, layout: FeatureLayout, dtype: DTypeLike) -> list[Matcher]:
        """Prepare the templates of each fold."""
        phi, noise = manifold.basis.phi, manifold.noise_variance
        return [
            Matcher.of(phi @ weights, noise, layout, dtype=dtype, spread=self.spread)
            for weights in self.weights
        ]


def hold_out(
    blocks: Blocks,
    manifold: Manifold,
    n_folds: int,
    has_signal: bool,
    *,
    dtype: DTypeLike = np.float32,
    n_jobs: int | None = None,
) -> HeldOut:
    """Make templates for the images of each fold from those of all others, Eq. (3.17).

    Parameters
    ----------
    blocks : Blocks
        The data that the manifold was fitted to.
    manifold : Manifold
        The fit.
    n_folds : int
        Number of folds.
    has_signal : bool
        Whether images differ by more than noise; if not, all nodes have one template.
    dtype : dtype
        Precision of the matrix products.
    n_jobs : int, optional
        Number of workers.

    Notes
    -----
    A pass over the data, and an M-step for each fold with one system for each shell.
    """
    shells = ShellNorms(blocks)
    layout, noise, alpha = shells.layout, manifold.noise_variance, manifold.alpha
    folds = sweep(shells, [manifold.matcher(layout, dtype=dtype)] * n_folds, "folds", n_jobs=n_jobs)
    total, parts = folds.total(), [folds.part(fold) for fold in range(n_folds)]
    if not has_signal:  # one template
        alpha = 1e9 * alpha
    weights = [
        solve_weights(*sums, manifold.basis, noise, alpha, layout, n_jobs=n_jobs).astype(np.float32)
        for sums in map(total.without, parts)
    ]
    mean_ctf2 = total.denominator.sum(axis=0) / total.n_samples  # (S,)
    phi, scale = manifold.basis.phi, noise / layout.information  # (S,)
    variance = np.empty(total.denominator.shape)  # of a feature of each template; (K, S)
    for shell, ridge in enumerate(alpha * scale):
        system = phi.T @ (total.denominator[:, shell, None] * phi) + np.diag(ridge * manifold.basis.has_prior)
        inverse = np.linalg.pinv(system, hermitian=True)
        variance[:, shell] = scale[shell] * ((phi @ inverse) * phi).sum(axis=1)
    return HeldOut(np.stack(weights), mean_ctf2 * variance)


def map_posterior(
    function: Callable[[Posterior], Result],
    blocks: Blocks,
    matchers: list[Matcher],
    *,
    whole: Matcher | None = None,
    n_jobs: int | None = None,
) -> Iterator[Result]:
    """Yield `function(posterior)` for every block in turn, so that no (n_images, K) array need exist.

    With `whole`, the posterior has labels by that.
    """
    task = partial(_of_block, function, blocks, matchers, whole)
    return ordered_map(task, range(len(blocks)), n_jobs=n_jobs)


def _of_block(
    function: Callable[[Posterior], Result],
    blocks: Blocks,
    matchers: list[Matcher],
    whole: Matcher | None,
    index: int,
) -> Result:
    block = blocks.load(index, matchers[0].layout.n_shells)
    block = matchers[0].in_sufficient_precision(block)
    posterior = posterior_by_folds(block, matchers)
    if whole is not None:
        posterior = posterior._replace(label=most_probable(whole.posterior(block)))
    return function(posterior)


def most_probable(posterior: Posterior) -> Int:
    """Node of each image; (n,)."""
    return np.asarray(posterior.responsibilities.argmax(axis=1))


def label_sums(posterior: Posterior) -> Float64:
    """Sums of posteriors, and last that of r log r, over the images of a block, for Eq. (3.8); (1, K + 1)."""
    shares = posterior.responsibilities.astype(np.float64)  # (n, K)
    return np.append(shares.sum(axis=0), xlogy(shares, shares).sum())[None]


def told_apart(sums: Float64) -> float:
    """Number of classes that images are told apart into, Eq. (3.8); from sums (K + 1,) of `label_sums`."""
    shares, certainty = sums[:-1] / sums[:-1].sum(), sums[-1] / sums[:-1].sum()
    return float(np.exp(certainty - xlogy(shares, shares).sum()))


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
    """Class by the whole map, its posterior, and the mean position of each image; (n, 2 + E)."""
    label = most_probable(posterior) if posterior.label is None else posterior.label
    own = np.take_along_axis(posterior.responsibilities, label[:, None], axis=1)
    return np.column_stack([label, own, mean_positions(posterior, places)])
