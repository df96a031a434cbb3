"""Blocks made of others: one c^2 a shell, and the last images of a stream, which can be matched again."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.parallel import row_blocks
from sklearn_cryoem.manifold.blocks import BLOCK_SIZE, Blocks, FeatureBlock, FeatureLayout, ReadBlocks

Floating = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]

MAX_IMAGES = 2000  # or MAX_PER_NODE for each node, if that is more
MAX_PER_NODE = 8
MAX_BYTES = 256 * 2**20


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
        self.layout = replace(layout, norm_index=layout.shell)
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
        share = self._share[: block.norm.shape[1], :n_shells].astype(block.norm.dtype, copy=False)
        return FeatureBlock(block.data, block.norm @ share, block.power, block.log_noise)


@dataclass(frozen=True)
class Window:
    """The last images of a stream as features in memory, so that they can be matched again: `Blocks`.

    Attributes
    ----------
    layout : FeatureLayout
        Columns; one column of c^2 a shell, its mean.
    held : FeatureBlock
        All rows.
    """

    layout: FeatureLayout
    held: FeatureBlock

    @classmethod
    def of(cls, blocks: Blocks, first: int) -> Window:
        """Hold the blocks from number `first` on, of which there is one at least."""
        layout = blocks.layout
        loaded = [blocks.load(index, layout.n_shells) for index in range(first, len(blocks))]
        return cls(layout, functools.reduce(_joined, loaded))

    @property
    def n_samples(self) -> int:
        """Number of rows."""
        return len(self.held)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def _rows(self) -> list[slice]:
        return row_blocks(self.n_samples, BLOCK_SIZE)

    def load(self, index: int, n_shells: int) -> FeatureBlock:
        """Return block `index`, its first `n_shells` shells."""
        return self.held.take(self._rows[index]).prefix(self.layout.truncate(n_shells))

    def rows(self, rows: slice) -> Window:
        """Return some of the rows, as views."""
        return Window(self.layout, self.held.take(rows))

    def owned(self) -> Window:
        """Return the same rows in arrays of their own, so that others can be freed."""
        return Window(self.layout, copy.deepcopy(self.held))

    def joined(self, other: Window) -> Window:
        """Return the rows of both, in an array of their own."""
        return Window(self.layout, _joined(self.held, other.held))


def _joined(first: FeatureBlock, second: FeatureBlock) -> FeatureBlock:
    """Rows of both."""
    arrays = zip(vars(first).values(), vars(second).values(), strict=True)
    return FeatureBlock(*map(np.concatenate, arrays))


@dataclass(frozen=True)
class FirstBlocks:
    """The first blocks of others.

    Attributes
    ----------
    blocks : Blocks
        The others.
    n_blocks : int
        How many, at least 1.
    n_samples : int
        Their rows.
    """

    blocks: Blocks
    n_blocks: int
    n_samples: int

    @property
    def layout(self) -> FeatureLayout:
        """Columns."""
        return self.blocks.layout

    def __len__(self) -> int:
        return self.n_blocks

    def load(self, index: int, n_shells: int) -> FeatureBlock:
        """Return block `index`, its first `n_shells` shells."""
        return self.blocks.load(index, n_shells)


def admit(window: Window | None, chunk: Blocks, n_nodes: int) -> tuple[list[Blocks], Window]:
    """Let a chunk into the window; the oldest rows leave where there are too many.

    Parameters
    ----------
    window : Window or None
        What is held so far.
    chunk : Blocks
        New images; one column of c^2 a shell. Of a large chunk the first blocks never enter.
    n_nodes : int
        Number of nodes K.

    Returns
    -------
    leaving : list of Blocks
        Rows that are seen for the last time, oldest first.
    staying : Window
    """
    n_shells = chunk.layout.n_shells
    limit = _max_rows(chunk.load(0, n_shells), n_nodes)
    first, n_after = 0, chunk.n_samples
    while first < len(chunk) - 1:
        size = len(chunk.load(first, 1))
        if n_after - size < limit:
            break
        first, n_after = first + 1, n_after - size
    leaving: list[Blocks] = []
    if first and window is not None:
        leaving.append(window)
        window = None
    if first:
        leaving.append(FirstBlocks(chunk, first, chunk.n_samples - n_after))
    newest = Window.of(chunk, first)
    together = newest if window is None else window.joined(newest)
    n_leaving = -(-max(together.n_samples - limit, 0) // 2) * 2  # even: the others stay in their half sets
    n_leaving = min(n_leaving, (together.n_samples - 1) // 2 * 2)
    if n_leaving:
        leaving.append(together.rows(slice(0, n_leaving)))
    staying = together.rows(slice(n_leaving, None))
    return leaving, staying


def _max_rows(block: FeatureBlock, n_nodes: int) -> int:
    """Rows that a window may hold, by what a row of `block` takes."""
    rows = min(max(MAX_IMAGES, MAX_PER_NODE * n_nodes), MAX_BYTES * len(block) // block.nbytes)
    return max(2, rows)
