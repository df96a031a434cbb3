"""Whether the CTF of particles goes with the rings in the power spectrum of their background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem.particles import CTFTable
from sklearn_cryoem.physics.filters import radial_power
from sklearn_cryoem.physics.fourier import HalfPlane, half_plane
from sklearn_cryoem.physics.masks import pixel_radius, soft_disc

Float64 = NDArray[np.float64]

_INNER, _EDGE = 0.375, 0.06  # of the box: radius of the particle that is left out, width of its edge
_FIRST_SHELL = 2
_DEFOCUS_ANGSTROM = np.arange(2_000.0, 60_001.0, 250.0)
_SMALLEST_BOX = 48  # below, rings cannot be told from the slope of a spectrum
_CLEAR = 2.0  # variance of the middle over that of the background from which structure outshines ice


@dataclass(frozen=True)
class CTFFit:
    """How well a CTF, and the best other one, match the rings of the background.

    Attributes
    ----------
    given : float
        Match of the CTF given, in standard errors of no match; mean over groups.
    best : float
        Match of the defocus that fits best in each group.
    given_defocus_angstrom, best_defocus_angstrom : float
        Medians over the groups.
    n_groups : int
        Number of groups.
    """

    given: float
    best: float
    given_defocus_angstrom: float
    best_defocus_angstrom: float
    n_groups: int

    @property
    def is_sure(self) -> bool:
        """Whether the background shows rings at all: noise alone matches some defocus by 2 to 3."""
        return self.best > 2.5 + 2.5 / np.sqrt(self.n_groups)


def ctf_fit(images: NDArray[np.float32], ctf: CTFTable, group: NDArray, pixel_size: float) -> CTFFit | None:
    """Match the power spectrum beyond the particles with their CTF, and with every defocus.

    Ice shows the rings of the CTF as particles do, but has no structure of its own that could be mistaken
    for rings; so the middle of the images is left out. Slow changes with frequency are removed from the
    logarithm of the spectrum and from the CTF squared, and what is left is correlated over shells, each
    weighted by its number of frequencies.

    Parameters
    ----------
    images : ndarray of shape (n_images, D, D), float32
        Some particles.
    ctf : CTFTable
        Theirs.
    group : ndarray of shape (n_images,), int
        Particles of one group share about one defocus; numbers from 0.
    pixel_size : float
        In Angstrom.

    Returns
    -------
    CTFFit or None
        None if the box is too small, the background empty, or the particles so clear (simulated without
        much noise, or averaged) that their own structure spreads into the background.

    Notes
    -----
    White noise gives a best match of 2 to 3, whatever the particles; real ice of 40 particles in one
    micrograph about 6.
    """
    box = images.shape[-1]
    if box < _SMALLEST_BOX:
        return None
    outside = pixel_radius(box) > _INNER * box  # (D, D)
    if images[:, ~outside].var() > _CLEAR * images[:, outside].var():
        return None
    spectrum = _background_spectrum(images)  # (n_images, n_shells)
    if not (spectrum > 0).all():
        return None
    plane = half_plane(box, box // 2 - 0.5)
    weight = np.bincount(plane.shell)[_FIRST_SHELL:].astype(np.float64)
    model = _rings(ctf, plane, pixel_size)  # (n_images, n_shells)
    given, best, own, other = [], [], [], []
    blur = _blur(box)
    defocus = 0.5 * (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom)
    for number in range(int(group.max()) + 1):
        members = np.flatnonzero(group == number)
        data = _without_trend(np.log(spectrum[members].mean(axis=0)))  # (n_shells,)
        error = blur / np.sqrt(len(members))  # of the logarithm, for a shell of one frequency
        others = _rings(_at_every_defocus(ctf[members[:1]]), plane, pixel_size)  # (n_defocus, n_shells)
        scores = _match(data, others, weight) / error
        given.append(float(_match(data, model[members].mean(axis=0), weight)) / error)
        best.append(max(float(scores.max()), given[-1]))
        own.append(float(np.median(defocus[members])))
        other.append(float(_DEFOCUS_ANGSTROM[scores.argmax()]))
    medians = float(np.median(own)), float(np.median(other))
    return CTFFit(float(np.mean(given)), float(np.mean(best)), *medians, n_groups=len(given))


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
    n_shells = curves.shape[-1]
    half = max(3, n_shells // 10)
    ends = [(0, 0)] * (curves.ndim - 1)
    padded = np.pad(curves, [*ends, (half, half)], mode="edge")
    sums = np.cumsum(np.pad(padded, [*ends, (1, 0)]), axis=-1)
    width = 2 * half + 1
    return np.asarray(curves - (sums[..., width:] - sums[..., :-width]) / width)


def _match(data: Float64, model: Float64, weight: Float64) -> Float64:
    """Correlation of data with models along the last axis, in units of the data at weight 1."""
    norm = np.sqrt((weight * model**2).sum(axis=-1))
    return np.asarray((weight * data * model).sum(axis=-1) / np.maximum(norm, np.finfo(float).tiny))


def _at_every_defocus(ctf: CTFTable) -> CTFTable:
    """One row of a table at every defocus tried, without astigmatism."""
    kept = {
        name: float(getattr(ctf, name)[0])
        for name in ("voltage_volts", "cs_angstrom", "amplitude_contrast", "phase_shift_rad")
    }
    return CTFTable(
        defocus_u_angstrom=_DEFOCUS_ANGSTROM,
        defocus_v_angstrom=_DEFOCUS_ANGSTROM,
        astigmatism_angle_rad=np.zeros(len(_DEFOCUS_ANGSTROM)),
        **{name: np.full(len(_DEFOCUS_ANGSTROM), value) for name, value in kept.items()},
    )
