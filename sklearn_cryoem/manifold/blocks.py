"""How the kernels see data: blocks of rows whose columns are sorted by radial shell.

Three kinds of data share one code path. A block holds d = c y (n, P) and c^2 (n, Q), where Q is the number of
shells for plain vectors (one shell) and images without CTF (c = 1, no product at all), the number of distinct
radii for CTFs without astigmatism, and the number of Fourier coefficients otherwise;
`FeatureLayout.norm_index` says which column of c^2 belongs to a feature.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.parallel import Sum, read_ahead, row_blocks, sum_in_order
from sklearn_cryoem.physics.masks import Support

Floating = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

BLOCK_SIZE = 512  # even: a block starts at an even row, so half sets are its rows [0::2] and [1::2]
# The tasks of a pass follow from the data alone, so that results never depend on n_jobs.
N_SHARDS = 16  # tasks of one pass; there are 32, 48 or 64 where each still gets SHARD_ROWS rows
SHARD_ROWS = 4096  # rows that each task gets before there are more tasks
MAX_SHARDS = 64  # more would take much memory: what each task returns is as large as the model
ROWS_AT_ONCE = 64  # of arrays whose temporaries should be small
MIXER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that a product with it depends on every bit
MAX_START_SAMPLES = 10_000  # images looked at to choose the start and the prior


@dataclass(frozen=True)
class FeatureLayout:
    """What the columns of the data are.

    Attributes
    ----------
    shell : ndarray of shape (P,), int
        Noise shell of each feature, 0 .. S - 1, ascending.
    norm_index : ndarray of shape (P,), int
        Column of c^2 that belongs to each feature, 0 .. Q - 1, ascending; a column never spans two shells.
    information : float
        Share of the features that carry independent noise, in (0, 1]: below 1 for masked images, Eq. (3.10).
    support : Support, optional
        Where the particle lies, if images are compared in a wider window, Eq. (3.16).
    mirror : tuple of ndarrays of shape (P,), optional
        Feature that each is in the mirror image, and its sign, if every image takes part mirrored as well,
        Eq. (3.18).
    n_ignored : int
        First shells, which no likelihood counts, Eq. (3.31).
    """

    shell: Int
    norm_index: Int
    information: float = 1.0
    support: Support | None = None
    mirror: tuple[Int, Floating] | None = None
    n_ignored: int = 0

    @classmethod
    def plain(cls, n_features: int) -> FeatureLayout:
        """Layout of ordinary vectors: one shell, and c = 1."""
        zeros = np.zeros(n_features, dtype=np.int64)
        return cls(zeros, zeros)

    @property
    def n_features(self) -> int:
        """Number P of real features."""
        return int(self.shell.size)

    @property
    def n_shells(self) -> int:
        """Number S of noise shells."""
        return int(self.shell[-1]) + 1

    @property
    def n_norms(self) -> int:
        """Number Q of columns of c^2."""
        return int(self.norm_index[-1]) + 1

    @cached_property
    def norm_starts(self) -> Int:
        """First feature of each column of c^2; (Q,)."""
        return np.flatnonzero(np.diff(self.norm_index, prepend=-1)).astype(np.int64)

    @cached_property
    def shell_starts(self) -> Int:
        """First feature of each shell; (S,)."""
        return np.flatnonzero(np.diff(self.shell, prepend=-1)).astype(np.int64)

    @cached_property
    def shell_sizes(self) -> Int:
        """Number of features of each shell; (S,)."""
        return np.bincount(self.shell, minlength=self.n_shells)

    @cached_property
    def counts(self) -> NDArray[np.bool_]:
        """Whether likelihoods count each shell, Eq. (3.31); (S,)."""
        return np.arange(self.n_shells) >= self.n_ignored

    def truncate(self, n_shells: int) -> FeatureLayout:
        """Return the layout of the first `n_shells` shells: a prefix."""
        n_kept = int(np.searchsorted(self.shell, n_shells))
        mirror = self.mirror and (self.mirror[0][:n_kept], self.mirror[1][:n_kept])  # it keeps the radius
        shell, norm_index = self.shell[:n_kept], self.norm_index[:n_kept]
        return replace(self, shell=shell, norm_index=norm_index, mirror=mirror)

    @property
    def diameter(self) -> float:
        """Diameter of the particle's mask as a share of the box."""
        share = self.information if self.support is None else self.support.share
        return float(np.sqrt(4.0 * share / np.pi))

    def confine(self, templates: Float64) -> Float64:
        """Templates (K, P), or weights of them, without what lies outside the particle, Eq. (3.16)."""
        if self.support is None:
            return templates
        rows = row_blocks(len(templates), ROWS_AT_ONCE)  # their images are larger than they
        return np.concatenate([self.support.masked(templates[some]) for some in rows])

    def features_of(self, shell: int) -> slice:
        """Columns of the features of one shell."""
        start = int(self.shell_starts[shell])
        return slice(start, start + int(self.shell_sizes[shell]))

    def sum_squares(self, values: Float64) -> Float64:
        """Sum squares of features (n, P) over those that share a column of c^2; (n, Q)."""
        sums = np.empty((len(values), self.n_norms))
        for rows in row_blocks(len(values), ROWS_AT_ONCE):  # so that no whole square need exist
            sums[rows] = self.sum_norms(values[rows] ** 2)
        return sums

    def sum_norms(self, values: Float64) -> Float64:
        """Sum features (..., P) over those that share a column of c^2; (..., Q)."""
        return np.add.reduceat(values, self.norm_starts, axis=-1)

    def sum_shells(self, values: Floating) -> Float64:
        """Sum features (..., P) over shells, in float64; (..., S)."""
        return np.add.reduceat(values, self.shell_starts, axis=-1, dtype=np.float64)


@dataclass(frozen=True)
class FeatureBlock:
    """Some rows of the data, ready for the matrix products of Eq. (3.1).

    Attributes
    ----------
    data : ndarray of shape (n, P), float32 or float64
        c y: each feature times its CTF.
    norm : ndarray of shape (n, Q)
        c^2; where there is no CTF 1, and Q = S.
    power : ndarray of shape (n, S), float64
        Sum of y^2 over each shell.
    log_noise : ndarray of shape (n, S)
        Log of the noise that y and c were divided by, Eq. (3.14), in units of that of the shell.
    """

    data: Floating
    norm: Floating
    power: Float64
    log_noise: Float64

    @classmethod
    def of(cls, data: Floating, norm: Floating | None, power: Float64) -> FeatureBlock:
        """Block of features that no noise was divided by; with None c = 1."""
        norm = np.ones(power.shape, data.dtype) if norm is None else norm
        return cls(data, norm, power, np.broadcast_to(0.0, power.shape))

    def __len__(self) -> int:
        return len(self.data)

    def take(self, rows: slice | Int) -> FeatureBlock:
        """Some rows; views of them if they are a slice."""
        return FeatureBlock(self.data[rows], self.norm[rows], self.power[rows], self.log_noise[rows])

    def folds(self, n_folds: int) -> Int:
        """Fold of each image, Eq. (3.12), drawn by its own values; (n,).

        The seed is how its power falls from the first shell to the second, in a thousandth of an octave. So
        an image is in one fold wherever it stands and whatever the unit of its grey values, as is its copy,
        which would else bring its noise into the template that it is compared with.
        """
        octaves = np.log2(np.maximum(self.power[:, :2], np.finfo(np.float64).tiny))
        fall = octaves[:, 0] - octaves[:, 1:].sum(axis=1)
        bits = np.floor(1024.0 * fall).astype(np.int64).astype(np.uint64)
        bits = (bits ^ (bits >> np.uint64(32))) * MIXER
        return np.asarray((bits >> np.uint64(33)) % np.uint64(n_folds), dtype=np.int64)

    def prefix(self, layout: FeatureLayout) -> FeatureBlock:
        """Return the first shells alone, as views."""
        shells = slice(layout.n_shells)
        data, norm = self.data[:, : layout.n_features], self.norm[:, : layout.n_norms]
        return FeatureBlock(data, norm, self.power[:, shells], self.log_noise[:, shells])

    def in_double(self) -> FeatureBlock:
        """Return the same rows in double precision; itself if they are already."""
        data, norm = (values.astype(np.float64, copy=False) for values in (self.data, self.norm))
        return FeatureBlock(data, norm, self.power, self.log_noise)

    def faces(self, layout: FeatureLayout) -> list[FeatureBlock]:
        """The same rows, after their mirror images if these take part, Eq. (3.18)."""
        if layout.mirror is None:
            return [self]
        index, sign = layout.mirror
        column = layout.norm_index[index[layout.norm_starts]]  # of c^2
        data = self.data[:, index] * sign.astype(self.data.dtype)
        return [FeatureBlock(data, self.norm[:, column], self.power, self.log_noise), self]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, but for the noise, which mostly is 0 and takes none."""
        return self.data.nbytes + self.norm.nbytes + self.power.nbytes


class Blocks(Protocol):
    """Provider of feature blocks that can be gone through again and again, from several threads."""

    @property
    def layout(self) -> FeatureLayout:
        """What the columns are when all shells are loaded."""

    @property
    def n_samples(self) -> int:
        """Number of rows of all blocks together."""

    def __len__(self) -> int:
        """Return the number of blocks."""

    def load(self, index: int, n_shells: int) -> FeatureBlock:
        """Return block `index`, its first `n_shells` shells."""


@runtime_checkable
class ReadBlocks(Blocks, Protocol):
    """Blocks that come from files: reading is a step of its own, which a thread takes ahead of its time."""

    def fetch(self, index: int, n_shells: int) -> Callable[[], FeatureBlock]:
        """Read what block `index` is made of; what is returned makes it and returns it as `load` does."""


class ArrayBlocks:
    """Blocks of an array in memory.

    Parameters
    ----------
    values : ndarray of shape (n_samples, P), float32 or float64
        Features y.
    ctf : ndarray of shape (n_samples, Q), optional
        c of each column of the norms; 1 by default.
    layout : FeatureLayout, optional
        By default plain vectors.
    offset : ndarray of shape (P,), optional
        Subtracted from every row, block by block: products of centred data lose fewer digits.
    block_size : int
        Rows of a block; even.
    """

    sent_once = True  # to each worker of a cluster; see _core.parallel

    def __init__(
        self,
        values: Floating,
        *,
        ctf: Floating | None = None,
        layout: FeatureLayout | None = None,
        offset: Floating | None = None,
        block_size: int = BLOCK_SIZE,
    ) -> None:
        self.layout = FeatureLayout.plain(values.shape[1]) if layout is None else layout
        self.n_samples = len(values)
        self._values, self._ctf, self._offset = values, ctf, offset
        self._rows = row_blocks(len(values), block_size)

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, index: int, n_shells: int) -> FeatureBlock:
        """Return block `index`, its first `n_shells` shells."""
        layout, rows = self.layout.truncate(n_shells), self._rows[index]
        values = self._values[rows, : layout.n_features]  # (n, P)
        if self._offset is not None:
            values = values - self._offset[: layout.n_features].astype(values.dtype)
        power = layout.sum_shells(np.square(values, dtype=np.float64))  # (n, S)
        if self._ctf is None:
            return FeatureBlock.of(values, None, power)
        ctf = self._ctf[rows, : layout.n_norms].astype(values.dtype, copy=False)  # (n, Q)
        return FeatureBlock.of(ctf[:, layout.norm_index] * values, ctf**2, power)


def in_turn(blocks: Blocks, indices: range, n_shells: int) -> Iterator[FeatureBlock]:
    """Yield the first `n_shells` shells of blocks, reading the next one while one is worked on.

    Parameters
    ----------
    blocks : Blocks
        The data. Where they have no `fetch`, there is nothing to read.
    indices : range
        Which blocks.
    n_shells : int
        How much of them.

    Raises
    ------
    Exception
        What reading a block raises, when it is that block's turn.
    """
    if len(indices) < 2 or not isinstance(blocks, ReadBlocks):
        yield from (blocks.load(index, n_shells) for index in indices)
        return
    yield from map(_made, read_ahead(partial(blocks.fetch, n_shells=n_shells), indices))


def _made(make: Callable[[], FeatureBlock]) -> FeatureBlock:
    return make()


def shards(blocks: Blocks) -> list[range]:
    """Cut the blocks into runs of neighbours, the tasks of one pass: 16, and up to 64 of much data."""
    n_blocks = len(blocks)
    wanted = N_SHARDS * max(1, blocks.n_samples // (N_SHARDS * SHARD_ROWS))
    edges = np.linspace(0, n_blocks, min(wanted, MAX_SHARDS, n_blocks) + 1).astype(int)
    return [range(int(start), int(stop)) for start, stop in itertools.pairwise(edges)]


def start_blocks(blocks: Blocks) -> list[int]:
    """Choose blocks spread evenly over the data, `MAX_START_SAMPLES` rows at most, all if there are fewer."""
    n_blocks = len(blocks)
    n_chosen = max(1, min(n_blocks, int(n_blocks * MAX_START_SAMPLES / max(blocks.n_samples, 1))))
    return [int(index) for index in np.linspace(0, n_blocks - 1, n_chosen).round()]


def sum_over_start(function: Callable[[int], Sum], blocks: Blocks, *, n_jobs: int | None = None) -> Sum:
    """Add up `function(index)` over `start_blocks`, each where its shard will be worked on, Eq. (3.11)."""
    ends = [shard.stop for shard in shards(blocks)]
    return sum_in_order(
        function, start_blocks(blocks), n_jobs=n_jobs, place=lambda index: bisect_right(ends, index)
    )
