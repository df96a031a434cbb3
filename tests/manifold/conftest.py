"""Small data sets on which every kernel can be compared with its naive twin."""

import numpy as np
import pytest

from sklearn_cryoem.manifold.blocks import ArrayBlocks, FeatureLayout


def layout_of(kind):
    """Plain vectors, images without CTF, CTFs that depend on the radius, CTFs of every coefficient."""
    if kind == "plain":
        return FeatureLayout.plain(16)
    shell = np.repeat([0, 1, 2], [4, 4, 8])
    if kind == "no CTF":
        return FeatureLayout(shell, shell, information=0.7)
    norm = np.repeat(np.arange(4), 4) if kind == "isotropic" else np.repeat(np.arange(8), 2)
    return FeatureLayout(shell, norm, information=0.7 if kind == "astigmatic" else 1.0)


@pytest.fixture(params=[0, 1])
def rng(request):
    """Two seeds: every test has four kinds of data besides."""
    return np.random.default_rng(request.param)


@pytest.fixture(params=["plain", "no CTF", "isotropic", "astigmatic"])
def kind(request):
    return request.param


@pytest.fixture
def make_blocks(kind):
    """Blocks of a noisy curve seen through random CTFs, their features y and their CTF (n, P)."""

    def make(rng, n=60, block_size=16, dtype=np.float64, noise=0.3):
        layout = layout_of(kind)
        position = rng.uniform(-1, 1, n)
        frequency = np.linspace(0.5, 3.0, layout.n_features)
        clean = np.sin(frequency * position[:, None] * 2 + np.arange(layout.n_features))
        ctf = None if kind in ("plain", "no CTF") else rng.uniform(-1, 1, (n, layout.n_norms)).astype(dtype)
        full = np.ones((n, layout.n_features)) if ctf is None else ctf[:, layout.norm_index]
        y = (full * clean + noise * rng.standard_normal(clean.shape)).astype(dtype)
        return ArrayBlocks(y, ctf=ctf, layout=layout, block_size=block_size), y, full

    return make
