"""One look at every image of a stack: what is far out is marked, and what is not normalised is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sklearn_cryoem._core.notices import notify
from sklearn_cryoem._core.parallel import ordered_map, row_blocks
from sklearn_cryoem._core.progress import progress
from sklearn_cryoem.particles.outliers import (
    HOT,
    HOT_PIXEL,
    HOT_PIXEL_HINT,
    STRIPE,
    count_text,
    find_outliers,
    has_backgrounds,
    uneven_background,
    usual_limits,
)
from sklearn_cryoem.physics.fourier import Float32, Float64
from sklearn_cryoem.physics.image_measures import Measures, Ruler
from sklearn_cryoem.physics.masks import check_mask_diameter, pixel_radius

if TYPE_CHECKING:
    from sklearn_cryoem.particles.stack import ParticleStack

PIXELS_AT_ONCE = 2**17  # measured together: small enough for the processor's caches
BACKGROUND_SHARE = 0.375  # of the box: what lies farther from the centre is background
LARGEST_RADIUS_SHARE = 0.48  # of the box: some background is left, whatever the mask
OF_PARTS = ("group", "image")  # noise models by which backgrounds may differ


def measure(
    read: Callable[[slice], Float32],
    n_images: int,
    box: int,
    radius_px: float,
    *,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> Measures:
    """Measure many images, block by block; see `Ruler`.

    Parameters
    ----------
    read : callable
        Returns the images of a slice of rows.
    n_images, box : int
        How many there are, and their side.
    radius_px : float
        Of the background.
    n_jobs : int or None
        Number of threads; the result does not depend on it.
    verbose : int
        Whether to show progress.
    """
    blocks = row_blocks(n_images, max(1, PIXELS_AT_ONCE // box**2)) or [slice(0, 0)]
    parts = []
    with progress(n_images, "looking at every image", verbose=verbose) as bar:
        task = partial(_measure_rows, read, Ruler(box, radius_px))
        for block, part in zip(
            blocks, ordered_map(task, blocks, n_jobs=n_jobs, threads_only=True), strict=True
        ):
            parts.append(part)
            bar.update(block.stop - block.start)
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Measures)}
    return Measures(**{name: np.concatenate(values) for name, values in columns.items()})


def _measure_rows(read: Callable[[slice], Float32], ruler: Ruler, rows: slice) -> Measures:
    return ruler(read(rows))


@dataclass(frozen=True)
class Look:
    """What a look at every image of a stack has found.

    Attributes
    ----------
    measures : Measures
        Of the images as they came.
    unusable : ndarray of shape (n_bad,), int
        Rows that are constant or not finite.
    uneven : str or None
        What is said of backgrounds that are not normalised.
    outliers : DataFrame
        As `find_outliers` returns it; of the normalised images where they were not normalised.
    limits : ndarray of shape (2, 4 + n_bands)
        What was taken as usual.
    """

    measures: Measures
    unusable: NDArray[np.int64]
    uneven: str | None
    outliers: pd.DataFrame
    limits: Float64

    @property
    def shared_fault(self) -> str | None:
        """What is said of a fault that most images have, none of which is far out for it; None without."""
        if not has_backgrounds(self.measures):
            return None
        faults = (
            (self.measures.hot_pixel > HOT_PIXEL, "pixels", HOT_PIXEL, HOT_PIXEL_HINT),
            (self.measures.stripe > STRIPE, "lines", STRIPE, " Correct them, and extract again."),
        )
        for has_it, what, limit, remedy in faults:
            if np.mean(has_it) > 0.5:
                return (
                    f"{np.count_nonzero(has_it):,} of {len(has_it):,} images have {what} more than {limit:g} "
                    "standard deviations off their neighbours, as a defect of the detector leaves them; so "
                    f"many are not left out.{remedy}"
                )
        return None


def look_at(
    stack: ParticleStack,
    mask_diameter: float | None = None,
    *,
    noise: str = "shell",
    limits: Float64 | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> Look:
    """Measure every image of a stack and judge it.

    Parameters
    ----------
    stack : ParticleStack
        The images.
    mask_diameter, noise, n_jobs, verbose
        As of `ParticleStack.screen`.
    limits : ndarray of shape (2, 4 + n_bands), optional
        What is usual, from a look at other images of the same kind, whose normalisation these share; by
        default what is usual among these.
    """
    box, radius_px = stack.box, background_radius(stack, mask_diameter)
    measures = measure(
        lambda rows: stack.images.read(rows, check=False),
        len(stack), box, radius_px, n_jobs=n_jobs, verbose=verbose,
    )  # fmt: skip
    unusable, uneven, judged = np.flatnonzero(measures.unusable), None, measures
    if limits is None:
        if noise not in OF_PARTS:
            uneven = uneven_background(measures, n_background(box, radius_px), level_counts=False)
        judged = measures if uneven is None else measures.normalised()
        limits = usual_limits(judged, box)
    found = find_outliers(judged, limits, stack.noise_group, box, groups_differ=noise == "group")
    return Look(measures, unusable, uneven, found, limits)


def background_radius(stack: ParticleStack, mask_diameter: float | None) -> float:
    """Distance from the centre, in pixels, beyond which an image is background."""
    check_mask_diameter(mask_diameter, stack.box, stack.pixel_size)
    radius_px = BACKGROUND_SHARE * stack.box
    if mask_diameter is not None:
        radius_px = 0.5 * mask_diameter / stack.pixel_length
    return min(radius_px, LARGEST_RADIUS_SHARE * stack.box)


def normalised_beyond(stack: ParticleStack, radius_px: float) -> ParticleStack:
    """The stack, normalised by the background that lies farther than `radius_px` from the centre pixel."""
    return stack.normalise(2.0 * radius_px * stack.pixel_length)


def n_background(box: int, radius_px: float) -> int:
    """Pixels farther than `radius_px` from the centre pixel."""
    return int((pixel_radius(box) > radius_px).sum())


def screened(
    stack: ParticleStack,
    mask_diameter: float | None = None,
    *,
    noise: str = "shell",
    limits: Float64 | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
    stacklevel: int = 1,
) -> tuple[ParticleStack, Float64]:
    """`ParticleStack.screen` that also returns what was usual, for further images of the same kind.

    Parameters
    ----------
    stack, mask_diameter, noise, limits, n_jobs, verbose
        As of `look_at`.
    stacklevel : int
        1 blames the caller of this function.
    """
    look = look_at(stack, mask_diameter, noise=noise, limits=limits, n_jobs=n_jobs, verbose=verbose)
    if len(look.unusable):
        stack.read(look.unusable[:1])  # raises, and says what is wrong with it
    if look.uneven is not None:
        stack = normalised_beyond(stack, background_radius(stack, mask_diameter))
        notify(
            "not-normalised",
            f"{look.uneven}. Each is given a background of mean 0 and standard deviation 1 here; extract "
            "again with normalisation to have that in the files.",
            stacklevel=stacklevel + 1,
        )
    if look.shared_fault is not None:
        notify("shared-fault", look.shared_fault, stacklevel=stacklevel + 1)
    outlier = np.zeros(len(stack), dtype=bool)
    outlier[look.outliers["row"]] = True
    if outlier.any():
        notify(
            "outliers",
            f"{outlier.sum():,} of {len(stack):,} particles are far out and take part in no statistic: "
            f"{count_text(look.outliers)}. They get labels all the same, and marks in the table."
            + (HOT_PIXEL_HINT if (look.outliers["kind"] == HOT).any() else ""),
            stacklevel=stacklevel + 1,
        )
    return stack.with_outliers(outlier), look.limits
