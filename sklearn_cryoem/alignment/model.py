"""What an alignment is asked to do and what it knows: plain containers shared by its steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem.alignment.expectation import LogPrior
from sklearn_cryoem.alignment.search import SearchSpace, search_space
from sklearn_cryoem.physics.fourier import Float32, Float64

NO_GROUPS = (0, 0)  # shape of what is kept for each noise group where all images share one spectrum
CLASS_PRIORS = ("uniform", "estimated", "balanced")


@dataclass(frozen=True)
class AlignmentSettings:
    """Everything that is chosen before an alignment, lengths in pixels and frequencies in Fourier pixels.

    Attributes
    ----------
    n_references : int
        Number of references.
    mask_radius_px, mask_edge_px : float
        Soft mask of the references.
    max_shift_px : float
        Longest shift of one search, from where an image is taken to lie.
    k_start, k_limit : float
        Resolution to start from and never to exceed.
    shift_step_px, angle_step_rad : float or None
        Steps of the search; None lets them follow the resolution.
    tau_fudge : float
        Factor on the prior variance of the references, Eq. (4.2).
    class_prior : {"uniform", "estimated", "balanced"}
        Prior weight of the classes, Eq. (4.14).
    n_batches, batch_size : int
        Mini-batches of online EM before the full passes, Eq. (4.8).
    n_init : int
        Online phases from different starts, of which the best goes on.
    max_iter : int
        Full passes, at most.
    tol : float
        Full passes stop once the log evidence gains less than this fraction.
    adaptive_fraction : float
        Part of a coarse posterior that the classes searched in full hold, Eq. (4.6); 1 searches all.
    angle_range_rad : float or None
        How far from the known poses of the images angles are searched; None for the whole circle.
    reach_px : float
        Longest shift in all, Eq. (4.16); `max_shift_px` where it is shorter.
    """

    n_references: int
    mask_radius_px: float
    mask_edge_px: float
    max_shift_px: float
    k_start: float
    k_limit: float
    shift_step_px: float | None = None
    angle_step_rad: float | None = None
    tau_fudge: float = 2.0
    class_prior: str = "uniform"
    n_batches: int = 60
    batch_size: int = 200
    n_init: int = 1
    max_iter: int = 5
    tol: float = 1e-2
    adaptive_fraction: float = 0.999
    angle_range_rad: float | None = None
    reach_px: float = 0.0

    @property
    def turns_freely(self) -> bool:
        """Whether all in-plane angles are searched; otherwise known poses fix the frame of everything."""
        return self.angle_range_rad is None or self.angle_range_rad >= np.pi

    def space(self, box: int, k_max: float) -> SearchSpace:
        """Search space at the resolution `k_max`."""
        return search_space(
            box,
            k_max,
            reference_radius_px=self.mask_radius_px + self.mask_edge_px,
            max_shift_px=self.max_shift_px,
            shift_step_px=self.shift_step_px,
            angle_step_rad=self.angle_step_rad,
            adaptive_fraction=self.adaptive_fraction,
            coarsest_k=self.k_start,
            angle_range_rad=self.angle_range_rad,
        )


@dataclass(frozen=True)
class AlignmentModel:
    """References and everything else that the M-step estimates.

    Attributes
    ----------
    references : ndarray of shape (n_clusters, D, D), float32
        Masked, centred, CTF-corrected.
    noise : ndarray of shape (largest number of rings,)
        Noise variance per pixel at each ring 1, 2, .., as `noise_fraction` of it passes the image mask.
    class_weight : ndarray of shape (n_clusters,)
        Prior probability of each class.
    balance : ndarray of shape (n_clusters,)
        Added to the log prior during online EM against classes that swallow the others; 0 afterwards.
    shift_sigma_px : float
        Standard deviation of each coordinate of the shift, Eq. (4.1).
    k_max : float
        Resolution in use, in Fourier pixels.
    resolution : ndarray of shape (n_clusters,), int
        Last ring of each reference up to which its signal exceeds its noise, Eq. (4.7).
    group_noise : ndarray of shape (n_groups, n_rings)
        Noise variance of each noise group as a multiple of `noise`, Eq. (4.12); empty where all share one.
    """

    references: Float32
    noise: Float64
    class_weight: Float64
    balance: Float64
    shift_sigma_px: float
    k_max: float
    resolution: np.ndarray
    group_noise: Float64 = field(default_factory=lambda: np.empty(NO_GROUPS))

    def log_prior(self, space: SearchSpace) -> LogPrior:
        """Log priors of classes and of the shifts of `space`."""
        tiny = np.finfo(np.float64).tiny
        cluster = np.log(np.maximum(self.class_weight, tiny)) + self.balance
        return LogPrior(cluster, space.log_shift_prior(self.shift_sigma_px))

    def relative_precision(self, group: NDArray[np.int64], n_rings: int) -> Float64:
        """Precision of images as a multiple of 1 / `noise`, Eq. (4.12); (n_images, n_rings).

        Parameters
        ----------
        group : ndarray of shape (n_images,), int
            Noise group of every image; -1 for one that the model has not seen, which gets the pooled noise.
        n_rings : int
            Rings wanted.
        """
        every = np.ones((len(self.group_noise) + 1, n_rings))  # the last row is that of unknown groups
        if len(self.group_noise):
            every[:-1] = 1.0 / self.group_noise[:, :n_rings]
        known = np.where(group < len(self.group_noise), group, -1)
        relative: Float64 = every[known]
        return relative

    def precision(self, group: NDArray[np.int64], n_rings: int) -> Float32:
        """1 / noise variance of each ring of images of the given noise groups; (n_images, n_rings)."""
        each = self.relative_precision(group, n_rings) / self.noise[:n_rings]
        return each.astype(np.float32)
