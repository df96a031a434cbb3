"""EigenImages: particles as a few coordinates along the principal components of their set."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from sklearn_cryoem._core.parallel import ordered_map, single_blas_threads, sum_in_order
from sklearn_cryoem._core.validation import check_number
from sklearn_cryoem.estimators._common import Data, TakesImages, as_screened, as_stack, without_outliers
from sklearn_cryoem.particles.feature_space import ImageSpace, to_working_box


class EigenImages(TakesImages, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Reduce aligned particles to their coordinates along the eigen-images of the set.

    Phases are flipped where the CTF is negative. For classes of a few hundred particles: a manifold has far
    more Fourier coefficients than such a set has images, and its nodes learn the noise of the few particles
    they hold. Along the first eigen-images signal is strong, and `SMLClusterer` takes the coordinates as
    plain vectors: ``make_pipeline(EigenImages(8), SMLClusterer(36))``.

    Parameters
    ----------
    n_components : int, default=8
        Number of eigen-images.
    max_resolution : float or None, default=None
        Finest detail used, in Angstrom (pixels where the pixel size is unknown); by default where
        signal ends, see `to_working_box`: pictures then have this box of D pixels. Time and memory
        grow with the square of the number of Fourier coefficients that it leaves.
    mask_diameter : float or None, default=None
        Diameter of the soft disc about each particle, in the same unit; its edge lies outside. By default 0.9
        of the box.
    n_jobs : int or None, default=None
        Number of workers. Results are the same bits for any number.

    Attributes
    ----------
    mean_image_ : ndarray of shape (D, D)
        Mean of the phase-flipped particles.
    eigen_images_ : ndarray of shape (n_components, D, D)
        Eigen-images, the strongest first.
    explained_variance_ : ndarray of shape (n_components,)
        Variance along each; that of white noise is the noise variance of a pixel.
    n_features_in_ : int
        Number of pixels of an image.

    Notes
    -----
    Outliers (see `ParticleStack.screen`) take no part in `fit`, but have coordinates: leave
    them out before an estimator of vectors, which cannot know them.

    Examples
    --------
    >>> from sklearn_cryoem.datasets import aligned_to_truth, make_particles
    >>> from sklearn_cryoem.estimators import EigenImages
    >>> stack = aligned_to_truth(make_particles("ring-11", 60, box=32, snr=0.5, random_state=0))
    >>> EigenImages(4, max_resolution=40.0).fit_transform(stack).shape
    (60, 4)
    """

    def __init__(
        self,
        n_components: int = 8,
        *,
        max_resolution: float | None = None,
        mask_diameter: float | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.n_components = n_components
        self.max_resolution = max_resolution
        self.mask_diameter = mask_diameter
        self.n_jobs = n_jobs

    def fit(self, X: Data, y: Any = None) -> Self:
        """Find the eigen-images of particles.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Aligned particles.
        y : None
            Ignored.

        Returns
        -------
        self : EigenImages
        """
        check_number("n_components", self.n_components, owner=self, minimum=1, integer=True)
        for name in ("max_resolution", "mask_diameter"):
            value = getattr(self, name)
            check_number(name, value, owner=self, minimum=0, inclusive=False, allow_none=True)
        given = as_screened(X, self)[0]
        small = to_working_box(given, self.max_resolution, n_jobs=self.n_jobs)
        stack = without_outliers(small, self)
        space = ImageSpace.of(stack, self.max_resolution, self.mask_diameter)
        space = replace(space, given_box=given.box)
        blocks = space.blocks(stack)
        most = min(len(stack), blocks.layout.n_features)
        if self.n_components > most:
            raise ValueError(
                f"EigenImages(n_components={self.n_components}) got {len(stack)} images of "
                f"{blocks.layout.n_features} features. Ask for {most} components at most, or give more."
            )
        with single_blas_threads():
            indices = range(len(blocks))
            total = sum_in_order(partial(_moments, blocks), indices, n_jobs=self.n_jobs)  # (1 + P, P)
            mean = total[0] / len(stack)
            covariance = total[1:] / len(stack) - np.outer(mean, mean)
            values, vectors = np.linalg.eigh(covariance)
            axes = vectors[:, ::-1][:, : self.n_components].T  # (n_components, P)
            strongest = np.abs(axes).argmax(axis=1)
            axes = axes * np.where(axes[np.arange(len(axes)), strongest] < 0, -1.0, 1.0)[:, None]
        self._space, self._mean, self._axes = space, mean, axes
        self.explained_variance_ = values[::-1][: self.n_components].copy()
        self.mean_image_, self.eigen_images_ = space.to_data(mean[None])[0], space.to_data(axes)
        self.n_features_in_ = given.box**2
        return self

    def transform(self, X: Data) -> NDArray[Any]:
        """Coordinates of particles along the eigen-images.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Aligned particles of the same box and pixel size.

        Returns
        -------
        coordinates : ndarray of shape (n_images, n_components)
        """
        check_is_fitted(self)
        blocks = self._space.blocks(as_stack(X, self))
        task = partial(_coordinates, blocks, self._mean, self._axes)
        return np.concatenate(list(ordered_map(task, range(len(blocks)), n_jobs=self.n_jobs)))

    def inverse_transform(self, Z: ArrayLike) -> NDArray[Any]:
        """Phase-flipped images of coordinates.

        Parameters
        ----------
        Z : array-like of shape (n, n_components)
            Coordinates, such as the `class_averages_` of an SMLClusterer fitted to them.

        Returns
        -------
        images : ndarray of shape (n, D, D)
        """
        check_is_fitted(self)
        coordinates = check_array(Z, dtype=np.float64, input_name="Z")
        if coordinates.shape[1] != len(self._axes):
            raise ValueError(
                f"Z has shape {coordinates.shape}, expected (n, {len(self._axes)}): one column for each "
                "eigen-image, as transform returns them."
            )
        with single_blas_threads():
            return self._space.to_data(self._mean + coordinates @ self._axes)

    @property
    def _n_features_out(self):
        return len(self._axes)


def flipped(blocks, index):
    """Features of a block with their phases flipped where the CTF is negative; (n, P)."""
    block = blocks.load(index, blocks.layout.n_shells)
    return block.data / np.sqrt(np.maximum(block.norm[:, blocks.layout.norm_index], 1e-12))


def _moments(blocks, index):
    """Sum of the features, and below it the sum of their products; (1 + P, P), float64."""
    values = flipped(blocks, index)
    return np.vstack([values.sum(axis=0, dtype=np.float64), (values.T @ values).astype(np.float64)])


def _coordinates(blocks, mean, axes, index):
    return (flipped(blocks, index) - mean) @ axes.T
