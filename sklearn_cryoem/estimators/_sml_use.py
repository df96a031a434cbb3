"""What a fitted manifold is good for: classes, latent positions, likelihoods, images between the nodes."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted

from sklearn_cryoem._core.memory import memory_watched
from sklearn_cryoem._core.parallel import single_blas_threads
from sklearn_cryoem._core.validation import check_number
from sklearn_cryoem.estimators._inputs import (
    Data,
    as_stack,
    as_vectors,
    is_images,
    mean_without_outliers,
    warn_if_not_aligned,
)
from sklearn_cryoem.estimators._sml_space import check_kind
from sklearn_cryoem.manifold.classes import latent_positions, map_posterior


class Assignment(NamedTuple):
    """Where a fitted manifold puts particles."""

    labels: NDArray[np.int64]
    """(n_images,) class of each: its most probable node."""
    posterior: NDArray[np.float64]
    """(n_images,) posterior of that class."""
    positions: NDArray[np.float64]
    """(n_images, n_components) latent position, as `SMLClusterer.transform` returns it."""


WRAPPED = 3  # frames from a method that scikit-learn wraps to whoever calls it


class ManifoldPrediction(TransformerMixin):
    """Methods of an estimator that has a fitted `_manifold` and the feature `_space` it lives in.

    It is a TransformerMixin itself: scikit-learn wraps `transform`, for `set_output`, only in the class that
    defines it.
    """

    def _posteriors(self, X, function, stacklevel=2, *, tempered=True):
        """Apply `function` to the posterior of every block of X and join the results.

        It is that of Eq. (3.17), or with `tempered` false that of Eq. (3.1). Poses that are missing are
        questioned at `stacklevel`, 1 being the caller; with None they are not.
        """
        check_is_fitted(self)
        check_kind(X, self)
        data = as_stack(X, self) if is_images(X) else as_vectors(X, self, reset=False)
        with memory_watched("Comparing particles with SMLClusterer's nodes"), single_blas_threads():
            blocks = self._space.blocks(data, self.cache_folder)
            if stacklevel is not None:
                warn_if_not_aligned(self, X, stacklevel=stacklevel + 1)
            share = getattr(self, "information_share_", 1.0) if tempered else 1.0  # none in older models
            matcher = self._manifold.matcher(blocks.layout, dtype=self._space.dtype, temperature=1.0 / share)
            return np.concatenate(list(map_posterior(function, blocks, matcher, n_jobs=self.n_jobs)))

    def predict(self, X: Data) -> NDArray[Any]:
        """Class of each particle: its most probable node.

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`; new particles are streamed like those of the fit.

        Returns
        -------
        labels : ndarray of shape (n_images,)
        """
        return self._posteriors(X, most_probable)

    def predict_proba(self, X: Data) -> NDArray[Any]:
        """Posterior probability of every node, as far as held-out images bear it out, Eq. (3.17).

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`.

        Returns
        -------
        responsibilities : ndarray of shape (n_images, n_nodes)
            Rows sum to 1.
        """
        return self._posteriors(X, responsibilities)

    def transform(self, X: Data) -> NDArray[Any]:
        """Latent position of each particle, Eq. (3.7): posterior mean or mode, as `position` says.

        On a ring or torus the mean is circular, and coordinates run from -1 to 1, which are one point; on a
        sphere positions are unit vectors, and the mean is the direction of the mean vector. A posterior that
        is spread evenly over all of a closed shape has no such mean: what is returned then says nothing.

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`.

        Returns
        -------
        positions : ndarray of shape (n_images, n_components)
            On a sphere (n_images, 3).
        """
        check_is_fitted(self)
        basis = self._manifold.basis
        if self.position == "mode":
            return self._posteriors(X, partial(latent_positions, nodes=basis.nodes, mode="mode"), WRAPPED)
        # means are taken where averages are, then put back onto the shape, Eq. (2.7)
        means = self._posteriors(X, partial(latent_positions, nodes=basis.embedding, mode="mean"), WRAPPED)
        return basis.space.unembed(means)

    def assign(self, X: Data) -> Assignment:
        """Class, posterior of that class, and latent position of each particle, in one pass.

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`.

        Returns
        -------
        assignment : Assignment
            ``(labels, posterior, positions)``, as of `predict`, `predict_proba` and `transform`.
        """
        check_is_fitted(self)
        basis, is_mode = self._manifold.basis, self.position == "mode"
        places = basis.nodes if is_mode else basis.embedding
        found = self._posteriors(X, partial(assigned, places, self.position))  # (n, 2 + L)
        positions = found[:, 2:] if is_mode else basis.space.unembed(found[:, 2:])
        return Assignment(found[:, 0].astype(np.int64), found[:, 1], positions)

    def score_samples(self, X: Data) -> NDArray[Any]:
        """Log likelihood of each particle, Eq. (2.5).

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`.

        Returns
        -------
        log_likelihood : ndarray of shape (n_images,)
            In nats, over all frequencies up to `max_resolution`.
        """
        return self._posteriors(X, log_evidence, tempered=False)

    def score(self, X: Data, y: Any = None) -> float:
        """Mean log likelihood per particle, Eq. (3.9).

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`.
        y : None
            Ignored.

        Returns
        -------
        score : float
            Higher is better; compare models of the same `max_resolution` and `mask_diameter` alone. Particles
            marked as far out do not count: for cross-validation, screen the stack before.
        """
        return mean_without_outliers(self.score_samples(X), X)

    def inverse_transform(self, Z: ArrayLike) -> NDArray[Any]:
        """Images anywhere on the manifold, mu(s) of Eq. (2.2).

        Parameters
        ----------
        Z : array-like of shape (n, n_components)
            Latent positions as of `transform`; the nodes span [-1, 1] along every axis. Directions (n, 3) of
            any length on a sphere.

        Returns
        -------
        images : ndarray of shape (n, D, D)
            Vectors (n, n_features) for a model of vectors.
        """
        check_is_fitted(self)
        positions = check_array(Z, dtype=np.float64, input_name="Z")  # (n, n_components)
        n_coordinates = self.latent_nodes_.shape[1]
        if positions.shape[1] != n_coordinates:
            raise ValueError(
                f"Z has shape {positions.shape}, expected (n, {n_coordinates}): latent positions as of "
                "transform. Give one column for each latent dimension."
            )
        with single_blas_threads():
            return self._space.to_data(self._manifold.basis.at(positions) @ self.weights_)

    def sample(
        self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Draw particles from the model: a node, Eq. (2.4), its template and noise; the CTF is 1.

        Parameters
        ----------
        n_samples : int, default=1
            How many.
        random_state : int, RandomState instance or None, default=None
            Seed.

        Returns
        -------
        X : ndarray of shape (n_samples, D, D)
            Images, without frequencies beyond `max_resolution`; vectors for a model of vectors.
        labels : ndarray of shape (n_samples,)
            Node that each was drawn from.
        """
        check_is_fitted(self)
        check_number("n_samples", n_samples, owner="SMLClusterer.sample", minimum=1, integer=True)
        with single_blas_threads():
            features, labels = draw(self._manifold, self._space, n_samples, check_random_state(random_state))
            return self._space.to_data(features), labels

    @property
    def _n_features_out(self):
        return self.latent_nodes_.shape[1]


def most_probable(posterior):
    """Node of each image; (n,)."""
    return posterior.responsibilities.argmax(axis=1)


def responsibilities(posterior):
    """Posterior of every node; (n, n_nodes)."""
    return posterior.responsibilities


def assigned(places, mode, posterior):
    """Node, its posterior, and place of each image among the `places` of the nodes; (n, 2 + L)."""
    shares = posterior.responsibilities
    return np.column_stack(
        [shares.argmax(axis=1), shares.max(axis=1), latent_positions(posterior, places, mode)]
    )


def log_evidence(posterior):
    """Log likelihood of each image, Eq. (2.5); (n,)."""
    return posterior.log_evidence


def draw(manifold, space, n_samples, rng):
    """Features (n, P) of samples of the model and the nodes (n,) they come from, Eq. (2.4) and Eq. (1.3)."""
    nodes = rng.randint(len(manifold.basis.nodes), size=n_samples)
    deviation = np.sqrt(manifold.noise_variance)[space.shell]  # (P,)
    noise = rng.standard_normal((n_samples, len(deviation))) * deviation
    return manifold.templates[nodes] + noise, nodes
