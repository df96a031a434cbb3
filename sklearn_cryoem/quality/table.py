"""The table of classes: one row each, with measures, rank and a suggestion in words."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sklearn_cryoem._core.parallel import ordered_map
from sklearn_cryoem._core.progress import progress
from sklearn_cryoem._core.validation import check_number
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.classes import check_labels
from sklearn_cryoem.physics.fourier import HalfPlane, half_plane
from sklearn_cryoem.physics.masks import MASK_SHARE, check_mask_diameter
from sklearn_cryoem.quality.halves import class_sums
from sklearn_cryoem.quality.measures import PICTORIAL, SPECTRAL, ClassPower, coherence, measure_class
from sklearn_cryoem.quality.partition import defocus_share, stability
from sklearn_cryoem.quality.suggestion import suggest_classes

logger = logging.getLogger(__name__)


def class_quality(
    stack: ParticleStack,
    labels: Any,
    *,
    n_classes: int | None = None,
    soft_sizes: Any = None,
    latent_positions: Any = None,
    posterior: Any = None,
    other_labels: Sequence[Any] = (),
    mask_diameter: float | None = None,
    max_resolution: float | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> pd.DataFrame:
    """Measure every class from its particles, rank the classes, and suggest which to keep.

    The particles are read once. Averages of two halves of each class, corrected for the CTF, give its
    resolution, its signal-to-noise ratio and the information it holds, Eq. (6.1)-(6.3), whether that is
    more than noise would show that was aligned to itself, Eq. (6.4)-(6.5), and how alike its particles are,
    Eq. (6.6); the average itself tells edges,
    empty fields and things off centre.

    Parameters
    ----------
    stack : ParticleStack
        Particles with the poses that the classes were made with; without poses they are taken as aligned.
    labels : array_like of shape (n_images,), int
        Class of each particle from 0; -1 for none. From any program.
    n_classes : int, optional
        Number of classes; by default the largest label and one.
    soft_sizes : array_like of shape (n_classes,), optional
        Sums of posteriors, as `SMLClusterer.soft_class_sizes_`.
    latent_positions : array_like of shape (n_images, n_components), optional
        As `SMLClusterer.transform` returns them.
    posterior : array_like of shape (n_images,), optional
        Posterior of its class for each particle, as `MAPAligner.class_posterior_`.
    other_labels : sequence of array_like of shape (n_images,)
        Labels of the same particles from other starts, for `stability`; numbers need not correspond, and -1
        is a particle that a start did not label. Best are labels by a fit that did not see the particles:
        noise that was aligned once comes together again in any fit of the same images.
    mask_diameter : float, optional
        Diameter of the particle's mask in Angstrom (pixels where the pixel size is unknown). Images are
        masked more widely, to see what lies at its edge. By default 0.9 of the box.
    max_resolution : float, optional
        Finest detail looked at, in the same unit; by default all but Nyquist.
    n_jobs : int, optional
        Number of workers; results are the same bits for any.
    verbose : int, default=0
        1 shows progress.

    Returns
    -------
    DataFrame of n_classes rows, in the order of the classes
        ``class`` (from 1, as in files), ``size``, ``soft_size``, ``resolution`` (where the correlation of the
        half averages falls below 0.143; infinite where it starts there), ``snr`` (signal over noise in one
        image), ``information``
        (bits in an average of 100 such particles), ``significance`` (energy of the signal in one image, over
        that of aligned noise), ``coherence`` (share of the power above the usual noise that the
        average explains), ``strength`` (power at low resolution over the median of particles),
        ``contrast`` (of the particle over the rim, in standard deviations), ``edge`` (signal at the rim over
        that of the strongest ring within), ``offset`` (of the centre of the particle, over the mask's
        radius), ``extent`` (area of the particle over the median of particles),
        ``spikes`` (power in a single point, over that of a usual particle), ``lines`` (share of it
        in one direction), ``latent_spread`` (over that of all particles), ``posterior``, ``stability``
        (fraction of pairs that stay together, chance taken off, Eq. (6.7)), ``defocus`` (mean defocus less
        that of all, in standard errors), then ``score`` (0 to 1), ``rank`` (from 1, the best), ``keep`` and
        ``reasons``, see
        `suggest_classes`. What cannot be measured is NaN.

    Raises
    ------
    ValueError
        If an argument does not fit the stack.

    Notes
    -----
    The two halves share poses, and references when they were aligned: noise that was aligned to one
    reference agrees with itself, so resolutions are optimistic, for classes without signal most of all.
    They compare classes of one run; they are no gold-standard figure. Classes are halved in the order of the
    file. An image costs about 0.6 ms at 64 pixels on one core.

    Examples
    --------
    >>> from sklearn_cryoem.datasets import aligned_to_truth, make_particles
    >>> stack = aligned_to_truth(make_particles("ribosome", 120, box=24, snr=1.0, n_views=2, random_state=0))
    >>> table = class_quality(stack, stack.truth["view"])
    >>> table[["class", "keep"]].values.tolist()
    [[1, True], [2, True]]
    """
    label = check_labels(labels, len(stack))
    n_classes = _number_of_classes(label, n_classes)
    if stack.outlier is not None:
        label = np.where(stack.outlier, -1, label)  # what is far out says nothing of its class
    unit = stack.pixel_length
    side = stack.box * unit
    check_number("max_resolution", max_resolution, owner="class_quality", minimum=0, inclusive=False,
                 maximum=side / 2, allow_none=True)  # fmt: skip
    check_mask_diameter(mask_diameter, stack.box, stack.pixel_size)
    plane = half_plane(stack.box, None if max_resolution is None else side / max_resolution)
    diameter = MASK_SHARE * side if mask_diameter is None else float(mask_diameter)
    measure = partial(_measure, stack, plane, diameter)
    rows = [np.flatnonzero(label == number) for number in range(n_classes)]
    with progress(n_classes, "class_quality", verbose=verbose) as bar:
        measured, powers = [], []
        for row, power in ordered_map(measure, rows, n_jobs=n_jobs):
            measured.append(row)
            powers.append(power)
            bar.update()
    table = pd.DataFrame({"class": np.arange(1, n_classes + 1), "size": [len(some) for some in rows]})
    table["soft_size"] = _per("soft_sizes", soft_sizes, n_classes)
    table[[*SPECTRAL, *PICTORIAL]] = [[row[name] for name in (*SPECTRAL, *PICTORIAL)] for row in measured]
    table.insert(table.columns.get_loc("strength"), "coherence", coherence(powers))
    for name in ("strength", "extent"):
        table[name] /= _typical(table[name].to_numpy(), table["size"].to_numpy())
    table["latent_spread"] = _latent_spread(latent_positions, label, rows)
    certain = _per("posterior", posterior, len(label))
    table["posterior"] = [
        np.nan if certain is None or not len(some) else certain[some].mean() for some in rows
    ]
    table["stability"] = stability([check_labels(other, len(label)) for other in other_labels], rows)
    table["defocus"] = np.nan if stack.ctf is None else defocus_share(stack.ctf, label, n_classes).deviation
    return suggest_classes(table)


def _measure(
    stack: ParticleStack, plane: HalfPlane, diameter: float, rows: NDArray[np.intp]
) -> tuple[dict[str, float], ClassPower | None]:
    if len(rows) < 2:
        return dict.fromkeys((*SPECTRAL, *PICTORIAL), np.nan), None
    unit = stack.pixel_length
    return measure_class(class_sums(stack[rows], plane, None), plane, unit, 0.5 * diameter / unit)


def _number_of_classes(label: NDArray[np.int64], given: int | None) -> int:
    least = int(label.max(initial=-1)) + 1
    check_number(
        "n_classes", given, owner="class_quality", minimum=max(least, 1), integer=True, allow_none=True
    )
    if given is None and least == 0:
        raise ValueError("labels names no class: there is nothing to measure. Give labels from 0.")
    return least if given is None else int(given)


def _per(name: str, values: Any, length: int) -> NDArray[np.float64]:
    """Values as float64, all NaN where none are given."""
    if values is None:
        return np.full(length, np.nan)
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (length,):
        raise ValueError(f"{name} has shape {array.shape}, expected ({length},). Take it from the same fit.")
    return array


def _typical(values: NDArray[np.float64], sizes: NDArray[np.int64]) -> float:
    """Median over particles; 1 if there is none."""
    known = np.isfinite(values) & (sizes > 0)
    return float(np.median(np.repeat(values[known], sizes[known]))) if known.any() else 1.0


def _latent_spread(
    positions: Any, label: NDArray[np.int64], rows: list[NDArray[np.intp]]
) -> NDArray[np.float64]:
    """Root mean square distance of each class from its middle, over that of all particles; (n_classes,)."""
    if positions is None:
        return np.full(len(rows), np.nan)
    place = np.asarray(positions, dtype=np.float64)
    if place.ndim != 2 or len(place) != len(label):
        raise ValueError(
            f"latent_positions has shape {place.shape}, expected ({len(label)}, n_components). "
            "Take it from transform of the same particles."
        )

    def spread(some: NDArray[np.intp]) -> float:
        return float(np.sqrt(place[some].var(axis=0).sum())) if len(some) else np.nan

    whole = spread(np.arange(len(place)))
    return np.array([spread(some) for some in rows]) / (whole if whole > 0 else 1.0)
