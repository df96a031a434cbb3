"""Noise of groups of images, or of each image, in units of that of all: Eq. (3.14).

It is measured once, before the fit. Images divided by its root have the noise of their shell alone, so
nothing else knows of it but the log likelihood, which keeps the determinant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.em import Additive
from sklearn_cryoem._core.parallel import ordered_map, sum_in_order
from sklearn_cryoem.manifold.blocks import Blocks, FeatureBlock, FeatureLayout, sum_over_start
from sklearn_cryoem.manifold.prior import MIN_NOISE, measure_power

Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

MEASURED_NOISE = ("group", "image")  # noise models whose levels are measured before the fit
N_ROUNDS = 2  # noise that differs from image to image would pass for signal in the first
LEVEL_VALUES = 20.0  # of average noise added to a group's: levels differ by about a third
SHELL_VALUES = 200.0  # of the group's own level added to each shell's: colours differ by about a tenth
MIN_RELATIVE, MAX_RELATIVE = 0.1, 10.0  # times the noise of all; beyond, something else is wrong


class RowBlocks(Blocks, Protocol):
    """Blocks that know which rows of the data they hold."""

    def rows_of(self, index: int) -> slice:
        """Rows of block `index`."""


@dataclass(frozen=True)
class NoiseSums(Additive):
    """Noise found and noise expected in each group and shell, summed over images; they add over blocks.

    Attributes
    ----------
    found, expected : ndarray of shape (G, S), float64
        Sums of squares, those of images whose signal is strong counting less.
    """

    found: Float64
    expected: Float64


@dataclass(frozen=True)
class NoiseReference:
    """What the noise of an image is compared with. Build with `NoiseReference.of`.

    Attributes
    ----------
    mean : ndarray of shape (P,)
        Mean image.
    signal, noise : ndarray of shape (S,)
        Power of the signal behind the CTF, and of the noise of all images, by Eq. (3.11).
    pooled : ndarray of shape (S,)
        Noise of all images, measured as that of a group is, over `noise`. That of a group is divided by it,
        so that systematic errors of the measure cancel.
    """

    mean: Float64
    signal: Float64
    noise: Float64
    pooled: Float64

    @classmethod
    def of(
        cls, blocks: RowBlocks, known: RowNoise | None = None, *, n_jobs: int | None = None
    ) -> NoiseReference:
        """Measure all images together, Eq. (3.11); a few passes over at most 10,000 of them.

        Parameters
        ----------
        blocks : RowBlocks
            The images.
        known : RowNoise, optional
            What is known of their noise, which would pass for signal where it goes with c^2 by chance.
        n_jobs : int, optional
            Number of workers.
        """
        power = measure_power(blocks, n_jobs=n_jobs)
        noise = np.maximum(power.noise, MIN_NOISE * power.variance)  # a single shell has none by itself
        first = cls(power.mean, power.signal, noise, np.ones(blocks.layout.n_shells))
        if known is not None:
            slopes = sum_over_start(partial(_slope_sums, blocks, first, known), blocks, n_jobs=n_jobs)
            first = replace(first, signal=slopes.signal(power.signal))
        everyone = np.zeros(blocks.n_samples, dtype=np.int64)
        task = partial(_group_sums, blocks, first, everyone, 1)
        sums = sum_over_start(task, blocks, n_jobs=n_jobs)
        return replace(first, pooled=np.maximum(sums.found / sums.expected, MIN_RELATIVE)[0])

    @property
    def level(self) -> Float64:
        """Noise that groups are compared with; (S,)."""
        return self.noise * self.pooled

    def image_sums(self, block: FeatureBlock, layout: FeatureLayout) -> NoiseSums:
        """Noise found and expected in each image of a block; (n, S) each."""
        power, ctf_power = self.powers(block, layout)
        expected = self.noise * layout.shell_sizes
        weight = (1.0 + ctf_power * (self.signal / expected)) ** -2
        return NoiseSums(weight * (power - ctf_power * self.signal), weight * expected * self.pooled)

    def powers(self, block: FeatureBlock, layout: FeatureLayout) -> tuple[Float64, Float64]:
        """Sums of (y - c mean)^2 and of c^2 over the shells of each image of a block; (n, S) each."""
        power = block.power - 2.0 * layout.sum_shells(block.data * self.mean.astype(block.data.dtype))
        norm = block.norm.astype(np.float64)  # (n, Q)
        shell = np.flatnonzero(np.diff(layout.shell[layout.norm_starts], prepend=-1))
        values = np.diff(layout.norm_starts, append=layout.n_features)  # features of each column; (Q,)
        power = power + np.add.reduceat(norm * layout.sum_norms(self.mean**2), shell, axis=1)
        return power, np.add.reduceat(norm * values, shell, axis=1)


@dataclass(frozen=True)
class _SlopeSums(Additive):
    """Sums over images for the slope of their power V over c^2, the noise h of each being known; (9, S)."""

    sums: Float64

    def signal(self, otherwise: Float64) -> Float64:
        """Slope of each shell, or what is given where c^2 is the same in all images; (S,)."""
        one, u, uu, u_v, u_c, uu_v, uu_c, uu_vc, uu_cc = self.sums
        v, c, centre = u_v / one, u_c / one, uu_c / uu  # means of V / h and c^2 / h, and of c^2
        left = u_c - centre * u
        covariance = uu_vc - centre * uu_v - v * left  # of V - h v with c^2
        spread = uu_cc - centre * uu_c - c * left
        has_slope = spread > 1e-4 * uu_cc
        slope = covariance / np.where(has_slope, spread, 1.0)
        return np.where(has_slope, np.clip(slope, 0.0, v / np.maximum(c, 1e-3)), otherwise)


def _slope_sums(blocks: RowBlocks, reference: NoiseReference, known: RowNoise, index: int) -> _SlopeSums:
    layout = blocks.layout
    power, ctf_power = reference.powers(blocks.load(index, layout.n_shells), layout)
    v, c = power / layout.shell_sizes, ctf_power / layout.shell_sizes
    u = 1.0 / known.of(blocks.rows_of(index), layout.n_shells)  # (n, S)
    terms = (np.ones_like(u), u, u**2, u * v, u * c, u**2 * v, u**2 * c, u**2 * v * c, (u * c) ** 2)
    return _SlopeSums(np.stack([term.sum(axis=0) for term in terms]))


def group_noise(
    blocks: RowBlocks, reference: NoiseReference, code: Int, n_groups: int, *, n_jobs: int | None = None
) -> Float64:
    """Noise of each group and shell as a multiple of that of all images, Eq. (3.14); (G, S).

    Parameters
    ----------
    blocks : RowBlocks
        The images.
    reference : NoiseReference
        Noise of all.
    code : ndarray of shape (n_samples,)
        Group of each image, from 0.
    n_groups : int
        Number of groups.
    n_jobs : int, optional
        Number of workers.
    """
    task = partial(_group_sums, blocks, reference, code, n_groups)
    sums = sum_in_order(task, range(len(blocks)), n_jobs=n_jobs)
    information = blocks.layout.information
    level = _level(sums, reference, blocks.layout)  # (G, 1)
    values = sums.expected * (information / reference.level)  # worth so many independent ones; (G, S)
    own = sums.found * (information / reference.level)
    relative = (own + SHELL_VALUES * level) / (values + SHELL_VALUES)
    return np.asarray(np.clip(relative, MIN_RELATIVE, MAX_RELATIVE))


def image_noise(blocks: RowBlocks, reference: NoiseReference, *, n_jobs: int | None = None) -> Float64:
    """Noise of each image, over all shells, as a multiple of that of all images, Eq. (3.14); (n, 1).

    Parameters
    ----------
    blocks : RowBlocks
        The images.
    reference : NoiseReference
        Noise of all.
    n_jobs : int, optional
        Number of workers.
    """

    def levels(index: int) -> Float64:
        sums = reference.image_sums(blocks.load(index, blocks.layout.n_shells), blocks.layout)
        return np.clip(_level(sums, reference, blocks.layout), MIN_RELATIVE, MAX_RELATIVE)

    return np.concatenate(list(ordered_map(levels, range(len(blocks)), n_jobs=n_jobs, threads_only=True)))


def _level(sums: NoiseSums, reference: NoiseReference, layout: FeatureLayout) -> Float64:
    """One number for all shells of a group that count, drawn to 1 where the group is small; (G, 1)."""
    weight = layout.information * layout.counts / reference.level  # (S,)
    found = (sums.found * weight).sum(axis=1, keepdims=True)
    expected = (sums.expected * weight).sum(axis=1, keepdims=True)
    return np.asarray((np.maximum(found, 0.0) + LEVEL_VALUES) / (expected + LEVEL_VALUES))


def _group_sums(
    blocks: RowBlocks, reference: NoiseReference, code: Int, n_groups: int, index: int
) -> NoiseSums:
    layout, mine = blocks.layout, code[blocks.rows_of(index)]
    images = reference.image_sums(blocks.load(index, layout.n_shells), layout)
    found, expected = np.zeros((n_groups, layout.n_shells)), np.zeros((n_groups, layout.n_shells))
    np.add.at(found, mine, images.found)
    np.add.at(expected, mine, images.expected)
    return NoiseSums(found, expected)


@dataclass(frozen=True)
class RowNoise:
    """Noise of each image in units of that of its shell.

    Attributes
    ----------
    table : ndarray of shape (G, S) or (G, 1)
        Of every group.
    code : ndarray of shape (n_samples,)
        Row of the table of each image.
    """

    table: Float64
    code: Int

    def of(self, rows: slice, n_shells: int) -> Float64:
        """Noise of some images in the first shells; (n, S)."""
        relative = self.table[self.code[rows], :n_shells]
        return np.broadcast_to(relative, (len(relative), n_shells))

    def whiten(self, block: FeatureBlock, rows: slice, layout: FeatureLayout) -> FeatureBlock:
        """Divide images and their CTF by the root of their noise, so that Eq. (3.1) holds as it stands.

        Parameters
        ----------
        block : FeatureBlock
            Rows `rows` of the data.
        rows : slice
            Which they are.
        layout : FeatureLayout
            Of the shells of the block.
        """
        relative = self.of(rows, layout.n_shells)
        inverse = (1.0 / relative).astype(block.data.dtype)
        data = block.data * inverse[:, layout.shell]  # c y, both divided by the root
        norm = block.norm * inverse[:, layout.shell[layout.norm_starts]]
        return FeatureBlock(data, norm, block.power / relative, np.log(relative))


@dataclass(frozen=True)
class PartNoise:
    """Noise of groups, or of each image, in units of that of all, Eq. (3.14). Build with `PartNoise.of`.

    Attributes
    ----------
    reference : NoiseReference
        What an image is compared with.
    groups : ndarray of shape (n_groups,) or None
        Numbers of the groups that were seen, ascending; None where each image is measured by itself.
    relative : ndarray of shape (n_groups, n_shells) or None
        Noise of each.
    """

    reference: NoiseReference
    groups: Int | None = None
    relative: Float64 | None = None

    @classmethod
    def of(cls, blocks: RowBlocks, groups: Int | None, *, n_jobs: int | None = None) -> PartNoise:
        """Measure the noise of each group of images, or of each image where `groups` is None.

        Parameters
        ----------
        blocks : RowBlocks
            The images.
        groups : ndarray of shape (n_samples,) or None
            Number of the group of each image.
        n_jobs : int, optional
            Number of workers.
        """
        known: RowNoise | None = None
        for _ in range(N_ROUNDS):
            reference = NoiseReference.of(blocks, known, n_jobs=n_jobs)
            noise = cls(reference)
            if groups is not None:
                none = np.empty(0, dtype=np.int64), np.empty((0, blocks.layout.n_shells))
                noise = cls(reference, *none).extended(blocks, groups, n_jobs=n_jobs)
            known = noise.of_rows(blocks, groups, n_jobs=n_jobs)
        return noise

    def extended(self, blocks: RowBlocks, groups: Int, *, n_jobs: int | None = None) -> PartNoise:
        """The same with the groups of more particles; those known already stay as they are."""
        if self.groups is None or self.relative is None:
            return self
        new = np.setdiff1d(groups, self.groups)
        if not len(new):
            return self
        code = np.searchsorted(new, groups)  # those known go into a group too many
        code[~np.isin(groups, new)] = len(new)
        found = group_noise(blocks, self.reference, code, len(new) + 1, n_jobs=n_jobs)[:-1]
        together, relative = np.concatenate([self.groups, new]), np.concatenate([self.relative, found])
        order = np.argsort(together)
        return PartNoise(self.reference, together[order], relative[order])

    def of_rows(self, blocks: RowBlocks, groups: Int | None, *, n_jobs: int | None = None) -> RowNoise:
        """Noise of each image of `blocks`; a group never seen is taken to have that of all."""
        if self.groups is None or self.relative is None or groups is None:
            level = image_noise(blocks, self.reference, n_jobs=n_jobs)
            return RowNoise(level, np.arange(blocks.n_samples))
        place = np.minimum(np.searchsorted(self.groups, groups), len(self.groups) - 1)
        table = np.vstack([self.relative, np.ones(self.relative.shape[1])])
        return RowNoise(table, np.where(self.groups[place] == groups, place, len(self.groups)))
