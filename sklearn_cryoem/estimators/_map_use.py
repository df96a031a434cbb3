"""What a fitted MAPAligner does with particles: align, classify, score."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from sklearn_cryoem._core.memory import memory_watched
from sklearn_cryoem._core.parallel import task_pool
from sklearn_cryoem.alignment.poses import find_poses, find_scales
from sklearn_cryoem.estimators._inputs import Data, as_stack, mean_without_outliers, normalised_like
from sklearn_cryoem.estimators._map_settings import feature_source, group_codes
from sklearn_cryoem.particles import ParticleStack, Poses
from sklearn_cryoem.particles.frames import check_same_pixel_size


class AlignsParticles:
    """The methods of a fitted `MAPAligner`."""

    def transform(self, X: Data) -> ParticleStack:
        """Align particles to the fitted references.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Particles of the same box.

        Returns
        -------
        stack : ParticleStack
            The same particles with poses, normalised if those of the fit were.
        """
        stack, found, _ = self._find(X, refine=True)
        unit = stack.pixel_length
        return stack.with_poses(Poses(found.angle_rad, found.shift_px * unit, found.mirrored))

    def predict(self, X: Data) -> NDArray[Any]:
        """Most probable class of every particle.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Particles of the same box.

        Returns
        -------
        labels : ndarray of shape (n_images,)
        """
        return self._find(X, refine=False)[1].cluster

    def score_samples(self, X: Data) -> NDArray[Any]:
        """Log likelihood of every particle, Eq. (1.3), up to `max_resolution`.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Particles of the same box.

        Returns
        -------
        log_likelihood : ndarray of shape (n_images,)
        """
        found = self._find(X, refine=False)[1]
        return found.log_evidence + found.log_noise

    def score(self, X: Data, y: Any = None) -> float:
        """Mean log likelihood of the particles.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Particles of the same box.
        y : None
            Ignored.

        Returns
        -------
        score : float
            Comparable between aligners with the same masks and the same `max_resolution`. Particles marked as
            far out do not count: for cross-validation, screen the stack before.
        """
        return mean_without_outliers(self.score_samples(X), X)

    def _find(self, X, *, refine):
        check_is_fitted(self)
        stack = normalised_like(as_stack(X, self), getattr(self, "_background_px", None))
        if stack.box**2 != self.n_features_in_:
            raise ValueError(
                f"MAPAligner was fitted to images of {self.class_averages_.shape[-1]} pixels; these have "
                f"{stack.box}. Bring them to the same box, for example with stack.downsample."
            )
        check_same_pixel_size(stack.pixel_size, self._pixel_size)
        group = group_codes(stack, self.noise_groups_)
        settings = self._settings
        if stack.poses is None:  # nothing to search round
            settings = replace(settings, angle_range_rad=None)
        source = feature_source(stack, settings, keep=False, group=group)
        with task_pool(self.n_jobs) as pool, memory_watched("Aligning particles to MAPAligner's classes"):
            source.employ(pool)
            if self.image_scale_ is not None:
                find_scales(source, self._model, settings, unit=self._scale_unit)
            found = find_poses(source, self._model, settings, frames=self._frames, refine=refine)
            return stack, found, source.scale
