"""Accuracy of classes, poses and averages, against the truth or between halves of the data."""

from sklearn_cryoem.metrics.poses import PoseErrors, pose_errors
from sklearn_cryoem.metrics.resolution import fourier_ring_correlation, resolution_from_frc
from sklearn_cryoem.metrics.views import EffectiveClasses, effective_classes, fraction_within, view_distances

__all__ = [
    "EffectiveClasses",
    "PoseErrors",
    "effective_classes",
    "fourier_ring_correlation",
    "fraction_within",
    "pose_errors",
    "resolution_from_frc",
    "view_distances",
]
