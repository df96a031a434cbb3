"""Feature spaces of models: from particles or vectors to feature blocks, and from features back to images."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_cryoem.manifold.blocks import ArrayBlocks
from sklearn_cryoem.manifold.noise import PartNoise
from sklearn_cryoem.particles.features import FeatureBlocks
from sklearn_cryoem.particles.preprocess import normalised_radius
from sklearn_cryoem.particles.screening import normalised_beyond
from sklearn_cryoem.particles.stack import ParticleStack
from sklearn_cryoem.physics.fourier import HalfPlane, fourier_features, half_plane, images_from_features

MIN_SHELLS = 6  # coarser images of anything look alike
PIXEL_SIZE_TOLERANCE = 0.01  # relative
Folder = str | os.PathLike[str] | None
