"""Stacks whose every part knows the row it belongs to."""

import numpy as np
import pandas as pd
import pytest

from sklearn_cryoem.particles import CTFTable, ParticleStack, Poses


@pytest.fixture
def numbered_parts():
    """All parts of a stack of n particles; each carries its row number, images in pixel (0, 0)."""

    def make(n_images=12, box=8):
        rows = np.arange(n_images, dtype=np.float64)
        images = np.random.default_rng(0).normal(size=(n_images, box, box)).astype(np.float32)
        images[:, 0, 0] = rows
        return {
            "images": images,
            "pixel_size": 2.0,
            "ctf": CTFTable(
                defocus_u_angstrom=10000.0 + rows,
                defocus_v_angstrom=9000.0,
                astigmatism_angle_rad=0.1,
                voltage_volts=300e3,
                cs_angstrom=2.7e7,
                amplitude_contrast=0.1,
            ),
            "poses": Poses(0.01 * rows, np.column_stack([rows, -rows])),
            "optics_group": np.arange(n_images) % 2 + 1,
            "noise_group": np.arange(n_images) // 3,
            "metadata": pd.DataFrame(
                {"row": np.arange(n_images), "name": [f"{i:06d}@a.mrcs" for i in range(n_images)]}
            ),
            "optics": pd.DataFrame({"rlnOpticsGroup": [1, 2], "rlnVoltage": [300.0, 300.0]}),
            "truth": pd.DataFrame({"view": np.arange(n_images) * 10}),
        }

    return make


@pytest.fixture
def stack(numbered_parts):
    """A stack of 12 numbered particles in memory."""
    return ParticleStack(**numbered_parts())


@pytest.fixture
def rows_of():
    """Row numbers that each part of a stack carries, for comparison."""

    def read(stack):
        return {
            "images": np.rint(stack.read()[:, 0, 0]).astype(int).tolist(),
            "ctf": np.rint(stack.ctf.defocus_u_angstrom - 10000.0).astype(int).tolist(),
            "angle": np.rint(stack.poses.angle_rad * 100).astype(int).tolist(),
            "shift": np.rint(-stack.poses.shift[:, 1]).astype(int).tolist(),
            "metadata": stack.metadata["row"].tolist(),
            "name": [int(name[:6]) for name in stack.metadata["name"]],
            "truth": (stack.truth["view"] // 10).tolist(),
        }

    return read
