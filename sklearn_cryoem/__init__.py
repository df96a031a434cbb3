"""Reference-free 2-D alignment and deep clustering of cryo-EM particle images."""

from sklearn_cryoem._version import __version__
from sklearn_cryoem.particles import CTFTable, ParticleStack, Poses

__all__ = ["CTFTable", "ParticleStack", "Poses", "__version__"]
