"""A search round known poses against given references, which stay as they are: no M-step, Eq. (4.2)."""

from __future__ import annotations

import numpy as np

from sklearn_cryoem.alignment.features import FeatureSource
from sklearn_cryoem.alignment.model import AlignmentModel, AlignmentSettings
from sklearn_cryoem.alignment.poses import ImagePoses, find_poses
from sklearn_cryoem.alignment.update import masked_references
from sklearn_cryoem.physics.fourier import Float32, Float64


def poses_against(
    source: FeatureSource,
    references: Float32,
    noise_variance: Float64,
    settings: AlignmentSettings,
    *,
    class_weight: Float64,
    shift_sigma_px: float,
) -> ImagePoses:
    """Poses of images against references that are not theirs to change.

    Parameters
    ----------
    source : FeatureSource
        The images, with known poses, those searched round, and who works on them.
    references : ndarray of shape (n_references, D, D)
        In the frame of the known poses; masked here.
    noise_variance : ndarray of shape (n_rings,)
        Noise variance per pixel at rings 1, 2, .. at least as many as `settings.k_limit`.
    settings : AlignmentSettings
        Masks, range and steps of the search, and its resolution `k_limit`.
    class_weight : ndarray of shape (n_references,)
        Prior weight of each reference.
    shift_sigma_px : float
        Standard deviation of each coordinate of the shift left over, Eq. (4.1).
    """
    model = AlignmentModel(
        references=masked_references(references, settings),
        noise=noise_variance,
        class_weight=class_weight,
        balance=np.zeros(len(references)),
        shift_sigma_px=shift_sigma_px,
        k_max=settings.k_limit,
        resolution=np.full(len(references), int(settings.k_limit)),
    )
    return find_poses(source, model, settings)
