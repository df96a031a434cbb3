"""How good classes are, which to keep, and what is wrong with particles: measured from the images."""

from sklearn_cryoem.quality.checks import Finding, check_particles
from sklearn_cryoem.quality.match import average_classes, particle_match, reasons_to_leave, unlike_their_class
from sklearn_cryoem.quality.similarity import Similarity, compare_classes, map_correlation, similarity
from sklearn_cryoem.quality.suggestion import LearnedSelection, learn_selection, suggest_classes
from sklearn_cryoem.quality.table import class_quality

__all__ = [
    "Finding",
    "LearnedSelection",
    "Similarity",
    "average_classes",
    "check_particles",
    "class_quality",
    "compare_classes",
    "learn_selection",
    "map_correlation",
    "particle_match",
    "reasons_to_leave",
    "similarity",
    "suggest_classes",
    "unlike_their_class",
]
