"""What a fitted DeepClusterer does with particles: down the tree, and what is found at its leaves."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import TransformerMixin
from sklearn.utils.validation import check_is_fitted

from sklearn_cryoem._core.workers import ordered_map
from sklearn_cryoem.estimators._deep_first import aligns, classify_new
from sklearn_cryoem.estimators._inputs import Data, as_stack, as_vectors, is_images
from sklearn_cryoem.particles import ParticleStack


class DescendsTree(TransformerMixin):
    """Methods of an estimator with a fitted `first_`, `clusterers_` of its classes, and their `children_`.

    It is a TransformerMixin itself: scikit-learn wraps `transform`, for `set_output`, only in the class that
    defines it.
    """

    def _descend(self, X, method):
        """Apply a method of the clusterer of its own first class to each particle.

        Returns
        -------
        n_samples : int
        found : list of (class, rows, result)
            Of the first classes that hold particles of X; the result is None for classes kept whole.
        """
        check_is_fitted(self)
        data, first_labels = classify_new(self.first_, self._data(X))
        return len(data), self._ask_own_class(data, first_labels, method)

    def _ask_own_class(self, data, first_labels, method):
        """What `_descend` finds for particles whose first classes are known."""
        tasks = [
            (self.clusterers_[k], np.flatnonzero(first_labels == k), int(k)) for k in np.unique(first_labels)
        ]
        results = ordered_map(partial(_ask, data, method), tasks, n_jobs=self.n_jobs)
        return [(k, rows, part) for (_, rows, k), part in zip(tasks, results, strict=True)]

    def _data(self, X):
        """X checked: of the kind that was fitted."""
        was_images = self.class_averages_.ndim == 3
        if is_images(X) == was_images:
            return as_stack(X, self) if was_images else as_vectors(X, self, reset=False)
        wanted = "images. Give a ParticleStack or images" if was_images else "vectors. Give an array of them"
        raise ValueError(f"X has shape {np.shape(X)}, but this {type(self).__name__} was fitted on {wanted}.")

    def predict(self, X: Data) -> NDArray[Any]:
        """Flat class of each particle: the sub-class of its class.

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`. New particles are aligned and classified by `first_`, then by the clusterer of their
            class.

        Returns
        -------
        labels : ndarray of shape (n_images,)
        """
        return self._leaves(*self._descend(X, "predict"))

    def _leaves(self, n_samples, found):
        """Flat class of each particle from the nodes that `_descend` found."""
        labels = np.empty(n_samples, dtype=np.int64)
        for k, rows, part in found:
            labels[rows] = self.children_[k][0 if part is None else self._leaf_of_node[k][part]]
        return labels

    def predict_proba(self, X: Data) -> NDArray[Any]:
        """Posterior probability of every flat class, given the class that `first_` puts a particle in.

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`.

        Returns
        -------
        responsibilities : ndarray of shape (n_images, n_classes)
            Rows sum to 1 and are 0 outside the sub-classes of the particle's own first class.
        """
        n_samples, found = self._descend(X, "predict_proba")
        posterior = np.zeros((n_samples, len(self.parent_label_)), dtype=self.class_averages_.dtype)
        for k, rows, part in found:
            if part is None:
                posterior[rows, self.children_[k][0]] = 1.0
                continue
            for node, leaf in enumerate(self._leaf_of_node[k]):
                posterior[rows, self.children_[k][leaf]] += part[:, node]
        return posterior

    def transform(self, X: Data) -> NDArray[Any]:
        """Latent position of each particle on the manifold of its own first class, Eq. (3.7).

        Parameters
        ----------
        X : ParticleStack or array-like
            As in `fit`.

        Returns
        -------
        positions : ndarray of shape (n_images, n_components)
            Comparable inside a first class alone; 0 in classes kept whole.
        """
        n_samples, found = self._descend(X, "transform")
        positions = np.zeros((n_samples, self._n_features_out))
        for _, rows, part in found:
            if part is not None:
                positions[rows] = part
        return positions

    def align(self, X: Data) -> ParticleStack:
        """Particles with the poses that `first_` finds for them.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, D, D)
            Particles of the same box.

        Returns
        -------
        stack : ParticleStack

        Raises
        ------
        ValueError
            If `first_` does not align.
        """
        check_is_fitted(self)
        if not aligns(self.first_):
            raise ValueError(
                f"first_ is a {type(self.first_).__name__}, which does not align. Align the particles before "
                "them with a MAPAligner, or give it as first=."
            )
        return classify_new(self.first_, self._data(X))[0]


def _ask(data, method, task):
    clusterer, rows, _ = task
    return None if clusterer is None else getattr(clusterer, method)(data[rows])
