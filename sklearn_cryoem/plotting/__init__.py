"""Pictures of particles and of fits: each function returns a matplotlib Figure.

A notebook shows it when it is the last value of a cell, ``figure.savefig(...)`` writes it, and
``figure.axes[0]`` is there to add to. No function here calls pyplot or opens a window. Display classes, as
scikit-learn has them, would hold the same figure and axes under one more name for each picture.
"""

import os
import sys
from contextlib import suppress


def _import_matplotlib():
    """Import matplotlib, whatever MPLBACKEND names.

    A notebook sets it, for all processes that it starts, to a backend that their environments may lack, and
    matplotlib then cannot even be imported. Nothing here needs a backend; pyplot keeps one that is there.
    """
    if "matplotlib" in sys.modules:
        return
    named = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    if named:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = named


try:
    _import_matplotlib()
    from sklearn_cryoem.plotting.atlas import plot_manifold_atlas
    from sklearn_cryoem.plotting.convergence import plot_convergence
    from sklearn_cryoem.plotting.gallery import plot_class_averages, plot_volume
    from sklearn_cryoem.plotting.particles import plot_ctf, plot_particles, plot_power_spectrum
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] != "matplotlib":
        raise
    raise ModuleNotFoundError(
        "matplotlib is not installed, and the pictures need it. "
        "Install it with: pip install 'sklearn-cryoem[plot]'",
        name=error.name,
    ) from error

__all__ = [
    "plot_class_averages",
    "plot_convergence",
    "plot_ctf",
    "plot_manifold_atlas",
    "plot_particles",
    "plot_power_spectrum",
    "plot_volume",
]
