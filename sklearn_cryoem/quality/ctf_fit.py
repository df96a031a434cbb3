"""Whether the CTF of particles goes with the rings in their power spectra."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median, uniform_filter1d

from sklearn_cryoem.particles import CTFTable
from sklearn_cryoem.physics.fourier import Float64, HalfPlane, half_plane
from sklearn_cryoem.physics.images import radial_power
from sklearn_cryoem.physics.masks import pixel_radius, soft_disc

_INNER, _EDGE = 0.375, 0.06  # of the box: radius of the particle that is left out, width of its edge
_FIRST_SHELL = 2
_STEP_ANGSTROM = 250.0
_DEFOCUS_ANGSTROM = np.arange(2_000.0, 60_001.0, _STEP_ANGSTROM)
_FACTORS = np.geomspace(0.3, 3.0, 60)  # of every defocus: half and double, and pixel sizes off by a factor
_MIN_BOX = 48  # below, rings cannot be told from the slope of a spectrum
_CLEAR = 2.0  # variance of the middle over that of the background from which structure outshines ice
_MEDIAN_ERROR = 1.25  # standard error of a median over that of a mean
_GROUP_SIZE, _MIN_GROUPS = 20, 4  # images that make a median, groups whose differences can be told
_MIN_SPREAD_ANGSTROM = 1_000.0  # least range of the defocus of groups for their rings to differ
_SURE, _SURE_FACTOR = 5.0, 6.0  # standard errors; simulated particles without rings reach 3.5 and 5.5
_EXPLAINED = 0.5  # of what is more than noise, by the best defocus: less is structure, not rings
_SAME_FACTOR = 0.15  # relative range of the middle half of the groups


@dataclass(frozen=True)
class CTFFit:
    """How well a CTF, and the best other one, match the rings of the images.

    Attributes
    ----------
    given : float
        Match of the CTF given, in standard errors of no match.
    best : float
        Match of the best other one.
    given_defocus_angstrom, best_defocus_angstrom : float
        Medians over the groups.
    is_sure : bool
        Whether the images show rings of the best one at all.
    factor : float or None
        Best defocus over the one given, where it is the same for all groups, as with a wrong pixel size.
    """

    given: float
    best: float
    given_defocus_angstrom: float
    best_defocus_angstrom: float
    is_sure: bool
    factor: float | None

    @property
    def is_poor(self) -> bool:
        """Whether another CTF is sure to match, and the one given has less than a quarter of its match."""
        return self.is_sure and self.given <= 0.25 * self.best


def ctf_fit(images: NDArray[np.float32], ctf: CTFTable, group: NDArray, pixel_size: float) -> CTFFit | None:
    """Match the power spectra of groups of images with their CTF, and with every other defocus.

    What all groups have in common, the particle's own structure above all, is no ring of theirs: each group's
    logarithm of the spectrum is compared with the CTF squared after slow changes with frequency and the
    median over the groups are taken off both. Where one group, or one defocus, leaves nothing to compare
    with, the background beyond the particle is looked at instead: ice shows the rings of the CTF as particles
    do, but has no structure that could be mistaken for rings. Medians over images keep junk from deciding.

    Parameters
    ----------
    images : ndarray of shape (n_images, D, D), float32
        Some particles.
    ctf : CTFTable
        Theirs.
    group : ndarray of shape (n_images,), int
        Particles of one group share about one defocus; numbers from 0. One group of particles that differ in
        defocus is divided by it.
    pixel_size : float
        In Angstrom.

    Returns
    -------
    CTFFit or None
        Against the best defocus of each group or, if that is not sure, against every defocus times one factor
        (of a wrong unit, voltage or pixel size). None if the box is too small, the background is empty, or
        there is but one defocus of particles so clear that their structure spreads into the background.
    """
    box = images.shape[-1]
    if box < _MIN_BOX:
        return None
    defocus = ctf.mean_defocus_angstrom
    group = _divided(group, defocus)
    own = _medians(group, defocus)  # (n_groups,)
    differ = _differ(own)
    if not differ and _is_clear(images):
        return None
    power = radial_power(images)[:, _FIRST_SHELL : box // 2] if differ else _background_spectrum(images)
    if not (power > 0).all():
        return None
    members = [np.flatnonzero(group == number) for number in range(len(own))]
    plane = half_plane(box, box // 2 - 0.5)
    weight = np.bincount(plane.shell)[_FIRST_SHELL:].astype(np.float64)  # (n_shells,)
    curves = _without_trend(np.log(power))  # (n_images, n_shells)
    rings = _rings(ctf, plane, pixel_size)  # (n_images, n_shells)
    data = np.stack([np.median(curves[some], axis=0) for some in members])  # (n_groups, n_shells)
    model = np.stack([rings[some].mean(axis=0) for some in members])  # (n_groups, n_shells)
    tried = replace(
        ctf[np.zeros(len(_DEFOCUS_ANGSTROM), dtype=np.int64)],
        defocus_u_angstrom=_DEFOCUS_ANGSTROM,
        defocus_v_angstrom=_DEFOCUS_ANGSTROM,
    )
    others = _rings(tried, plane, pixel_size)  # (n_defocus, n_shells)
    if differ:
        data, model = data - np.median(data, axis=0), model - model.mean(axis=0)
    # of the logarithm, for a shell of one frequency
    error = _MEDIAN_ERROR * (1.0 if differ else _blur(box)) / np.sqrt([len(some) for some in members])
    data = data / error[:, None]
    fit = _best_of_each(data, model, others, own, weight, min_match=_SURE if differ else None)
    return _with_one_factor(data, model, others, own, weight, error) if differ and not fit.is_sure else fit


def _best_of_each(
    data: Float64, model: Float64, others: Float64, own: Float64, weight: Float64, *, min_match: float | None
) -> CTFFit:
    """Match of each group by itself, as given and with the defocus that suits it best."""
    if min_match is None:
        min_match = 2.5 + 2.5 / np.sqrt(len(own))  # noise alone matches some defocus by 2 to 3
    scores = _match(data[:, None], others, weight)  # (n_groups, n_defocus)
    given = _match(data, model, weight)  # (n_groups,)
    best = np.maximum(scores.max(axis=1), given)
    beyond_noise = np.maximum((weight * data**2).sum(axis=1) - len(weight), 1.0)  # (n_groups,)
    explained = np.median(best / np.sqrt(beyond_noise))
    other = _DEFOCUS_ANGSTROM[scores.argmax(axis=1)]  # (n_groups,)
    low, middle, high = np.percentile(other / np.where(own == 0, np.inf, own), [25, 50, 75])
    return CTFFit(
        float(given.mean()),
        float(best.mean()),
        float(np.median(own)),
        float(np.median(other)),
        is_sure=bool(best.mean() > min_match and explained > _EXPLAINED),
        factor=float(middle) if high - low < _SAME_FACTOR * middle else None,
    )


def _with_one_factor(
    data: Float64, model: Float64, others: Float64, own: Float64, weight: Float64, error: Float64
) -> CTFFit:
    """Match of all groups together, as given and with every defocus times one factor."""

    def total(rings: Float64) -> float:
        rings = rings / error[:, None]
        return float(_match(data.ravel(), rings.ravel(), np.tile(weight, len(data))))

    matches = []
    for factor in _FACTORS:
        place = np.rint((factor * own - _DEFOCUS_ANGSTROM[0]) / _STEP_ANGSTROM).astype(np.int64)
        some = others[np.clip(place, 0, len(others) - 1)]  # (n_groups, n_shells)
        matches.append(total(some - some.mean(axis=0)))
    given, best = total(model), max(matches)
    factor, usual = float(_FACTORS[np.argmax(matches)]), float(np.median(own))
    return CTFFit(given, max(best, given), usual, factor * usual, best > _SURE_FACTOR, factor)


def _divided(group: NDArray, defocus: Float64) -> NDArray:
    """Groups as they are, or one alone divided by defocus, 20 images to a group."""
    if group.max() > 0:
        return group
    n_groups = max(1, len(group) // _GROUP_SIZE)
    divided = np.empty(len(group), dtype=np.int64)
    divided[np.argsort(defocus, kind="stable")] = np.arange(len(group)) * n_groups // len(group)
    return divided if _differ(_medians(divided, defocus)) else group


def _medians(group: NDArray, defocus: Float64) -> Float64:
    return np.array(median(defocus, group, np.arange(group.max() + 1)))


def _differ(medians: Float64) -> bool:
    """Whether there are groups enough, of defocus so different that what they share is no ring."""
    return len(medians) >= _MIN_GROUPS and bool(np.ptp(medians) > _MIN_SPREAD_ANGSTROM)


def _is_clear(images: NDArray[np.float32]) -> bool:
    """Whether particles are so clear that their structure spreads into the background."""
    outside = pixel_radius(images.shape[-1]) > _INNER * images.shape[-1]  # (D, D)
    inner, outer = images[:, ~outside].var(axis=1), images[:, outside].var(axis=1)
    return bool(np.median(inner) > _CLEAR * np.median(outer))


def _outside(box: int) -> NDArray[np.float32]:
    """Weight of every pixel in the background; (D, D)."""
    return np.asarray(np.float32(1.0) - soft_disc(box, _INNER * box, _EDGE * box))


def _blur(box: int) -> float:
    """How much larger errors are than of whole images: frequencies of a part of the box go together."""
    weight = _outside(box).astype(np.float64)
    return float(box * np.sqrt((weight**4).sum()) / (weight**2).sum())


def _background_spectrum(images: NDArray[np.float32]) -> Float64:
    """Power of every image beyond its middle, by shell from `_FIRST_SHELL`; (n_images, n_shells)."""
    box = images.shape[-1]
    outside = _outside(box)  # (D, D)
    mean = np.einsum("nij,ij->n", images, outside) / outside.sum()
    background = (images - mean[:, None, None].astype(np.float32)) * outside
    return radial_power(background)[:, _FIRST_SHELL : box // 2]


def _rings(ctf: CTFTable, plane: HalfPlane, pixel_size: float) -> Float64:
    """Mean of the CTF squared over each shell, its slow changes removed; (n_rows, n_shells)."""
    # pixel by pixel: near Nyquist the CTF may turn within one shell
    squared = ctf.evaluate(plane.radius / (plane.box * pixel_size), plane.azimuth) ** 2  # (n, J)
    # coefficients are sorted by radius, so a shell is a slice; shell 0 is empty
    starts = np.searchsorted(plane.shell, np.arange(_FIRST_SHELL, plane.shell[-1] + 1))
    sums = np.add.reduceat(squared.astype(np.float64), starts, axis=1)
    return _without_trend(sums / np.bincount(plane.shell)[_FIRST_SHELL:])


def _without_trend(curves: Float64) -> Float64:
    """Curves less their running mean over a fifth of the shells, seven at least."""
    width = 2 * max(3, curves.shape[-1] // 10) + 1
    return np.asarray(curves - uniform_filter1d(curves, width, axis=-1, mode="nearest"))


def _match(data: Float64, model: Float64, weight: Float64) -> Float64:
    """Correlation of data with models along the last axis, in units of the data at weight 1."""
    norm = np.sqrt((weight * model**2).sum(axis=-1))
    return np.asarray((weight * data * model).sum(axis=-1) / np.maximum(norm, np.finfo(float).tiny))
