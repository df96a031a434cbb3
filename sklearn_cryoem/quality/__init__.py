"""How good classes are, and which to keep: measured from the particles, whoever made the classes."""

from sklearn_cryoem.quality.suggestion import suggest_classes
from sklearn_cryoem.quality.table import class_quality

__all__ = ["class_quality", "suggest_classes"]
