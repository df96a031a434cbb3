"""Learning from particles as they arrive: SMLClusterer.partial_fit."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Self

import numpy as np

from sklearn_cryoem._core.memory import memory_watched
from sklearn_cryoem._core.parallel import single_blas_threads
from sklearn_cryoem.estimators._checkpoint import FRAMES, with_callbacks
from sklearn_cryoem.estimators._inputs import (
    Data,
    as_stack,
    as_vectors,
    is_images,
    normalised_like,
    warn_if_not_aligned,
)
from sklearn_cryoem.estimators._sml_fit import class_attributes, manifold_attributes
from sklearn_cryoem.estimators._sml_noise import noise_attributes, pooling
from sklearn_cryoem.estimators._sml_parameters import check_parameters, folds_of, latent_basis
from sklearn_cryoem.estimators._sml_space import ImageSpace, check_kind
from sklearn_cryoem.estimators._sml_use import most_probable
from sklearn_cryoem.manifold.stream import advance, begin_stream, resume_stream
from sklearn_cryoem.metrics import effective_count
from sklearn_cryoem.particles.screening import screened

logger = logging.getLogger(__name__)


class ManifoldStream:
    """Incremental learning for an estimator with a `_manifold`, its feature `_space` and a `_stream`."""

    @with_callbacks
    def partial_fit(self, X: Data, y: Any = None) -> Self:
        """Learn from a chunk of particles, for data that arrive while the microscope runs, Eq. (3.20).

        The first call fits its chunk as `fit` does; each further one improves the manifold by a few passes
        over its own chunk and the last images before it, cross-fitted as in `fit`, and by what is remembered
        of older ones, which counts the less the longer ago they were. Noise and prior follow. After `fit` it
        goes on from what was fitted, as if every class had seen the same mean CTF.

        Parameters
        ----------
        X : ParticleStack, array-like of shape (n_images, D, D) or (n_samples, n_features)
            The chunk. The first decides the kind, box and pixel size, and needs more images than there are
            basis functions (of vectors, two); a few times `n_clusters` make a good start. Later ones may be
            as small as one image, though some hundreds serve better.
        y : None
            Ignored.

        Returns
        -------
        self : SMLClusterer
            `labels_` are those of the chunk, `class_sizes_` count all labels given so far, and averages, soft
            sizes and noise are those of the last images and decayed means over older ones. `log_posterior_`
            and `stage_` go on: each sweep over images at hand adds the likelihood of held-out ones, a
            stage of its own; with `n_folds=1` and for vectors their objective (3.5), a stage a chunk.

        Raises
        ------
        ValueError
            If the first chunk is too small, a later one is of another kind, or parameters that lay out the
            latent space have been changed in between.

        Notes
        -----
        The same chunks in the same order give the same bits. The features of the last images are kept, in
        model files too: of 2,000, or eight for each node if that is more, or what 256 MB hold. What is
        remembered of the others takes about three times the memory of the templates, in double precision.
        """
        with memory_watched("SMLClusterer.partial_fit"), single_blas_threads():
            if not hasattr(self, "_manifold"):
                self._begin_stream(X)
            else:
                if self._stream is None:
                    self._stream = self._resumed_stream()
                self._advance_stream(X)
        return self

    def _begin_stream(self, X):
        check_parameters(self)
        n_weights = latent_basis(self).phi.shape[1]
        if is_images(X) and len(X) < n_weights:
            raise ValueError(
                f"partial_fit got {len(X)} images in its first call, expected at least {n_weights}: as many "
                "as basis functions. Collect more for the first call, or ask for fewer n_clusters or n_basis."
            )
        blocks = self._learn(X, stacklevel=4 + FRAMES)
        hard, dtype = self.class_average == "hard", self._space.dtype
        self._stream = begin_stream(
            blocks,
            self._manifold,
            self._moments,
            n_folds=self._n_folds(blocks.n_samples),
            noise=pooling(self.noise),
            hard=hard,
            dtype=dtype,
            n_jobs=self.n_jobs,
        )

    def _n_folds(self, n_samples):
        """Folds of the stream: those of `fit` where they are given."""
        return folds_of(self, n_samples) if isinstance(self._space, ImageSpace) else 1

    def _resumed_stream(self):
        """What `fit` would have remembered, as far as its results tell."""
        space = self._space
        halves = np.stack([space.to_features(half) for half in self.half_averages_])  # (2, K, P)
        outlier = getattr(self, "outlier_", None)  # models of earlier versions have none
        return resume_stream(
            self._manifold,
            self._moments,
            self._layout,
            halves,
            self.soft_class_sizes_,
            self.labels_ if outlier is None else self.labels_[~outlier],
            n_folds=self._n_folds(self.n_images_seen_),
        )

    def _screened_chunk(self, X):
        """A further chunk, looked at by the measure of the first, and what of it is learned from."""
        if not is_images(X):
            return None, as_vectors(X, self, reset=False)
        stack = normalised_like(as_stack(X, self), self._space.background_px)
        dataclasses.replace(self._space, noise=None).blocks(stack)  # raises before images are read
        if stack.outlier is None:
            stack, _ = screened(
                stack,
                self.mask_diameter,
                noise=self.noise,
                limits=getattr(self, "_usual", None),
                n_jobs=self.n_jobs,
                stacklevel=5 + FRAMES,
            )
        return stack, stack[~stack.outlier]

    def _advance_stream(self, X):
        check_parameters(self)
        check_kind(X, self)
        begun = self._manifold.basis
        if latent_basis(self) != begun:
            raise ValueError(
                f"partial_fit cannot change the latent space ({begun.topology!r}, {begun.grid_shape} "
                f"nodes, {begun.basis_shape} basis functions, basis_width={begun.width:g}) that the first "
                "call has laid out. Set these parameters back, or begin with a new model."
            )
        chunk, data = self._screened_chunk(X)
        if not len(data):  # nothing to learn from; labels alone
            self.outlier_, self.labels_ = chunk.outlier, self._posteriors(chunk, most_probable, None)
            return
        self._space, blocks = self._space.learn_noise(data, self.noise, self.n_jobs)
        warn_if_not_aligned(self, X, stacklevel=3 + FRAMES)
        self._store(noise_attributes(self._space, blocks))
        done = advance(
            self._stream,
            blocks,
            self._manifold,
            alpha=self.alpha,
            noise=pooling(self.noise),
            hard=self.class_average == "hard",
            dtype=self._space.dtype,
            n_jobs=self.n_jobs,
        )
        stream = self._stream = done.stream
        self._manifold, self.n_images_seen_ = done.manifold, stream.n_seen
        self._store(manifold_attributes(self._manifold, self._space))
        self._store(class_attributes(done.classes, stream.layout, self._manifold, self._space))
        self.outlier_ = None if chunk is None else chunk.outlier
        if chunk is not None and self.outlier_.any():
            self._add_outliers(chunk)
        self.class_sizes_ = stream.class_counts
        self.n_effective_clusters_ = effective_count(stream.class_counts)
        mass = done.classes.node_mass
        self.soft_class_sizes_ = mass * (stream.n_seen / mass.sum())
        n_sweeps = len(done.objective)
        # likelihoods of held-out images are stages of their own, as in `fit`
        stages = np.arange(1, n_sweeps + 1) if stream.n_folds > 1 else np.ones(n_sweeps, dtype=np.int64)
        self.log_posterior_ = np.append(self.log_posterior_, done.objective)
        self.stage_ = np.append(self.stage_, self.stage_[-1] + stages)
        self.resolution_ = np.append(self.resolution_, np.full(n_sweeps, self.resolution_[-1]))
        self.temperature_ = np.append(self.temperature_, np.ones(n_sweeps))
        self.held_out_ = np.append(self.held_out_, np.full(n_sweeps, stream.n_folds > 1))
        self.n_iter_ += n_sweeps
        logger.info(
            "%d images seen, %.4f nats per image of the last %d",
            stream.n_seen,
            done.objective[-1],
            len(data),
        )
