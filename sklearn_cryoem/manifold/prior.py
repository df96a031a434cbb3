"""How much signal the data hold, shell by shell, and the prior of the weights that follows, Eq. (3.11)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.em import Additive
from sklearn_cryoem.manifold.blocks import Blocks, FeatureLayout, sum_over_start
from sklearn_cryoem.manifold.grid import LatentBasis

Float64 = NDArray[np.float64]

MIN_NOISE = 0.1  # of the variance of a shell: the signal's share is known no better
MIN_SHARE = 1e-6  # of the largest shell variance: what a shell without any variance is given
TELLING = 0.99  # of what tells views apart, Eq. (3.15): finer shells bring more noise than they tell
OPTIMISM = 2.0  # nats that cross-fitted EM gains on noise, at most: 0.1 to 1.7 were seen
SIGNIFICANT = 2.0  # standard errors: signal that is weaker may be none
TURN = 2.0  # radians times shell times share of the box: how far a view turns until a shell has changed
CLEAR_NATS = 6.0  # of signal in an image; with fewer, views must differ more to be told apart
MAX_BLUR = 2.0  # times TURN, and times the width of a basis
SIGNAL_BAND, SIGNAL_ERRORS = 1.25, 3.0  # last over first shell of a band; standard errors of signal in it


@dataclass(frozen=True)
class Moments(Additive):
    """Sums over images from which mean, noise and signal power follow; they add over blocks.

    Attributes
    ----------
    n_samples : int
        Number of images n.
    cy, c3y : ndarray of shape (P,), float64
        Sums of c y and of c^3 y.
    c2, c4 : ndarray of shape (Q,), float64
        Sums of c^2 and of c^4.
    y2, c2y2 : ndarray of shape (S,), float64
        Sums of y^2 and of c^2 y^2 over each shell.
    ctf2, ctf4 : ndarray of shape (S,), float64
        Sums of c^2 and c^4 over each shell as they were before noise divided them, Eq. (3.14).
    log_noise : ndarray of shape (S,), float64
        Sum of the log of that noise.
    """

    n_samples: int
    cy: Float64
    c3y: Float64
    c2: Float64
    c4: Float64
    y2: Float64
    c2y2: Float64
    ctf2: Float64
    ctf4: Float64
    log_noise: Float64


@dataclass(frozen=True)
class DataPower:
    """Mean image and, for each shell, variances about it. Build with `measure_power`.

    Attributes
    ----------
    mean : ndarray of shape (P,)
        CTF-corrected mean.
    variance : ndarray of shape (S,)
        Of y - c mean: signal and noise together.
    signal : ndarray of shape (S,)
        Of the images behind the CTF; at least one standard error of its estimate.
    noise : ndarray of shape (S,)
        What is left of the variance, a tenth of it at least; 0 for vectors, whose variance is all signal.
    error : ndarray of shape (S,)
        Standard error of the signal.
    """

    mean: Float64
    variance: Float64
    signal: Float64
    noise: Float64
    error: Float64


def measure_power(blocks: Blocks, *, n_jobs: int | None = None) -> DataPower:
    """Signal and noise power of each shell, from at most 10,000 images spread over the data, Eq. (3.11).

    Parameters
    ----------
    blocks : Blocks
        The data.
    n_jobs : int, optional
        Number of workers.

    Returns
    -------
    power : DataPower

    Notes
    -----
    |y - c mean|^2 has the mean noise + c^2 signal: the slope of a line over c^2 is the signal, whatever the
    colour of the noise. Without a CTF, or with one and the same, there is no slope, and the quietest shell is
    taken for the level of white noise. Plain vectors have one shell: all their variance is signal.
    """
    return power_of(measure_moments(blocks, n_jobs=n_jobs), blocks.layout)


def measure_moments(blocks: Blocks, *, n_jobs: int | None = None) -> Moments:
    """Sums over at most 10,000 images spread over the data, for `power_of`.

    Parameters
    ----------
    blocks : Blocks
        The data.
    n_jobs : int, optional
        Number of workers.
    """
    return sum_over_start(partial(_block_moments, blocks), blocks, n_jobs=n_jobs)


def _block_moments(blocks: Blocks, index: int) -> Moments:
    layout = blocks.layout
    block = blocks.load(index, layout.n_shells)
    data, power = block.data, block.power.sum(axis=0)
    cy = data.sum(axis=0, dtype=np.float64)
    ctf2 = block.norm * np.exp(block.log_noise)[:, layout.shell[layout.norm_starts]]  # (n, Q)
    c3y = np.einsum("ip,ip->p", data, block.norm[:, layout.norm_index], dtype=np.float64)
    return Moments(
        len(block),
        cy,
        c3y,
        block.norm.sum(axis=0, dtype=np.float64),
        np.square(block.norm, dtype=np.float64).sum(axis=0),
        power,
        layout.sum_shells(np.square(data, dtype=np.float64).sum(axis=0)),
        layout.sum_shells(ctf2.sum(axis=0)[layout.norm_index]),
        layout.sum_shells((ctf2**2).sum(axis=0)[layout.norm_index]),
        block.log_noise.sum(axis=0),
    )


class _Slope(NamedTuple):
    """The line of V = (y - c mean)^2 over c^2, Eq. (3.11)."""

    mean: Float64  # CTF-corrected, (P,)
    variance: Float64  # mean of V in each shell, (S,); all that follow too
    covariance: Float64  # of V and c^2
    mean_c2: Float64
    spread: Float64  # variance of c^2
    known: NDArray[np.bool_]  # where c^2 varies


def _slope(moments: Moments, layout: FeatureLayout) -> _Slope:
    n = moments.n_samples
    c2, c4 = moments.c2[layout.norm_index], moments.c4[layout.norm_index]  # (P,)
    mean = moments.cy / np.maximum(c2, 1e-3 * n)  # a coefficient that no CTF lets through stays near 0
    n_values = n * layout.shell_sizes  # (S,)
    # V = (y - c mean)^2: its mean, and its covariance with c^2 over images and coefficients of a shell
    variance = moments.y2 + layout.sum_shells(mean**2 * c2 - 2.0 * mean * moments.cy)
    c2_variance = moments.c2y2 + layout.sum_shells(mean**2 * c4 - 2.0 * mean * moments.c3y)
    variance, c2_variance = np.maximum(variance / n_values, 0.0), c2_variance / n_values
    variance = np.maximum(variance, MIN_SHARE * variance.max() or 1.0)
    mean_c2 = layout.sum_shells(c2) / n_values
    spread = np.maximum(layout.sum_shells(c4) / n_values - mean_c2**2, 0.0)
    # c^2 that differs by the noise alone, Eq. (3.14), tells nothing of the signal
    known = moments.ctf4 / n_values > (1.0 + 1e-4) * (moments.ctf2 / n_values) ** 2
    known &= spread > 1e-4 * mean_c2**2
    return _Slope(mean, variance, c2_variance - mean_c2 * variance, mean_c2, spread, known)


def shells_with_signal(moments: Moments, layout: FeatureLayout) -> int:
    """Last shell from which on a band of shells has signal for certain, Eq. (3.21); 0 if there is none.

    Parameters
    ----------
    moments : Moments
        Of images, whether they are aligned or not.
    layout : FeatureLayout
        Sizes of the shells. Those where c^2 does not vary, so that nothing can be told, count as signal.
    """
    line = _slope(moments, layout)
    error = line.variance * np.sqrt(2.0 * line.spread / (moments.n_samples * layout.shell_sizes))  # (S,)
    certain = np.where(line.known, line.covariance / np.where(line.known, error, 1.0), np.inf)  # (S,)
    first = np.arange(layout.n_shells)
    stop = np.minimum(np.floor(SIGNAL_BAND * (first + 1)).astype(int), layout.n_shells)
    sums = [certain[band].sum() / np.sqrt(band.stop - band.start) for band in map(slice, first, stop)]
    return int(np.flatnonzero(np.array(sums) > SIGNAL_ERRORS).max(initial=-1)) + 1


def power_of(moments: Moments, layout: FeatureLayout) -> DataPower:
    """Mean, signal and noise of each shell from sums over images, Eq. (3.11)."""
    line, n_values = _slope(moments, layout), moments.n_samples * layout.shell_sizes  # (S,)
    mean, variance, mean_c2, spread = line.mean, line.variance, line.mean_c2, line.spread
    largest = variance / np.maximum(mean_c2, 1e-3)
    quietest = variance.min() / variance  # level of white noise, as a share of each shell's variance
    divisor = np.where(line.known, spread, 1.0)
    # the quietest of all shells lies about two standard errors below the usual; noisy images count most
    no_slope = 2.0 * largest * np.sqrt(1.0 + spread / np.maximum(mean_c2, 1e-3) ** 2)
    error = np.sqrt(2.0 / n_values) * np.where(line.known, variance / np.sqrt(divisor), no_slope)
    if layout.n_shells == 1:
        signal = largest
    else:
        slope = np.where(line.known, line.covariance / divisor, largest * (1.0 - quietest))
        signal = np.clip(np.maximum(slope, error), MIN_SHARE * largest, largest)  # Eq. (3.11)
    # a Wiener filter without noise would divide by the zeros of the CTF
    least = 0.0 if layout.n_shells == 1 else MIN_NOISE * variance
    return DataPower(mean, variance, signal, np.maximum(variance - signal * mean_c2, least), error)


def spread_moments(moments: Moments, layout: FeatureLayout) -> Moments:
    """Moments with c^2 and c^4 of each feature, (P,): chunks may differ in their columns of c^2."""
    c2, c4 = moments.c2[layout.norm_index], moments.c4[layout.norm_index]
    return replace(moments, c2=c2, c4=c4)


def power_of_stream(moments: Moments, layout: FeatureLayout) -> DataPower:
    """Mean, signal and noise of all images seen, Eq. (3.11), from moments of each feature."""
    return power_of(moments, replace(layout, norm_index=np.arange(layout.n_features)))


def telling_shells(power: DataPower, layout: FeatureLayout, n_images: float) -> int:
    """Count the first shells, which hold 99 % of what tells views apart; Eq. (3.15).

    Parameters
    ----------
    power : DataPower
        Signal and noise.
    layout : FeatureLayout
        Sizes of the shells.
    n_images : float
        Images of a class, on average.
    """
    ratio = _signal_to_noise(power, layout)
    known = n_images * ratio / (1.0 + n_images * ratio)  # of the template's coefficients
    shell = np.arange(1, layout.n_shells + 1)
    telling = np.cumsum(layout.shell_sizes * shell**2 * ratio * known)  # Eq. (3.15)
    if telling[-1] == 0.0:
        return layout.n_shells
    return int(np.searchsorted(telling, TELLING * telling[-1])) + 1


def signal_nats(power: DataPower, layout: FeatureLayout) -> float:
    """Nats of signal in an image, on average: f / 2 sum_q n_q rho_q of Eq. (3.15)."""
    return 0.5 * layout.information * float(layout.shell_sizes @ _signal_to_noise(power, layout))


def has_signal(moments: Moments, layout: FeatureLayout, trace: Any) -> bool:
    """Whether images differ by more than noise, Eq. (3.17).

    Parameters
    ----------
    moments : Moments
        Of the images.
    layout : FeatureLayout
        Sizes of the shells.
    trace : Trace
        Of a fit; its last cross-fitted iteration counts.
    """
    if layout.n_shells == 1:  # all of it counts as signal
        return True
    power, last = power_of(moments, layout), sum(trace.is_held_out) - 1
    power = replace(power, error=power.error / np.sqrt(layout.information))  # fewer values are independent
    n_shells, held_out = trace.n_shells[last], trace.objective[last]
    left = np.maximum(power.variance - power.noise, 0.0)
    errors = layout.shell_sizes * left * power.error / (power.signal * power.noise)  # of n_q rho_q, (S,)
    of_nats = 0.5 * layout.information * float(np.sqrt((errors[layout.counts] ** 2).sum()))
    # twice the nats of a feature, one template; the objective has the noise of Eq. (3.14) as well
    of_one = np.log(2.0 * np.pi * power.variance) + 1.0 + moments.log_noise / moments.n_samples
    seen = slice(layout.n_ignored, n_shells)  # Eq. (3.31)
    gain = held_out + 0.5 * layout.information * float(layout.shell_sizes[seen] @ of_one[seen])
    is_sure = of_nats < OPTIMISM  # of few images neither tells
    return bool(signal_nats(power, layout) > SIGNIFICANT * of_nats or gain > OPTIMISM or not is_sure)


def blur_of(power: DataPower, layout: FeatureLayout) -> float:
    """How much further than usual views turn until images tell them apart, Eq. (3.19); from 1 to 2.

    Parameters
    ----------
    power : DataPower
        Signal and noise: an image locates its view within an angle that goes with 1 / sqrt(nats).
    layout : FeatureLayout
        Sizes of the shells.
    """
    nats = max(signal_nats(power, layout), CLEAR_NATS / MAX_BLUR**2)
    return float(np.sqrt(max(CLEAR_NATS / nats, 1.0)))


def turn_of(power: DataPower, layout: FeatureLayout) -> float:
    """How far views turn, times shell and share of the box, until images tell them apart; Eq. (3.13)."""
    return TURN * blur_of(power, layout)


def _signal_to_noise(power: DataPower, layout: FeatureLayout) -> Float64:
    """Ratio rho of each shell that counts, at most 1; 0 where the signal may be none; (S,)."""
    is_signal = layout.counts & (power.signal > SIGNIFICANT * power.error)
    left = np.maximum(power.variance - power.noise, 0.0)
    return np.minimum(np.where(is_signal, left, 0.0) / np.maximum(power.noise, 1e-300), 1.0)


def prior_precision(
    alpha: float | str, basis: LatentBasis, power: DataPower, layout: FeatureLayout
) -> Float64:
    """Precision alpha of the weights in each shell, Eq. (2.6); (S,).

    Parameters
    ----------
    alpha : float or "auto"
        One number for all shells, or such that the templates vary over the nodes as much as the signal in the
        data does, Eq. (3.11).
    basis : LatentBasis
        Gives the variance of a template for weights of variance 1; the paper's prior has one alpha.
    power : DataPower
        The signal.
    layout : FeatureLayout
        Sizes of the shells.
    """
    # One precision for all shells would let noise in at high frequency or smooth the low ones: on simulated
    # 70S views at SNR 0.01 alpha = 0.1 had 0.051 of same-class pairs within 10 degrees, this rule 0.070.
    if isinstance(alpha, str):
        signal = power.signal
        if basis.has_paper_prior:
            signal = np.full_like(signal, np.average(signal, weights=layout.shell_sizes))
        return np.asarray(basis.mean_square / signal)  # Eq. (3.11)
    return np.full(power.signal.shape, float(alpha))


def log_prior(weights: Float64, alpha: Float64, basis: LatentBasis, layout: FeatureLayout) -> float:
    """-alpha/2 |W|^2 of the weights that have a prior: a part of the objective, Eq. (3.5) and Eq. (2.6)."""
    squares = layout.sum_shells(basis.has_prior @ weights**2)  # (S,)
    return -0.5 * float(alpha[layout.counts] @ squares[layout.counts])
