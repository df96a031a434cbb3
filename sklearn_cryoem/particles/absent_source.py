"""The images of a stack whose metadata were read alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.particles._rows import Immutable
from sklearn_cryoem.particles.sources import Rows


class AbsentSource(Immutable):
    """Stands for images that were not looked for; reading them raises.

    Parameters
    ----------
    n_images : int
        Number of particles.
    box : int
        Side of the images in pixels, 0 if unknown.
    """

    is_in_memory = False
    nbytes = 0

    def __init__(self, n_images: int, box: int) -> None:
        self._n_images = int(n_images)
        self.box = int(box)
        self._seal()

    def __len__(self) -> int:
        return self._n_images

    def read(self, rows: Any = None, *, check: bool = True) -> np.ndarray:
        """Raise ParticleDataError: there are no images."""
        raise ParticleDataError(
            "These particles were read with metadata_only=True, so their images were not looked for. "
            "Read the file again without it, with images_dir= if the images have moved."
        )

    def take(self, rows: Rows) -> AbsentSource:
        """Return the given rows alone."""
        return AbsentSource(rows.stop - rows.start if isinstance(rows, slice) else len(rows), self.box)

    def describe(self) -> str:
        """Say in a few words where the pixels are."""
        return "metadata only"

    def locate(self, row: int) -> str:
        """Say where the pixels of one row are, for messages."""
        return f"row {row}, without image"
