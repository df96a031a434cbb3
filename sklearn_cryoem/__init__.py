"""Reference-free 2-D alignment and deep clustering of cryo-EM particle images.

The names below are the whole top level; everything else is in `sklearn_cryoem.datasets`, `metrics`,
`quality`, `plotting`, `io` and the packages under them. Names are imported when they are first used, so that
``import sklearn_cryoem`` and ``sklearn-cryoem --help`` cost nothing; packages are too, as in SciPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from sklearn_cryoem._version import __version__

if TYPE_CHECKING:
    from sklearn_cryoem._core.memory import set_memory_limit
    from sklearn_cryoem.estimators import (
        DeepClusterer,
        MAPAligner,
        ProjectionClusterer,
        RealigningClusterer,
        SMLClusterer,
        load_model,
        save_model,
    )
    from sklearn_cryoem.io import read_particles, write_particles
    from sklearn_cryoem.particles import CTFTable, ParticleStack, Poses, select_classes
    from sklearn_cryoem.quality import check_particles, class_quality

_HOMES = {
    "CTFTable": "particles",
    "DeepClusterer": "estimators",
    "MAPAligner": "estimators",
    "ParticleStack": "particles",
    "Poses": "particles",
    "ProjectionClusterer": "estimators",
    "RealigningClusterer": "estimators",
    "SMLClusterer": "estimators",
    "check_particles": "quality",
    "class_quality": "quality",
    "load_model": "estimators",
    "read_particles": "io",
    "save_model": "estimators",
    "select_classes": "particles",
    "set_memory_limit": "_core.memory",
    "write_particles": "io",
}

_PACKAGES = ("datasets", "estimators", "io", "metrics", "particles", "plotting", "quality", "report")

__all__ = [  # noqa: RUF022 (alphabetical but for the version)
    "CTFTable",
    "DeepClusterer",
    "MAPAligner",
    "ParticleStack",
    "Poses",
    "ProjectionClusterer",
    "RealigningClusterer",
    "SMLClusterer",
    "check_particles",
    "class_quality",
    "load_model",
    "read_particles",
    "save_model",
    "select_classes",
    "set_memory_limit",
    "write_particles",
    "__version__",
]


def __getattr__(name):
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
