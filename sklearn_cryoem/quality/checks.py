"""Mistakes that show in the images themselves: contrast, normalisation, CTF, pixel size, mask."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sklearn_cryoem._core.memory import bytes_at_once
from sklearn_cryoem._core.validation import notice_text, notify
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.file_source import FileSource
from sklearn_cryoem.particles.frames import pixel_sizes_differ
from sklearn_cryoem.particles.preprocess import raw_source
from sklearn_cryoem.particles.screening import MIN_IMAGES, Look, look_at, outlier_text
from sklearn_cryoem.particles.sources import bad_pixels
from sklearn_cryoem.physics.fourier import Float32
from sklearn_cryoem.physics.masks import box_problem, check_mask_diameter, pixel_radius
from sklearn_cryoem.quality.ctf_fit import ctf_fit

MAX_IMAGES = 400
MAX_BYTES, MAX_SHARE = 2**27, 1 / 32  # of the images looked at together, and of the memory limit
_N_GROUPS, _GROUP_SIZE = 10, 20  # micrographs looked at, if they have that many particles
_DARK_SHARE, _DARK_ERRORS = 0.55, 4.0  # of the images; standard errors that their mean contrast lies below 0
_PIXELS_MEASURED = 2**26  # at most, spread over the stack: 16,384 images of 64 pixels, 1,024 of 256
_BLANK_LINES = 0.03  # of the lines of an image, beyond those that are blank in most
# Fine noise, see `foreign_backgrounds`: bands that show it; what is far below the usual, in robust standard
# deviations and as the logarithm of power, since neighbours in the background take a little of it too
_FINE_BANDS, _FAR_BELOW, _LEAST_DROP = 2, 4.0, 0.1


def foreign_backgrounds(
    stack: ParticleStack, mask_diameter: float | None = None, *, n_jobs: int | None = None
) -> NDArray[np.bool_]:
    """Tell the images whose background holds more than noise, by how little fine noise they have, Eq. (6.11).

    Images come with backgrounds of one standard deviation. Where a carbon film, ice or a clump is part of it,
    the image was divided by more than its noise, and what is left of that shows at the finest detail, where
    there is nothing else. Each image is compared with its micrograph (with all where that has fewer than 20).

    Parameters
    ----------
    stack : ParticleStack
        The images; the noise group is their micrograph.
    mask_diameter : float, optional
        Beyond it is background; by default 3/4 of the box.
    n_jobs : int, optional
        Number of workers; results are the same bits for any.

    Returns
    -------
    foreign : ndarray of shape (n_images,), bool
        False for images cut at the edge of a micrograph, where padding has no noise either, and for all where
        there are fewer than 20, or no backgrounds. Costs 0.15 ms an image of 64 pixels.
    """
    measures = look_at(stack, mask_diameter, n_jobs=n_jobs).measures
    if len(stack) < MIN_IMAGES or not measures.have_backgrounds:
        return np.zeros(len(stack), dtype=np.bool_)
    fine = pd.Series(measures.normalised().log_power[:, -_FINE_BANDS:].mean(axis=1))
    own = fine.groupby(stack.noise_group)
    usual = own.transform("median").where(own.transform("size") >= MIN_IMAGES, fine.median())
    drop = (usual - fine).to_numpy()
    spread = np.nanquantile(-drop, 0.75) / 0.6745  # above the median there is no junk
    limit = max(_FAR_BELOW * spread, _LEAST_DROP)
    return np.asarray((drop > limit) & (measures.blank_lines == 0))  # Eq. (6.11)


@dataclass(frozen=True)
class Finding:
    """Something that looks wrong with particles.

    Attributes
    ----------
    name : str
        Short name, under which the documentation has more of it.
    text : str
        What was found, with its numbers, and what to do.
    """

    name: str
    text: str

    def __str__(self) -> str:
        return notice_text(self.name, self.text)


def check_particles(
    stack: ParticleStack, *, mask_diameter: float | None = None, warn: bool = True
) -> list[Finding]:
    """Look at some particles for mistakes that would spoil any classification.

    Found are particles that are dark on a bright ground, images that are not normalised, constant, outliers
    (too bright or faint, with hot pixels or stripes, torn, of another grey level; see `ParticleStack.screen`)
    or cut at the edge of a micrograph, a CTF that does not fit the power spectrum, a pixel size that differs
    from that of the image headers, and a box too tight for the mask. Images of 67 million pixels at most are
    read, spread over the stack (16,384 of 64 pixels, 1,024 of 256), in a few seconds.

    Parameters
    ----------
    stack : ParticleStack
        The particles.
    mask_diameter : float, optional
        That is meant to be used, in Angstrom (pixels where the pixel size is unknown).
    warn : bool, default=True
        Whether to give a warning for each finding as well.

    Returns
    -------
    list of Finding
        Empty if all looks well.

    Raises
    ------
    ParticleDataError
        If an image cannot be read.

    Warns
    -----
    ParticleDataWarning
        For each finding; its ``name`` is that of the finding.

    Examples
    --------
    >>> from sklearn_cryoem import check_particles
    >>> from sklearn_cryoem.datasets import make_particles
    >>> stack = make_particles("ribosome", 100, box=32, random_state=0)
    >>> check_particles(stack)
    []
    >>> [finding.name for finding in check_particles(stack.invert_contrast(), warn=False)]
    ['dark-particles']
    """
    found = list(_findings(stack, mask_diameter)) if len(stack) else []
    for finding in found if warn else ():
        notify(finding.name, finding.text)
    return found


def _findings(stack: ParticleStack, mask_diameter: float | None) -> Iterator[Finding]:
    check_mask_diameter(mask_diameter, stack.box, stack.pixel_size)
    yield from _lengths(stack, mask_diameter)
    measured = _spread(np.arange(len(stack)), max(1, _PIXELS_MEASURED // stack.box**2))
    look = look_at(stack[measured], mask_diameter)
    yield from _seen(look, measured, len(stack))
    rows, group = rows_to_look_at(stack)
    images = stack.images.read(rows, check=False)
    sound = ~np.isin(rows, measured[np.append(look.unusable, look.outliers["row"]).astype(np.int64)])
    sound[[place for place, _ in bad_pixels(images)]] = False
    if sound.any():
        yield from _dark(images[sound])
        yield from _wrong_ctf(images[sound], stack, rows[sound], group[sound])


def _lengths(stack: ParticleStack, mask_diameter: float | None) -> Iterator[Finding]:
    """Whether the pixel size goes with the headers of the images, and the mask with the box."""
    source = raw_source(stack.images)
    if isinstance(source, FileSource) and stack.pixel_size is not None:
        used = np.unique(source.file_index)
        headers = [source.files[number].pixel_size for number in used]
        text = pixel_sizes_differ(stack.pixel_size * stack.box / source.box, headers)
        if text is not None:
            yield Finding("pixel-size-differs", text)
    problem = None if mask_diameter is None else box_problem(stack.box, stack.pixel_size, mask_diameter)
    if problem is not None:
        yield Finding(*problem)


def _seen(look: Look, rows: np.ndarray, n_images: int) -> Iterator[Finding]:
    """What a look at the images of `rows` shows: unusable, uneven, outliers, cut at an edge."""
    of = f"of {len(rows):,} images" + ("" if len(rows) == n_images else f" looked at, from {n_images:,}")
    if len(look.unusable):
        yield Finding(
            "unusable-images",
            f"{len(look.unusable):,} {of} are constant or not finite (the first in row "
            f"{rows[look.unusable[0]]}). Leave them out: read with permissive=True.",
        )
    if look.not_normalised is not None:
        yield Finding(
            "not-normalised",
            f"{look.not_normalised}. Fits normalise what differs; read with normalise=True, or extract again "
            "with normalisation.",
        )
    if len(look.outliers):
        found = look.outliers.assign(row=rows[look.outliers["row"]])
        yield Finding(
            "outliers",
            f"{len(found):,} {of} are outliers: {outlier_text(found, 'Fits learn nothing from them.')}",
        )
    if look.shared_fault is not None:
        yield Finding("shared-fault", look.shared_fault)
    if look.measures.have_backgrounds:  # images that were masked, or have no noise, are blank all round
        lines = np.nan_to_num(look.measures.blank_lines)
        is_blank = lines > _BLANK_LINES + np.median(lines)
        blank = np.setdiff1d(np.flatnonzero(is_blank), look.outliers["row"])
        if len(blank):
            yield Finding(
                "blank-edges",
                f"{len(blank):,} {of} are blank along an edge (the first in row {rows[blank[0]]}): they were "
                "cut at the edge of a micrograph and padded. Pick farther from it, or look for classes of "
                "them.",
            )


def rows_to_look_at(stack: ParticleStack) -> tuple[np.ndarray, np.ndarray]:
    """Choose some particles: of a few noise groups that are large enough, else spread over all.

    Parameters
    ----------
    stack : ParticleStack
        The particles.

    Returns
    -------
    rows : ndarray of shape (n_rows,), int
        Ascending.
    group : ndarray of shape (n_rows,), int
        Number of the group of each from 0; all 0 where groups are too small to be told apart.
    """
    n_bytes = bytes_at_once(MAX_BYTES, MAX_SHARE)
    n_rows = int(np.clip(n_bytes // (4 * stack.box**2), _GROUP_SIZE, MAX_IMAGES))
    _, code, size = np.unique(stack.noise_group, return_inverse=True, return_counts=True)
    large = np.flatnonzero(size >= _GROUP_SIZE)
    if size[large].sum() < 0.5 * len(stack):
        rows = _spread(np.arange(len(stack)), n_rows)
        return rows, np.zeros(len(rows), dtype=np.int64)
    n_groups = min(_N_GROUPS, len(large), max(1, n_rows // _GROUP_SIZE))
    chosen = large[np.linspace(0, len(large) - 1, n_groups).astype(np.int64)]
    members = [_spread(np.flatnonzero(code.reshape(-1) == number), n_rows // n_groups) for number in chosen]
    group = np.repeat(np.arange(n_groups), [len(part) for part in members])
    rows = np.concatenate(members)
    order = np.argsort(rows)
    return rows[order], group[order]


def _spread(rows: np.ndarray, n_rows: int) -> np.ndarray:
    return rows[np.unique(np.linspace(0, len(rows) - 1, n_rows).astype(np.int64))]


def centre_above_rim(images: Float32) -> np.ndarray:
    """Mean of the inner half of each image less the mean of its rim, along the radius.

    Parameters
    ----------
    images : ndarray of shape (n_images, D, D)
        White particles on black have a positive contrast.

    Returns
    -------
    ndarray of shape (n_images,)
    """
    box = images.shape[1]
    radius = pixel_radius(box) / (box / 2)  # (D, D)
    inside, rim = radius < 0.5, (radius > 0.8) & (radius < 1.0)
    return np.asarray(images[:, inside].mean(axis=1) - images[:, rim].mean(axis=1))


def _dark(images: Float32) -> Iterator[Finding]:
    contrast = centre_above_rim(images)  # (n_images,)
    dark = float(np.mean(contrast < 0))
    sure = contrast.mean() * math.sqrt(max(len(images) - 1, 0)) < -_DARK_ERRORS * contrast.std()
    if dark > _DARK_SHARE and sure:
        yield Finding(
            "dark-particles",
            f"the particles look dark on a bright ground (in {dark:.0%} of {len(images)} images the middle "
            "is darker than the rim), and averages will be of no use. Read with invert=True, or without it "
            "if it was given.",
        )


def _wrong_ctf(
    images: Float32, stack: ParticleStack, rows: np.ndarray, group: np.ndarray
) -> Iterator[Finding]:
    if stack.ctf is None:
        return
    negative = stack.ctf.mean_defocus_angstrom < 0
    if negative.mean() > 0.5:  # the power spectrum has no sign: rings lie nearly where they should
        yield Finding(
            "ctf-does-not-fit",
            f"the defocus of {negative.sum():,} of {len(stack):,} particles is negative, which is overfocus, "
            "and nobody takes particles in overfocus: the program that wrote it seems to count the other "
            "way. Change its sign in the table, positive being underfocus.",
        )
        return
    fit = None if stack.pixel_size is None else ctf_fit(images, stack.ctf[rows], group, stack.pixel_size)
    if fit is None or not fit.is_poor:
        return
    remedy = "Estimate the CTF again, or read with ctf=False."
    if fit.factor is not None:
        remedy = (
            f"All are off by one factor, so the pixel size may be wrong: with {stack.pixel_size:.4g} A "
            f"replaced by {stack.pixel_size / math.sqrt(fit.factor):.3g} A, pixel_size=, they would fit. "
            "Make sure of it and of the voltage, else estimate the CTF again, or read with ctf=False."
        )
    yield Finding(
        "ctf-does-not-fit",
        "the CTF does not fit the particles: their power spectra have the rings of a defocus of about "
        f"{1e-4 * fit.best_defocus_angstrom:.2g} um (match {fit.best:.1f}), and the metadata say "
        f"{1e-4 * fit.given_defocus_angstrom:.2g} um (match {fit.given:.1f}). {remedy}",
    )
