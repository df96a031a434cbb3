"""The feature space of a fitted SMLClusterer: from input to blocks, and from features back to images."""

import dataclasses

import numpy as np

from sklearn_cryoem.estimators._inputs import is_images, normalised_like
from sklearn_cryoem.estimators._sml_noise import NoiseOfParts
from sklearn_cryoem.manifold.blocks import ArrayBlocks
from sklearn_cryoem.particles.features import FeatureBlocks
from sklearn_cryoem.particles.frames import check_same_pixel_size
from sklearn_cryoem.particles.preprocess import normalised_radius
from sklearn_cryoem.physics.fourier import HalfPlane, fourier_features, half_plane, images_from_features

FEWEST_INITIAL_SHELLS = 6  # coarser images of anything look alike


@dataclasses.dataclass(frozen=True)
class VectorSpace:
    """Plain vectors, seen from their mean."""

    mean: np.ndarray
    dtype: str

    @classmethod
    def of(cls, vectors):
        """Space of the training vectors (n_samples, n_features)."""
        return cls(vectors.mean(axis=0, dtype=np.float64), vectors.dtype.str)

    def blocks(self, vectors, cache_folder=None):
        """Feature blocks of vectors, in the precision of the training vectors; nothing is prepared."""
        return ArrayBlocks(vectors.astype(self.dtype, copy=False), offset=self.mean)

    def learn_noise(self, vectors, noise, n_jobs, cache_folder=None):
        """Raise where the noise is not one of all vectors; return the same space, and blocks."""
        if noise in ("group", "image"):
            raise ValueError(
                f"noise={noise!r} needs particle images, found vectors, which have neither groups nor a "
                "spectrum. Give a ParticleStack, or use noise='shell'."
            )
        return self, self.blocks(vectors)

    def to_data(self, features):
        """Vectors (..., n_features) of features."""
        return features + self.mean

    def to_features(self, vectors):
        """Features (..., n_features) of vectors."""
        return vectors - self.mean

    @property
    def shell(self):
        """Shell of each feature: one for all."""
        return np.zeros(len(self.mean), dtype=np.int64)

    def first_shells(self, initial_resolution):
        """All there is: vectors have no frequencies."""
        return 1

    def resolution(self, n_shells):
        """No resolution either."""
        return np.full(np.shape(n_shells), np.nan)


@dataclasses.dataclass(frozen=True)
class ImageSpace:
    """Fourier features of masked images up to a resolution.

    Where the training images were normalised by their background, beyond `background_px` pixels, all are.
    With `in_window`, templates are masked instead of images, Eq. (3.16).
    """

    plane: HalfPlane
    pixel_size: float | None
    mask_diameter: float | None
    dtype: str = "<f4"
    noise: NoiseOfParts | None = None
    background_px: float | None = None
    in_window: bool = False

    @classmethod
    def of(cls, stack, max_resolution, mask_diameter, *, in_window=False):
        """Space of a stack; `max_resolution` in Angstrom, or in pixels where the pixel size is unknown."""
        side = stack.box * stack.pixel_length
        if max_resolution is not None and side / max_resolution < 2:
            unit = "px" if stack.pixel_size is None else "Angstrom"
            raise ValueError(
                f"max_resolution={max_resolution:g} leaves {side / max_resolution:.2g} Fourier shells of a "
                f"box of {side:.4g} {unit}, expected at least 2. Ask for a finer resolution, below "
                f"{side / 2:.4g} {unit}."
            )
        plane = half_plane(stack.box, None if max_resolution is None else side / max_resolution)
        background_px = normalised_radius(stack.images)
        return cls(plane, stack.pixel_size, mask_diameter, background_px=background_px, in_window=in_window)

    @property
    def shell(self):
        """Shell of each real feature, from 0."""
        return np.repeat(self.plane.shell - 1, 2)

    @property
    def side(self):
        """Side of the box, in Angstrom or pixels."""
        return self.plane.box * (self.pixel_size or 1.0)

    def blocks(self, stack, cache_folder=None):
        """Feature blocks of a stack of the same box and pixel size; those in the cache folder are used."""
        check_same_pixel_size(stack.pixel_size, self.pixel_size)
        stack = normalised_like(stack, self.background_px)
        blocks = FeatureBlocks(stack, self.plane, self.mask_diameter, self.in_window)
        if cache_folder is not None:
            blocks = blocks.kept_in(cache_folder, may_write=False)
        return blocks if self.noise is None else self.noise.whitened(blocks)

    def learn_noise(self, stack, noise, n_jobs, cache_folder=None):
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
        raw, known = dataclasses.replace(self, noise=None).blocks(stack), self.noise
        if cache_folder is not None:
            raw = raw.kept_in(cache_folder)
        if noise not in ("group", "image"):
            return self, raw if known is None else known.whitened(raw)
        parts = NoiseOfParts.of(raw, noise, n_jobs) if known is None else known.extended(raw, n_jobs)
        return dataclasses.replace(self, noise=parts), parts.whitened(raw, n_jobs)

    def to_data(self, features):
        """Images (..., D, D), float32, of real features (..., 2 J)."""
        values = np.ascontiguousarray(features, dtype=np.float32).view(np.complex64)
        return images_from_features(values, self.plane)

    def to_features(self, images):
        """Real features (n, 2 J) of images (n, D, D): what `to_data` made them from."""
        return fourier_features(images, self.plane).view(np.float32)

    def first_shells(self, initial_resolution):
        """Number of shells of the initial resolution."""
        wanted = max(int(self.side / initial_resolution), FEWEST_INITIAL_SHELLS)
        return min(wanted, int(self.plane.shell[-1]))

    def resolution(self, n_shells):
        """Resolution of the outermost of `n_shells` shells, in Angstrom or pixels."""
        return self.side / np.asarray(n_shells, dtype=float)


def check_kind(X, owner):
    """Raise unless X is of the kind, images or vectors, that `owner` was fitted on."""
    on_images = isinstance(owner._space, ImageSpace)
    if is_images(X) != on_images:
        wanted = "images. Give a ParticleStack or" if on_images else "vectors. Give"
        axes = (
            f"(n_images, {owner._space.plane.box}, {owner._space.plane.box})"
            if on_images
            else (f"(n_samples, {owner.n_features_in_})")
        )
        raise ValueError(
            f"X has shape {np.shape(X)}, but this {type(owner).__name__} was fitted on {wanted} an array "
            f"{axes}."
        )
