"""Small RELION projects on disk, to be spoilt in one way each."""

from dataclasses import dataclass, field
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile

BOX = 8


@dataclass
class Project:
    """A folder with two stacks of 5 and 4 images, and the tables of a STAR file that names them."""

    folder: Path
    images: np.ndarray
    optics: pd.DataFrame
    particles: pd.DataFrame
    stacks: list[Path] = field(default_factory=list)

    @property
    def star(self):
        return self.folder / "Extract" / "particles.star"

    def write(self, *, version="3.1"):
        """Write the STAR file in the style of a RELION version; returns its path."""
        particles = self.particles
        if version == "3.1":
            blocks = {"optics": self.optics, "particles": particles}
        elif version == "3.1 swapped":
            blocks = {"particles": particles, "optics": self.optics}
        else:
            old = particles.drop(columns=["rlnOpticsGroup"])
            old["rlnVoltage"], old["rlnSphericalAberration"], old["rlnAmplitudeContrast"] = 300.0, 2.7, 0.1
            old["rlnMagnification"], old["rlnDetectorPixelSize"] = 25000.0, 5.0
            old = old.rename(columns={"rlnOriginXAngst": "rlnOriginX", "rlnOriginYAngst": "rlnOriginY"})
            blocks = {"" if version == "1.x" else "images": old}
        starfile.write(blocks, self.star)
        return self.star


def write_mrcs(path, images):
    """Write a float32 stack, NaN and all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new_mmap(path, images.shape, mrc_mode=2, overwrite=True) as mrc:
        mrc.set_image_stack()
        mrc.voxel_size = 2.0
        mrc.data[:] = images
    return path


@pytest.fixture
def save_stack():
    """Function that writes a float32 stack."""
    return write_mrcs


@pytest.fixture
def project(tmp_path):
    """A sound project; change its tables or files, then write()."""
    folder = tmp_path / "project"
    images = np.random.default_rng(0).normal(size=(9, BOX, BOX)).astype(np.float32)
    stacks = [
        write_mrcs(folder / "Extract" / "Movies" / "a.mrcs", images[:5]),
        write_mrcs(folder / "Extract" / "Movies" / "b.mrcs", images[5:]),
    ]
    optics = pd.DataFrame(
        {
            "rlnOpticsGroup": [1],
            "rlnOpticsGroupName": ["opticsGroup1"],
            "rlnVoltage": [300.0],
            "rlnSphericalAberration": [2.7],
            "rlnAmplitudeContrast": [0.1],
            "rlnImagePixelSize": [2.0],
            "rlnImageSize": [BOX],
            "rlnImageDimensionality": [2],
        }
    )
    names = [f"{i + 1:06d}@Extract/Movies/a.mrcs" for i in range(5)]
    names += [f"{i + 1:06d}@Extract/Movies/b.mrcs" for i in range(4)]
    rows = np.arange(9)
    particles = pd.DataFrame(
        {
            "rlnCoordinateX": 10.0 * rows,
            "rlnImageName": names,
            "rlnMicrographName": ["mic_a.mrc"] * 5 + ["mic_b.mrc"] * 4,
            "rlnOpticsGroup": 1,
            "rlnDefocusU": 15000.0 + rows,
            "rlnDefocusV": 14000.0 + rows,
            "rlnDefocusAngle": 20.0 + rows,
            "rlnAnglePsi": 30.0 * rows - 120.0,
            "rlnOriginXAngst": 1.0 * rows,
            "rlnOriginYAngst": -1.0 * rows,
        }
    )
    return Project(folder, images, optics, particles, stacks)
