"""The last images of a stream, kept as features so that they can be matched again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.parallel import row_blocks
from sklearn_cryoem.manifold.blocks import BLOCK_SIZE, Blocks, FeatureBlock, FeatureLayout

Floating = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]

MOST_IMAGES = 2000  # or MOST_PER_NODE for each node, if that is more
MOST_PER_NODE = 8
MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Window:
    """Feature blocks of rows that are held in memory; c^2 is the mean of each shell.

    Attributes
    ----------
    layout : FeatureLayout
        Columns; one column of c^2 a shell.
    n_folds : int
        Row i belongs to fold i modulo `n_folds`, in every block.
    data : ndarray of shape (n, P)
        c y.
    norm : ndarray of shape (n, S) or None
        c^2; None where c = 1.
    power : ndarray of shape (n, S)
        Sums of y^2.
    log_noise : ndarray of shape (n, S) or None
        As in `FeatureBlock`.
    """

    layout: FeatureLayout
    n_folds: int
    data: Floating
    norm: Floating | None
    power: Float64
    log_noise: Float64 | None

    @classmethod
    def of(cls, blocks: Blocks, first: int, n_folds: int) -> Window:
        """Hold the blocks from number `first` on, of which there is one at least."""
        layout = blocks.layout
        window = cls._of_block(blocks.load(first, layout.n_shells), layout, n_folds)
        for index in range(first + 1, len(blocks)):
            window = window.joined(cls._of_block(blocks.load(index, layout.n_shells), layout, n_folds))
        return window

    @classmethod
    def _of_block(cls, block: FeatureBlock, layout: FeatureLayout, n_folds: int) -> Window:
        return cls(layout, n_folds, block.data, block.norm, block.power, block.log_noise)

    @property
    def n_samples(self) -> int:
        """Number of rows."""
        return len(self.data)

    @property
    def row_bytes(self) -> int:
        """Bytes that a row takes."""
        values = self.data.shape[1] + (0 if self.norm is None else self.norm.shape[1])
        noise = 0 if self.log_noise is None else self.log_noise.shape[1]
        return int(self.data.itemsize * values + 8 * (self.power.shape[1] + noise))

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def _rows(self) -> list[slice]:
        whole = 2 * self.n_folds  # blocks begin at rows of the first fold, and of the first half set
        return row_blocks(self.n_samples, max(BLOCK_SIZE // whole, 1) * whole)

    def load(self, index: int, n_shells: int) -> FeatureBlock:
        """Return block `index`, its first `n_shells` shells."""
        part = self.rows(self._rows[index])
        block = FeatureBlock(part.data, part.norm, part.power, part.log_noise)
        return block.prefix(self.layout.truncate(n_shells))

    def rows(self, rows: slice) -> Window:
        """Return some of the rows, as views."""
        norm = None if self.norm is None else self.norm[rows]
        log_noise = None if self.log_noise is None else self.log_noise[rows]
        return Window(self.layout, self.n_folds, self.data[rows], norm, self.power[rows], log_noise)

    def owned(self) -> Window:
        """Return the same rows in arrays of their own, so that others can be freed."""
        norm = None if self.norm is None else self.norm.copy()
        log_noise = None if self.log_noise is None else self.log_noise.copy()
        return Window(self.layout, self.n_folds, self.data.copy(), norm, self.power.copy(), log_noise)

    def joined(self, other: Window) -> Window:
        """Return the rows of both, in an array of their own."""
        return Window(
            self.layout,
            self.n_folds,
            np.concatenate([self.data, other.data]),
            _joined(self.norm, other.norm, np.ones, self, other, self.data.dtype),
            np.concatenate([self.power, other.power]),
            _joined(self.log_noise, other.log_noise, np.zeros, self, other, np.dtype(np.float64)),
        )


def _joined(
    one: Floating | None, two: Floating | None, fill: Any, first: Window, second: Window, dtype: np.dtype[Any]
) -> Any:
    """Both arrays, either filled in where it alone is None; None if both are."""
    if one is None and two is None:
        return None
    n_shells = first.layout.n_shells
    one = fill((first.n_samples, n_shells), dtype=dtype) if one is None else one
    two = fill((second.n_samples, n_shells), dtype=dtype) if two is None else two
    return np.concatenate([one, two])


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


def admit(window: Window | None, chunk: Blocks, n_folds: int, n_nodes: int) -> tuple[list[Blocks], Window]:
    """Let a chunk into the window; the oldest rows leave where there are too many.

    Parameters
    ----------
    window : Window or None
        What is held so far.
    chunk : Blocks
        New images; one column of c^2 a shell. Of a large chunk the first blocks never enter.
    n_folds : int
        Number of folds.
    n_nodes : int
        Number of nodes K.

    Returns
    -------
    leaving : list of Blocks
        Rows that are seen for the last time, oldest first.
    staying : Window
    """
    n_shells = chunk.layout.n_shells
    limit = _most_rows(Window._of_block(chunk.load(0, n_shells), chunk.layout, n_folds).row_bytes, n_nodes)
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
    newest = Window.of(chunk, first, n_folds)
    together = newest if window is None else window.joined(newest)
    whole = 2 * n_folds  # so that the others stay in their folds and half sets
    n_leaving = -(-max(together.n_samples - limit, 0) // whole) * whole
    n_leaving = min(n_leaving, (together.n_samples - 1) // whole * whole)
    if n_leaving:
        leaving.append(together.rows(slice(0, n_leaving)))
    staying = together.rows(slice(n_leaving, None))
    return leaving, staying


def _most_rows(row_bytes: int, n_nodes: int) -> int:
    return max(2, min(max(MOST_IMAGES, MOST_PER_NODE * n_nodes), MOST_BYTES // row_bytes))
