"""Preprocessing that happens while images are read: every block is transformed, nothing is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sklearn_cryoem.particles._rows import Immutable
from sklearn_cryoem.particles.sources import ImageSource, Rows
from sklearn_cryoem.physics import filters
from sklearn_cryoem.physics.fourier import fourier_resize


class Step(Protocol):
    """One transformation of a block of images."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the transformed block, float32."""

    def box_after(self, box: int) -> int:
        """Side of the transformed images."""


@dataclass(frozen=True)
class NormaliseBackground:
    """Background mean 0 and standard deviation 1 outside `radius_px` of the centre pixel."""

    radius_px: float

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the normalised block."""
        return filters.normalise_background(images, self.radius_px)

    def box_after(self, box: int) -> int:
        """Side of the transformed images."""
        return box

    def __str__(self) -> str:
        return f"normalised beyond {self.radius_px:g} px"


@dataclass(frozen=True)
class ClipHotPixels:
    """Single pixels that are far off their neighbours are replaced by them."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the block without hot pixels."""
        return filters.clip_hot_pixels(images)

    def box_after(self, box: int) -> int:
        """Side of the transformed images."""
        return box

    def __str__(self) -> str:
        return "hot pixels clipped"


@dataclass(frozen=True)
class InvertContrast:
    """Dark particles become white."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the inverted block."""
        return np.negative(images)

    def box_after(self, box: int) -> int:
        """Side of the transformed images."""
        return box

    def __str__(self) -> str:
        return "contrast inverted"


@dataclass(frozen=True)
class Downsample:
    """Fourier crop to a smaller `box`."""

    box: int

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the smaller block."""
        return fourier_resize(images, self.box)

    def box_after(self, box: int) -> int:
        """Side of the transformed images."""
        return self.box

    def __str__(self) -> str:
        return f"cropped in Fourier space to {self.box} px"


class TransformedSource(Immutable):
    """Another source seen through one step of preprocessing; reads and transforms block by block.

    Parameters
    ----------
    source : ImageSource
        Where the images come from.
    step : Step
        What to do to each block.
    """

    is_in_memory = False

    def __init__(self, source: ImageSource, step: Step) -> None:
        self.source = source
        self.step = step
        self.box = step.box_after(source.box)
        self._seal()

    def __len__(self) -> int:
        return len(self.source)

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels where they lie, before the transformation."""
        return self.source.nbytes

    def read(self, rows: Any = None, *, check: bool = True) -> np.ndarray:
        """Return the transformed images of `rows` as C-contiguous float32 (m, box, box)."""
        images = self.source.read(rows, check=check)
        return np.ascontiguousarray(self.step(images), dtype=np.float32) if len(images) else self._none()

    def _none(self) -> np.ndarray:
        return np.zeros((0, self.box, self.box), dtype=np.float32)

    def take(self, rows: Rows) -> TransformedSource:
        """Return a source of the given rows alone; copies no pixel."""
        return TransformedSource(self.source.take(rows), self.step)

    def describe(self) -> str:
        """Say in a few words where the pixels are, and what happens to them."""
        return f"{self.source.describe()}, {self.step}"

    def locate(self, row: int) -> str:
        """Say where the pixels of one row are, for messages."""
        return self.source.locate(row)


def normalised_radius(source: ImageSource) -> float | None:
    """Radius beyond which lies the background that images are normalised by; None if they are not."""
    while isinstance(source, TransformedSource):
        if isinstance(source.step, NormaliseBackground):
            return source.step.radius_px
        source = source.source
    return None
