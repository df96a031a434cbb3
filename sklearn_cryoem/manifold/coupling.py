"""The M-step of cross-fitted EM: nodes are coupled as far as neighbours look alike, Eq. (3.13)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.parallel import ordered_map
from sklearn_cryoem.manifold.blocks import Blocks, FeatureBlock, FeatureLayout, ReadBlocks
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.maximisation import solve_systems
from sklearn_cryoem.manifold.prior import DataPower, signal_nats

Float64 = NDArray[np.float64]

TURN = 2.0  # radians times shell times share of the box: how far a view turns until a shell has changed
CLEAR_NATS = 6.0  # of signal in an image; with fewer, views must differ more to be told apart
MAX_BLUR = 2.0  # times TURN
MAX_WIDTH = 3.5  # steps between nodes
MIN_WIDTH = 0.35  # below it neighbours have little in common, and every node is for itself


class ShellNorms:
    """Blocks whose c^2 is averaged over each shell, in the M-step as if there were no astigmatism.

    With one system a shell the M-steps of all folds together cost less than one with a system for every
    coefficient. Images are still multiplied by their true CTF.

    Parameters
    ----------
    blocks : Blocks
        The data.
    """

    sent_once = True  # to each worker of a cluster; see _core.parallel

    def __init__(self, blocks: Blocks) -> None:
        layout = blocks.layout
        self._blocks = blocks
        self.layout = dataclasses.replace(layout, norm_index=layout.shell)
        self.n_samples = blocks.n_samples
        shell = layout.shell[layout.norm_starts]  # of each column of c^2; (Q,)
        n_features = np.diff(layout.norm_starts, append=layout.n_features)  # of each column; (Q,)
        self._share = np.zeros((layout.n_norms, layout.n_shells), dtype=np.float32)  # (Q, S)
        self._share[np.arange(layout.n_norms), shell] = n_features / layout.shell_sizes[shell]

    def __len__(self) -> int:
        return len(self._blocks)

    def load(self, index: int, n_shells: int) -> FeatureBlock:
        """Return block `index`, its first `n_shells` shells, with c^2 (n, S)."""
        return self._pooled(partial(self._blocks.load, index, n_shells), n_shells)

    def fetch(self, index: int, n_shells: int) -> Callable[[], FeatureBlock]:
        """Read what block `index` is made of, if it comes from files."""
        if not isinstance(self._blocks, ReadBlocks):
            return partial(self.load, index, n_shells)
        return partial(self._pooled, self._blocks.fetch(index, n_shells), n_shells)

    def _pooled(self, make: Callable[[], FeatureBlock], n_shells: int) -> FeatureBlock:
        block = make()
        if block.norm is None:
            return block
        share = self._share[: block.norm.shape[1], :n_shells].astype(block.norm.dtype, copy=False)
        return FeatureBlock(block.data, block.norm @ share, block.power, block.log_noise)


def turn_of(power: DataPower, layout: FeatureLayout) -> float:
    """How far views turn, times shell and share of the box, until images tell them apart; Eq. (3.13).

    Parameters
    ----------
    power : DataPower
        Signal and noise: an image locates its view within an angle that goes with 1 / sqrt(nats).
    layout : FeatureLayout
        Sizes of the shells.
    """
    nats = max(signal_nats(power, layout), CLEAR_NATS / MAX_BLUR**2)
    return TURN * float(np.sqrt(max(CLEAR_NATS / nats, 1.0)))


@dataclasses.dataclass(frozen=True)
class Coupling:
    """Basis of each shell for templates mu = Phi_q W_q, and the prior precision of its weights. See `of`.

    Attributes
    ----------
    bases : list of ndarray of shape (K, M_q + 1) or None
        Phi of each shell; None where nodes are independent about the mean of the data.
    alpha : ndarray of shape (S,)
        Prior precision of the weights of each shell.
    mean : ndarray of shape (P,)
        Mean of the data.
    """

    bases: list[Float64 | None]
    alpha: Float64
    mean: Float64

    @classmethod
    def of(
        cls, basis: LatentBasis, alpha: Float64, layout: FeatureLayout, mean: Float64, turn: float
    ) -> Coupling:
        """Couple nodes at each shell as far as an image changes little from one to the next, Eq. (3.13).

        Parameters
        ----------
        basis : LatentBasis
            Gives the nodes.
        alpha : ndarray of shape (S,)
            Prior precision of its weights: templates get the variance that they would have with it.
        layout : FeatureLayout
            Shells, and the share of the box that the particle fills.
        mean : ndarray of shape (P,)
            Mean of the data.
        turn : float
            See `turn_of`.
        """
        step = np.sqrt(4.0 * np.pi / len(basis.nodes))  # radians between nodes that share all views
        widths = turn / (np.pi * layout.diameter * np.arange(1, layout.n_shells + 1)) / step  # (S,)
        bases: list[Float64 | None] = []
        mean_square = np.ones(layout.n_shells)
        for shell, width in enumerate(np.minimum(widths, MAX_WIDTH)):
            if width < MIN_WIDTH:
                bases.append(None)
                continue
            wide = dataclasses.replace(basis, basis_shape=basis.grid_shape, width=float(width))
            bases.append(wide.phi)
            mean_square[shell] = wide.mean_square
        return cls(bases, alpha * mean_square / basis.mean_square, mean)

    def templates(
        self,
        numerator: Float64,
        denominator: Float64,
        noise_variance: Float64,
        layout: FeatureLayout,
        *,
        n_jobs: int | None = None,
    ) -> Float64:
        """Templates (K, P) that maximise the expected log posterior; c^2 is that of the shell, Eq. (3.3).

        Parameters
        ----------
        numerator, denominator : ndarrays of shape (K, P) and (K, S)
            B' and G' of Eq. (3.2).
        noise_variance : ndarray of shape (S,)
            1 / beta of each shell.
        layout : FeatureLayout
            The shells in use.
        n_jobs : int, optional
            Number of workers.
        """
        ridge = self.alpha[: layout.n_shells] * noise_variance / layout.information  # (S,)
        solve = partial(self._solve_shell, numerator, denominator, ridge, layout)
        solved = list(ordered_map(solve, range(layout.n_shells), n_jobs=n_jobs, threads_only=True))
        return layout.confine(np.hstack(solved))

    def _solve_shell(
        self, numerator: Float64, denominator: Float64, ridge: Float64, layout: FeatureLayout, shell: int
    ) -> Float64:
        features, phi = layout.features_of(shell), self.bases[shell]
        own, numerator = denominator[:, shell, None], numerator[:, features]
        if phi is None:
            mean = self.mean[features]
            regularised = np.maximum(own + ridge[shell], np.finfo(np.float64).tiny)  # alpha may be 0
            return np.asarray((numerator - own * mean) / regularised + mean)
        column = np.zeros(numerator.shape[1], dtype=np.int64)
        solution = solve_systems(phi, own, float(ridge[shell]), phi.T @ numerator, column)
        return np.asarray(phi @ solution.weights)
