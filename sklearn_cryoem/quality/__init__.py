"""How good classes are, which to keep, and what is wrong with particles: measured from the images."""

from sklearn_cryoem.quality.checks import Finding, check_particles
from sklearn_cryoem.quality.match import particle_match, unlike_their_class
from sklearn_cryoem.quality.suggestion import suggest_classes
from sklearn_cryoem.quality.table import class_quality

__all__ = [
    "Finding",
    "check_particles",
    "class_quality",
    "particle_match",
    "suggest_classes",
    "unlike_their_class",
]
