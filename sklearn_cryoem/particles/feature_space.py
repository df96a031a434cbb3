"""Feature spaces of models: from particles or vectors to feature blocks, and from features back to images."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from sklearn_cryoem._core.memory import cache_bytes
from sklearn_cryoem.manifold.blocks import ArrayBlocks
from sklearn_cryoem.manifold.noise import MEASURED_NOISE, PartNoise
from sklearn_cryoem.manifold.prior import measure_moments, shells_with_signal
from sklearn_cryoem.particles.features import FeatureBlocks
from sklearn_cryoem.particles.frames import check_same_pixel_size
from sklearn_cryoem.particles.preprocess import is_downsampled, normalised_radius
from sklearn_cryoem.particles.screening import normalised_like
from sklearn_cryoem.particles.stack import ParticleStack
from sklearn_cryoem.physics.fourier import (
    HalfPlane,
    coarser_shells,
    fourier_features,
    half_plane,
    images_from_features,
)

logger = logging.getLogger("sklearn_cryoem")  # as progress: everybody should know

MIN_FIRST_SHELLS = 6  # coarser images of anything look alike
MIN_WORKING_BOX = 64  # pixels: less would save little
WORTHWHILE = 0.8  # of the box: a larger one is not left for so little
FIRST_LOOK = 96  # pixels of the box in which signal is looked for first; twice as many where it goes on
LOOKED_AT = 10_000  # images, at most
BEYOND_SIGNAL = 2.0  # times the last shell where images show signal: averages of many show more
Folder = str | os.PathLike[str] | None


@dataclass(frozen=True)
class VectorSpace:
    """Plain vectors, seen from their mean."""

    mean: NDArray[np.float64]
    dtype: str

    @classmethod
    def of(cls, vectors: NDArray[Any]) -> VectorSpace:
        """Space of the training vectors (n_samples, n_features)."""
        return cls(vectors.mean(axis=0, dtype=np.float64), vectors.dtype.str)

    @property
    def shell(self) -> NDArray[np.int64]:
        """Shell of each feature: one for all."""
        return np.zeros(len(self.mean), dtype=np.int64)

    def blocks(
        self, vectors: NDArray[Any], cache_folder: Folder = None, n_jobs: int | None = None
    ) -> ArrayBlocks:
        """Feature blocks of vectors, in the precision of the training vectors; nothing is prepared."""
        return ArrayBlocks(vectors.astype(self.dtype, copy=False), offset=self.mean)

    def with_noise_of(
        self, vectors: NDArray[Any], noise: str, n_jobs: int | None, cache_folder: Folder = None
    ) -> tuple[VectorSpace, ArrayBlocks]:
        """Raise where the noise is not one of all vectors; return the same space, and blocks."""
        if noise in MEASURED_NOISE:
            raise ValueError(
                f"noise={noise!r} needs particle images, found vectors, which have neither groups nor a "
                "spectrum. Give a ParticleStack, or use noise='shell'."
            )
        return self, self.blocks(vectors)

    def noise_found(self, blocks: ArrayBlocks) -> tuple[None, None]:
        """No noise of groups or images."""
        return None, None

    def to_data(self, features: NDArray[Any]) -> NDArray[Any]:
        """Vectors (..., n_features) of features."""
        return features + self.mean

    def to_features(self, vectors: NDArray[Any]) -> NDArray[Any]:
        """Features (..., n_features) of vectors."""
        return vectors - self.mean

    def first_shells(self, initial_resolution: float) -> int:
        """All there is: vectors have no frequencies."""
        return 1

    def resolution(self, n_shells: Any) -> NDArray[Any]:
        """No resolution either."""
        return np.full(np.shape(n_shells), np.nan)


@dataclass(frozen=True)
class ImageSpace:
    """Fourier features of masked images up to a resolution.

    Where the training images were normalised by their background, beyond `background_px` pixels, all are.
    With `in_window`, templates are masked instead of images, Eq. (3.16). With `mirror`, each image takes part
    in a fit as its mirror image, too, Eq. (3.18). No likelihood counts the first `n_ignored` shells,
    Eq. (3.31). Images of `given_box` are cropped to the box of the plane.
    """

    plane: HalfPlane
    pixel_size: float | None
    mask_diameter: float | None
    dtype: str = "<f4"
    noise: PartNoise | None = None
    background_px: float | None = None
    in_window: bool = False
    mirror: bool = False
    n_ignored: int = 0
    given_box: int | None = None

    @classmethod
    def of(
        cls,
        stack: ParticleStack,
        max_resolution: float | None,
        mask_diameter: float | None,
        min_resolution: float | None = None,
        *,
        in_window: bool = False,
    ) -> ImageSpace:
        """Space of a stack; resolutions in Angstrom, or in pixels where the pixel size is unknown."""
        side = stack.box * stack.pixel_length
        if max_resolution is not None and side / max_resolution < 2:
            unit = "px" if stack.pixel_size is None else "Angstrom"
            raise ValueError(
                f"max_resolution={max_resolution:g} leaves {side / max_resolution:.2g} Fourier shells of a "
                f"box of {side:.4g} {unit}, expected at least 2. Ask for a finer resolution, below "
                f"{side / 2:.4g} {unit}."
            )
        plane = half_plane(stack.box, None if max_resolution is None else side / max_resolution)
        n_ignored = coarser_shells(side, min_resolution, int(plane.shell[-1]))
        space = cls(plane, stack.pixel_size, mask_diameter, in_window=in_window, n_ignored=n_ignored)
        return space.normalised_as(stack)

    def normalised_as(self, stack: ParticleStack) -> ImageSpace:
        """The same space for images whose background is normalised as that of `stack`."""
        return dataclasses.replace(self, background_px=normalised_radius(stack.images))

    @property
    def shell(self) -> NDArray[np.int64]:
        """Shell of each real feature, from 0."""
        return np.repeat(self.plane.shell - 1, 2)

    @property
    def pixel_length(self) -> float:
        """Pixel size in Angstrom, or 1 where it is unknown."""
        return self.pixel_size or 1.0

    @property
    def side(self) -> float:
        """Side of the box, in Angstrom or pixels."""
        return self.plane.box * self.pixel_length

    def blocks(
        self, stack: ParticleStack, cache_folder: Folder = None, n_jobs: int | None = None
    ) -> FeatureBlocks:
        """Feature blocks of a stack of the same box and pixel size; those in the cache folder are used.

        Noise that is that of each image is measured by `n_jobs` workers.
        """
        stack = normalised_like(stack, self.background_px)
        if stack.box == self.given_box:
            stack = at_box(stack, self.plane.box)
        check_same_pixel_size(stack.pixel_size, self.pixel_size)
        if self.mirror and stack.poses is not None:
            stack = stack.with_poses(stack.poses.unmirrored())
        blocks = FeatureBlocks(
            stack, self.plane, self.mask_diameter, self.in_window, n_ignored=self.n_ignored
        )
        blocks = blocks.with_mirrors() if self.mirror else blocks
        if cache_folder is not None:
            blocks = blocks.kept_in(cache_folder, may_write=False)
        return self._whitened(blocks, n_jobs)

    def _whitened(self, blocks: FeatureBlocks, n_jobs: int | None) -> FeatureBlocks:
        """Blocks whose images are divided by the root of their noise, if it is that of groups or images."""
        if self.noise is None:
            return blocks
        return blocks.whitened(self.noise.of_rows(blocks, blocks.stack.noise_group, n_jobs=n_jobs))

    def with_noise_of(
        self, stack: ParticleStack, noise: str, n_jobs: int | None, cache_folder: Folder = None
    ) -> tuple[ImageSpace, FeatureBlocks]:
        """Return this space with the noise of groups or images, Eq. (3.14), and blocks of `stack`.

        Parameters
        ----------
        stack : ParticleStack
            Whose groups are added to those that are known.
        noise : {"white", "shell", "group", "image"}
            With the first two nothing is measured.
        n_jobs : int or None
            Number of workers.
        cache_folder : path-like or None
            Where prepared features are to be kept.
        """
        raw = dataclasses.replace(self, noise=None).blocks(stack)
        if cache_folder is not None:
            raw = raw.kept_in(cache_folder)
        if noise not in MEASURED_NOISE:
            return self, self._whitened(raw, n_jobs)
        if self.noise is None:
            parts = PartNoise.of(raw, stack.noise_group if noise == "group" else None, n_jobs=n_jobs)
        else:
            parts = self.noise.extended(raw, stack.noise_group, n_jobs=n_jobs)
        space = dataclasses.replace(self, noise=parts)
        return space, space._whitened(raw, n_jobs)

    def noise_found(self, blocks: FeatureBlocks) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
        """Numbers of the noise groups seen, and the noise of each or of each image, Eq. (3.14)."""
        if self.noise is None:
            return None, None
        if self.noise.groups is None:
            return None, blocks.noise.table[:, 0]
        return self.noise.groups, self.noise.relative

    def to_data(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Images (..., D, D), float32, of real features (..., 2 J)."""
        values = np.ascontiguousarray(features, dtype=np.float32).view(np.complex64)
        return images_from_features(values, self.plane)

    def to_features(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Real features (n, 2 J) of images (n, D, D): what `to_data` made them from."""
        return fourier_features(images, self.plane).view(np.float32)

    def first_shells(self, initial_resolution: float) -> int:
        """Number of shells of the initial resolution."""
        wanted = self.n_ignored + max(int(self.side / initial_resolution), MIN_FIRST_SHELLS)
        return min(wanted, int(self.plane.shell[-1]))

    def resolution(self, n_shells: Any) -> NDArray[Any]:
        """Resolution of the outermost of `n_shells` shells, in Angstrom or pixels."""
        return self.side / np.asarray(n_shells, dtype=float)


def to_working_box(
    stack: ParticleStack, max_resolution: float | None = None, *, n_jobs: int | None = None
) -> ParticleStack:
    """Crop particles in Fourier space to the box that holds their signal: what every fit does to its own.

    Parameters
    ----------
    stack : ParticleStack
        The particles; they need not be aligned.
    max_resolution : float, optional
        Finest detail to keep, in Angstrom. By default half the finest period at which the images show signal
        for certain: signal goes with c^2 from image to image, Eq. (3.21), and noise does not. That costs a
        look at up to 10,000 images. Without a CTF it cannot be told, and the box stays.
    n_jobs : int, optional
        Number of workers; the result does not depend on it.

    Returns
    -------
    ParticleStack
        See `ParticleStack.downsample`; marks of outliers stay, and the cropped images are kept in memory if
        they take no more than features may (256 MB, see `set_memory_limit`). The same stack where its box
        would not become notably smaller, or is of 64 pixels or fewer, or was chosen with `downsample`, or the
        pixel size is unknown.

    Examples
    --------
    >>> from sklearn_cryoem.datasets import make_particles
    >>> from sklearn_cryoem.particles import to_working_box
    >>> stack = make_particles("ribosome", 50, box=128, snr=0.1, random_state=0)
    >>> to_working_box(stack, 10.0).box
    80
    """
    if stack.box <= MIN_WORKING_BOX or stack.pixel_size is None or is_downsampled(stack.images):
        return stack
    if max_resolution is not None:
        n_shells = stack.box * stack.pixel_size / max_resolution
    elif stack.ctf is None:
        return stack
    else:
        n_shells = BEYOND_SIGNAL * _signal_shells(stack, n_jobs)
    box = max(MIN_WORKING_BOX, 2 * next_fast_len(int(np.ceil(n_shells)) + 1))
    if box > WORTHWHILE * stack.box:
        return stack
    finest = 2.0 * stack.pixel_size
    logger.info("working to %.2g A of %.2g; box %d -> %d", finest * stack.box / box, finest, stack.box, box)
    small = at_box(stack, box)
    return small._replace(images=small.images.kept(n_jobs)) if small.nbytes <= cache_bytes() else small


def at_box(stack: ParticleStack, box: int) -> ParticleStack:
    """The same particles, and the same outliers, in a smaller box."""
    return stack if stack.box == box else stack.downsample(box).with_outliers(stack.outlier)


def _signal_shells(stack: ParticleStack, n_jobs: int | None) -> int:
    """Last shell in which particles show signal, Eq. (3.21), whether they are aligned or not."""
    sound = np.arange(len(stack)) if stack.outlier is None else np.flatnonzero(~stack.outlier)
    rows = sound[np.unique(np.linspace(0, len(sound) - 1, LOOKED_AT).astype(int))] if len(sound) else sound
    seen, size = stack[rows].with_poses(None), min(FIRST_LOOK, stack.box)
    while True:
        plane = half_plane(size)
        blocks = FeatureBlocks(at_box(seen, size), plane, cache_bytes=0)
        n_shells = shells_with_signal(measure_moments(blocks, n_jobs=n_jobs), blocks.layout)
        if size == stack.box or BEYOND_SIGNAL * n_shells <= plane.shell[-1]:
            return n_shells
        size = min(2 * size, stack.box)
