"""Pictures of a fit: arrays in, matplotlib axes out.

No function here calls pyplot or shows a window: without `ax=` each makes a figure of its own, which a
notebook shows when the cell ends with `ax.figure` and which `ax.figure.savefig(...)` writes.
"""

from sklearn_cryoem.plotting.atlas import plot_manifold_atlas
from sklearn_cryoem.plotting.convergence import plot_convergence
from sklearn_cryoem.plotting.gallery import plot_class_averages

__all__ = ["plot_class_averages", "plot_convergence", "plot_manifold_atlas"]
