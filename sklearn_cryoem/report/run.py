"""What a report is about: the plain facts of one classification, wherever they come from."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from sklearn_cryoem._core.exceptions import ParticleDataError


@dataclass
class Trace:
    """How one fit went, iteration by iteration.

    Parameters
    ----------
    title : str
        What was fitted.
    objective : array-like of shape (n_iter,)
        Value after each iteration, in nats per particle.
    label : str
        Name of the objective.
    resolution : array-like of shape (n_iter,) or None
        Resolution of each iteration, in the unit of the run; not finite where there was none.
    resolution_label : str
        What that resolution is.
    stage : array-like of shape (n_iter,) or None
        Changes where the objective itself changes.
    held_out, temperature : array-like of shape (n_iter,) or None
        As for `plot_convergence`.
    """

    title: str
    objective: np.ndarray
    label: str = "log posterior"
    resolution: np.ndarray | None = None
    resolution_label: str = "resolution"
    stage: np.ndarray | None = None
    held_out: np.ndarray | None = None
    temperature: np.ndarray | None = None


@dataclass
class Run:
    """One classification.

    Parameters
    ----------
    name : str
        What the page is called.
    averages : ndarray of shape (n_classes, D, D)
        Class averages.
    sizes : ndarray of shape (n_classes,)
        Particles of each class.
    resolution : ndarray of shape (n_classes,)
        In Angstrom, or pixels where `pixel_size` is None; not finite where there is none.
    source : dict or str
        What a saved selection says that it was made from; of a folder its name, when it was written and how
        many classes it has; of an estimator its name, its number of classes and a fingerprint of its labels.
    folder : str or None
        Folder of the run, for the command that writes a subset.
    pixel_size : float or None
        Angstrom per pixel.
    nodes : ndarray of shape (n_classes, n_coordinates) or None
        Latent position of each class.
    topology : str
        Shape of the latent space, as the clusterer names it.
    positions : ndarray of shape (n_particles, n_coordinates) or None
        Latent positions of particles.
    labels : ndarray of shape (n_particles,) or None
        Class of each particle.
    stack : ParticleStack or None
        The particles, aligned, for examples.
    quality : DataFrame, mapping of arrays or None
        One row for each class; see `report`.
    tree : dict or None
        `tree_` of a deep clustering.
    first_averages : ndarray of shape (n_first_classes, D, D) or None
        Averages of the classes that a deep clustering divided.
    traces : list of Trace
        How the fits went.
    facts, warnings : list
        (heading, [(name, value), ...]) and text, to be told as they are.
    missing : list of str
        What this page cannot show, and why.
    """

    name: str
    averages: np.ndarray
    sizes: np.ndarray
    resolution: np.ndarray
    source: dict | str = ""
    folder: str | None = None
    pixel_size: float | None = None
    nodes: np.ndarray | None = None
    topology: str = "grid"
    positions: np.ndarray | None = None
    labels: np.ndarray | None = None
    stack: object = None
    quality: object = None
    tree: dict | None = None
    first_averages: np.ndarray | None = None
    traces: list[Trace] = field(default_factory=list)
    facts: list = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.averages = np.asarray(self.averages, dtype=np.float32)
        if self.averages.ndim != 3 or self.averages.shape[1] != self.averages.shape[2]:
            raise ParticleDataError(
                f"the class averages have shape {self.averages.shape}, expected (n_classes, D, D). A report "
                f"shows images; for a model of vectors there is none."
            )
        self.quality = None if self.quality is None else pd.DataFrame(self.quality)
        for name in ("sizes", "resolution", "nodes", "quality"):
            value = getattr(self, name)
            if value is not None and len(value) != self.n_classes:
                raise ParticleDataError(
                    f"{name} has {len(value)} rows, expected {self.n_classes}, one for each class average. "
                    f"Take all of them from the same fit."
                )
        self.sizes = np.asarray(self.sizes, dtype=np.int64)
        self.resolution = np.asarray(self.resolution, dtype=float)

    @property
    def n_classes(self):
        """Number of classes, empty ones included."""
        return len(self.averages)

    @property
    def unit(self):
        """Unit of lengths and resolutions."""
        return "px" if self.pixel_size is None else "Å"
