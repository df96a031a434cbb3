"""Preprocessing that happens while images are read: every block is transformed, nothing is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sklearn_cryoem._core.parallel import ordered_map, row_blocks
from sklearn_cryoem._core.progress import progress
from sklearn_cryoem.particles.sources import (
    ConcatenatedSource,
    ImageSource,
    Immutable,
    Rows,
    bad_pixels,
    row_key,
)
from sklearn_cryoem.physics.fourier import fourier_resize
from sklearn_cryoem.physics.images import normalise_background

BACKGROUND_SHARE = 0.375  # of the box: what lies farther from the centre is background, as in RELION
BLOCK_BYTES = 32 * 2**20  # of images that are checked at a time


@dataclass(frozen=True)
class Step:
    """One transformation of images.

    Attributes
    ----------
    function : callable
        Called with a block of images (n, D, D) and the arguments; of a module, so that it can be pickled.
    text : str
        What happens to the images, in words.
    arguments : tuple
        Of the function.
    box : int or None
        Side of the images afterwards; None if it stays.
    growth : float
        Pixel size afterwards over that before.
    """

    function: Callable[..., np.ndarray]
    text: str
    arguments: tuple = ()
    box: int | None = None
    growth: float = 1.0


class TransformedSource(Immutable):
    """Another source seen through one step of preprocessing; reads and transforms block by block.

    Parameters
    ----------
    source : ImageSource
        Where the images come from.
    step : Step
        What to do to each block.
    images : ndarray of shape (n, box, box), optional
        What comes of it, where that is kept.
    """

    is_in_memory = False

    def __init__(self, source: ImageSource, step: Step, images: np.ndarray | None = None) -> None:
        self.source = source
        self.step = step
        self.box = step.box or source.box
        self._images = images
        self._seal()

    def __len__(self) -> int:
        return len(self.source)

    def read(self, rows: Any = None, *, check: bool = True) -> np.ndarray:
        """Return the transformed images of `rows` as C-contiguous float32 (m, box, box)."""
        if self._images is not None:
            return np.ascontiguousarray(
                self._images[row_key(slice(None) if rows is None else rows, len(self))]
            )
        images = self.source.read(rows, check=check)
        if not len(images):
            return np.zeros((0, self.box, self.box), dtype=np.float32)
        return np.ascontiguousarray(self.step.function(images, *self.step.arguments), dtype=np.float32)

    def take(self, rows: Rows) -> TransformedSource:
        """Return a source of the given rows alone; copies no pixel that is not kept."""
        images = None if self._images is None else self._images[rows]
        return TransformedSource(self.source.take(rows), self.step, images)

    def kept(self, n_jobs: int | None = None) -> TransformedSource:
        """Return the same source with all of its images in memory."""
        images = np.empty((len(self), self.box, self.box), dtype=np.float32)
        blocks = row_blocks(len(self), max(1, BLOCK_BYTES // (32 * self.source.box**2)))  # 4 MB are read
        parts = ordered_map(self.read, blocks, n_jobs=n_jobs, threads_only=True)
        for rows, part in zip(blocks, parts, strict=True):
            images[rows] = part
        return TransformedSource(self.source, self.step, images)

    def describe(self) -> str:
        """Say in a few words where the pixels are, and what happens to them."""
        return f"{self.source.describe()}, {self.step.text}"

    def locate(self, row: int) -> str:
        """Say where the pixels of one row are, for messages."""
        return self.source.locate(row)


def raw_source(source: ImageSource) -> ImageSource:
    """Where the images lie, before lazy preprocessing."""
    while isinstance(source, TransformedSource):
        source = source.source
    return source


def of_each_image(
    source: ImageSource,
    at_origin: Callable[[ImageSource], Any],
    after_step: Callable[[np.ndarray, Step], np.ndarray] = lambda values, _: values,
) -> np.ndarray:
    """Something of every image of a source that may be put together of others; (n_images,).

    Parameters
    ----------
    source : ImageSource
        Where the images come from.
    at_origin : callable
        Called with a source that is no other one seen through a step, nor several joined; returns a value for
        each of its images, or one for all.
    after_step : callable
        Called with values before a step and the step; returns those after it.
    """
    if isinstance(source, TransformedSource):
        return after_step(of_each_image(source.source, at_origin, after_step), source.step)
    if not isinstance(source, ConcatenatedSource):
        return np.broadcast_to(at_origin(source), len(source))
    parts = [(rows, of_each_image(part, at_origin, after_step)[own]) for part, rows, own in source.parts]
    values = np.empty(len(source), dtype=parts[0][1].dtype if parts else float)
    for rows, of_part in parts:
        values[rows] = of_part
    return values


def _steps(source: ImageSource) -> Iterator[Step]:
    """Steps that all images of a source go through, the last first."""
    while isinstance(source, TransformedSource):
        yield source.step
        source = source.source


def normalised_radius(source: ImageSource) -> float | None:
    """Radius beyond which lies the background that images are normalised by; None if they are not."""
    radii = (step.arguments[0] for step in _steps(source) if step.function is normalise_background)
    return next(radii, None)


def is_downsampled(source: ImageSource) -> bool:
    """Whether somebody has chosen the box of the images: fits then take it as it is."""
    return any(step.function is fourier_resize for step in _steps(source))


def as_made(source: ImageSource) -> ImageSource:
    """The same source without images that are kept, by which nobody should know it."""
    if isinstance(source, TransformedSource):
        return TransformedSource(as_made(source.source), source.step)
    return source


def find_bad_images(source: ImageSource, *, verbose: int = 0) -> pd.DataFrame:
    """Read every image once, block by block, and list those that are constant or not finite.

    Parameters
    ----------
    source : ImageSource
        Where the images come from; preprocessing is left out.
    verbose : int
        Whether to show progress.

    Returns
    -------
    DataFrame
        Columns ``row`` (from 0), ``image`` (file and place) and ``problem``, one row for each bad image.
    """
    source, found = raw_source(source), []
    with progress(len(source), "checking images", verbose=verbose) as bar:
        for rows in row_blocks(len(source), max(1, BLOCK_BYTES // max(1, source.box**2 * 4))):
            bad = bad_pixels(source.read(rows, check=False))
            found += [(rows.start + place, source.locate(rows.start + place), what) for place, what in bad]
            bar.update(rows.stop - rows.start)
    return pd.DataFrame(found, columns=["row", "image", "problem"]).astype({"row": np.int64})
