"""What a report is about: the plain facts of one classification, as fitted estimators give them."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.estimators._common import warn_if_not_aligned
from sklearn_cryoem.particles.classes import steps_of
from sklearn_cryoem.plotting._figure import check_averages
from sklearn_cryoem.plotting.convergence import fits_of
from sklearn_cryoem.quality.table import as_classified

_MACHINE = ("n_jobs", "verbose")  # parameters that change no result
_LENGTHS = ("mask_diameter", "max_resolution", "max_shift")
_UNITS = {"angle_range": "rad", "pixel_size": "Å", "downsample": "px", "box": "px"}
_GRIDS = ("classes", "grid_shape", "n_basis", "n_clusters")


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
        In Angstrom, or pixels where `pixel_size` is None; not finite where there is none. Replaced by that of
        `quality`, if it has one: a class has one resolution, the same in every picture and file.
    source : dict or str
        What a saved selection says that it was made from; of a folder its name, when it started and how
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
    alignment : tuple of ndarray or None
        Averages and sizes of the classes of an alignment before the clustering.
    fits : list of Fit
        How the fits went: `Fit` of `plotting.convergence`.
    facts, warnings : list
        (heading, [(name, value), ...]) and text, shown as they are.
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
    alignment: tuple[np.ndarray, np.ndarray] | None = None
    fits: list = field(default_factory=list)
    facts: list = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.averages = check_averages(self.averages)
        self.quality = None if self.quality is None else pd.DataFrame(self.quality)
        for name in ("sizes", "resolution", "nodes", "quality"):
            value = getattr(self, name)
            if value is not None and len(value) != self.n_classes:
                raise ParticleDataError(
                    f"{name} has {len(value)} rows, expected {self.n_classes}, one for each class average. "
                    f"Take all of them from the same fit."
                )
        if self.quality is not None and "resolution" in self.quality:
            self.resolution = self.quality["resolution"]
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

    @property
    def finest_resolution(self):
        """Of the classes with particles; None where none has one."""
        finite = self.resolution[np.isfinite(self.resolution) & (self.sizes > 0)]
        return float(finite.min()) if finite.size else None


# ---------------------------------------------------------------- from estimators
def run_of_estimators(model, stack=None, *, latent_positions=None, quality=None):
    """Facts of fitted estimators.

    Parameters
    ----------
    model : estimator or Pipeline
        Fitted; the last one has the classes.
    stack : ParticleStack or None
        What it was fitted on.
    latent_positions : ndarray or None
        Of the particles.
    quality : DataFrame or None
        One row for each class.

    Returns
    -------
    Run
    """
    last = steps_of(model)[-1]
    if not hasattr(last, "class_averages_"):
        raise TypeError(
            f"a report cannot be made of {type(last).__name__}: it has no class_averages_. Give a fitted "
            f"MAPAligner, SMLClusterer, DeepClusterer or RealigningClusterer, a Pipeline that ends in one, "
            f"or the folder of a run."
        )
    labels = np.asarray(last.labels_)
    if stack is not None:
        stack = as_classified(stack, model)
        warn_if_not_aligned(last, stack)
    pixel_size = getattr(stack, "pixel_size", None)
    return Run(
        name=type(last).__name__,
        source=source_of(last, labels),
        averages=last.class_averages_,
        sizes=last.class_sizes_,
        resolution=np.full(len(last.class_averages_), np.nan),  # what `quality` measured, if anything
        pixel_size=pixel_size,
        positions=latent_positions,
        labels=labels,
        stack=stack,
        quality=quality,
        fits=fits_of(model, stack),
        **facts_of_model(model, pixel_size),
    )


def facts_of_model(model, pixel_size):
    """What the page shows of the model itself: latent space, tree and parameters, by the names of `Run`."""
    last = steps_of(model)[-1]
    first = getattr(last, "first_", None)  # of a deep clustering
    inner = [] if first is None else steps_of(first)
    before = [step for step in [*inner, *steps_of(model)[:-1]] if hasattr(step, "poses_")]
    return {
        "nodes": getattr(last, "latent_nodes_", None),
        "topology": getattr(last, "topology", "grid"),
        "tree": getattr(last, "tree_", None),
        "alignment": (before[0].class_averages_, before[0].class_sizes_) if before else None,
        "first_averages": None if first is None else getattr(inner[-1], "class_averages_", None),
        "facts": [_parameters_of(step, pixel_size) for step in [*steps_of(model), *inner]],
    }


def source_of(model, labels):
    """What a selection says it was made from: another fit gives other labels, hence another fingerprint."""
    fingerprint = hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()[:12]
    return {"estimator": type(model).__name__, "n_classes": len(model.class_averages_), "labels": fingerprint}


def _parameters_of(step, pixel_size):
    """(heading, [(parameter, value), ...]) as text with units, without what changes no result."""
    unit = "px" if pixel_size is None else "Å"
    shown = [
        (name, with_unit(name, as_text(value), unit))
        for name, value in sorted(step.get_params(deep=False).items())
        if name not in _MACHINE
    ]
    return (f"Parameters of {type(step).__name__}", shown)


# ---------------------------------------------------------------- values as text
def with_unit(name, text, unit):
    """The text of a parameter's value with its unit, if it is a number that has one."""
    own_unit = unit if name in _LENGTHS else _UNITS.get(name)
    text = text.replace(", ", " × ") if name in _GRIDS else text
    return f"{text} {own_unit}" if own_unit and text[:1].isdigit() else text


def as_text(value):
    """A parameter or a result as text for people."""
    if value is None or isinstance(value, bool):
        return {None: "default", True: "yes", False: "no"}[value]
    if hasattr(value, "get_params"):
        return type(value).__name__
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(as_text(item) for item in value) or "none"
    return str(value)
