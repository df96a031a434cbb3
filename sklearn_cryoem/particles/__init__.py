"""Particles in memory: the stack that travels, its CTF table, its poses, and where its pixels come from."""

from sklearn_cryoem.particles.classes import class_labels, select_classes, with_classes
from sklearn_cryoem.particles.concatenate import concatenate
from sklearn_cryoem.particles.ctf_table import CTFTable
from sklearn_cryoem.particles.frame import rescale
from sklearn_cryoem.particles.poses import Poses
from sklearn_cryoem.particles.stack import ParticleStack

__all__ = [
    "CTFTable",
    "ParticleStack",
    "Poses",
    "class_labels",
    "concatenate",
    "rescale",
    "select_classes",
    "with_classes",
]
