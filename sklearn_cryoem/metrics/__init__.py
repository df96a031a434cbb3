"""Accuracy of classes, poses and averages, against the truth or between halves of the data."""

from sklearn_cryoem.metrics.classes import (
    EffectiveClasses,
    effective_classes,
    effective_count,
    fourier_ring_correlation,
    resolution_from_frc,
)
from sklearn_cryoem.metrics.truth import PoseErrors, fraction_within, pose_errors, view_distances

__all__ = [
    "EffectiveClasses",
    "PoseErrors",
    "effective_classes",
    "effective_count",
    "fourier_ring_correlation",
    "fraction_within",
    "pose_errors",
    "resolution_from_frc",
    "view_distances",
]
