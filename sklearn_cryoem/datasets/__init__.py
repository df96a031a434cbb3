"""Simulated particles with known truth, phantoms made in code, and volumes read from files."""

from sklearn_cryoem.datasets.forward import project
from sklearn_cryoem.datasets.session import make_session
from sklearn_cryoem.datasets.simulate import aligned_to_truth, make_particles, true_poses
from sklearn_cryoem.datasets.volumes import (
    Volume,
    load_volume,
    make_proteasome_phantoms,
    make_ribosome_phantom,
    make_rings,
    volume_of_blobs,
)

__all__ = [
    "Volume",
    "aligned_to_truth",
    "load_volume",
    "make_particles",
    "make_proteasome_phantoms",
    "make_ribosome_phantom",
    "make_rings",
    "make_session",
    "project",
    "true_poses",
    "volume_of_blobs",
]
