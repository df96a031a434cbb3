"""Pictures of a fit: arrays in, matplotlib axes out.

No function here calls pyplot or shows a window: without `ax=` each makes a figure of its own, which a
notebook shows when the cell ends with `ax.figure` and which `ax.figure.savefig(...)` writes.
"""

try:
    from sklearn_cryoem.plotting.atlas import plot_manifold_atlas
    from sklearn_cryoem.plotting.convergence import plot_convergence
    from sklearn_cryoem.plotting.gallery import plot_class_averages
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] != "matplotlib":
        raise
    raise ModuleNotFoundError(
        "matplotlib is not installed, and the pictures need it. "
        "Install it with: pip install 'sklearn-cryoem[plot]'",
        name=error.name,
    ) from error

__all__ = ["plot_class_averages", "plot_convergence", "plot_manifold_atlas"]
