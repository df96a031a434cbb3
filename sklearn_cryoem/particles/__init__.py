"""Particles in memory: the stack that travels, its CTF table, its poses, and where its pixels come from."""

from sklearn_cryoem.particles.classes import best_of_classes, class_labels, select_classes, with_classes
from sklearn_cryoem.particles.feature_space import to_working_box
from sklearn_cryoem.particles.frames import concatenate, rescale
from sklearn_cryoem.particles.stack import ParticleStack
from sklearn_cryoem.particles.tables import CTFTable, Poses

__all__ = [
    "CTFTable",
    "ParticleStack",
    "Poses",
    "best_of_classes",
    "class_labels",
    "concatenate",
    "rescale",
    "select_classes",
    "to_working_box",
    "with_classes",
]
