"""What all pictures share: figures without pyplot, colours, and checks of what is drawn."""

import io
import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.base import BaseEstimator

from sklearn_cryoem._core.validation import ParticleDataError, check_length
from sklearn_cryoem.particles.classes import check_order, steps_of

INK = "#2b2b2b"
FAINT = "#8a8a8a"
PAPER = "#ffffff"
ACCENT = "#2166ac"


class InlineFigure(Figure):
    """A figure that a notebook shows when it is a cell's last value, without pyplot or a GUI backend."""

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
        return buffer.getvalue()


def new_figure(width_inch, height_inch):
    """An empty figure of the given size; no pyplot state is touched."""
    return InlineFigure(figsize=(width_inch, height_inch), dpi=100, layout="constrained", facecolor=PAPER)


def classes_of(owner, classification, stack):
    """The fitted estimator that has the classes, None for an array, and its averages (n_classes, D, D)."""
    check_order(owner, classification, stack)
    last = steps_of(classification)[-1]
    if not isinstance(last, BaseEstimator):
        return None, check_averages(classification)
    if not hasattr(last, "class_averages_"):
        raise TypeError(
            f"{type(last).__name__} has no class_averages_. Pass a fitted MAPAligner, SMLClusterer, "
            "DeepClusterer or RealigningClusterer, or class averages."
        )
    return last, check_averages(last.class_averages_)


def check_averages(class_averages):
    """Return `class_averages` as float32 of shape (n_classes, D, D), or say what is wrong with it."""
    averages = np.asarray(class_averages, dtype=np.float32)
    if averages.ndim != 3 or averages.shape[1] != averages.shape[2] or averages.size == 0:
        raise ParticleDataError(
            f"class_averages has shape {averages.shape}, expected (n_classes, D, D) with at least one class. "
            f"Pass a fitted estimator or its `class_averages_`, not labels, which hold no images; reshape "
            f"vectors to square images first."
        )
    return averages


def check_per_class(name, values, n_classes):
    """Return `values` as a float array of length `n_classes`, or None."""
    return None if values is None else check_length(name, values, n_classes, "class average").astype(float)


def round_length(limit):
    """Largest of 1, 2 or 5 times a power of ten that is not above `limit`; for scale bars."""
    power = 10.0 ** math.floor(math.log10(limit))
    return max(step * power for step in (1, 2, 5) if step * power <= limit * (1 + 1e-9))


def hide_frame(ax: Axes):
    """Remove ticks and frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
