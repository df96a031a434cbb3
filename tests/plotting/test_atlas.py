"""The manifold atlas: every topology and dimension, with the density of particles behind."""

import numpy as np
import pytest

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.manifold.topology import TOPOLOGIES
from sklearn_cryoem.plotting import plot_manifold_atlas


def averages_of(n_nodes, box=9):
    return np.random.default_rng(0).normal(size=(n_nodes, box, box))


@pytest.mark.parametrize(
    ("topology", "shape", "words"),
    [
        ("grid", (5,), "5 classes on a 1-D manifold"),
        ("grid", (40,), "40 classes on a 1-D manifold"),
        ("grid", (4, 3), "4 × 3 classes on a 2-D manifold"),
        ("grid", (3, 2, 4), "3 × 2 × 4 classes on a 3-D manifold"),
        ("ring", (9,), "9 classes on a ring"),
        ("ring", (60,), "60 classes on a ring"),
        ("ring", (1,), "1 classes on a ring"),
        ("torus", (5, 4), "5 × 4 classes on a torus: opposite edges meet"),
        ("torus", (3, 2, 2), "3 × 2 × 2 classes on a torus: opposite edges meet"),
        ("sphere", (30,), "30 classes on a sphere"),
    ],
)
def test_every_shape_is_drawn_with_and_without_particles(topology, shape, words, tmp_path):
    nodes = TOPOLOGIES[topology].points(shape)
    positions = nodes[np.random.default_rng(1).integers(len(nodes), size=100)]
    given = {"latent_nodes": nodes, "topology": topology}
    for behind in ({"latent_positions": positions}, {"counts": np.arange(1, len(nodes) + 1)}, {}):
        ax = plot_manifold_atlas(averages_of(len(nodes)), **given, **behind).axes[0]
        assert ax.get_title() == words and len(ax.images) == 1 + bool(behind)
    ax.figure.savefig(tmp_path / "atlas.png", dpi=40)


def test_first_coordinate_runs_right_and_second_up():
    nodes = TOPOLOGIES["grid"].points((2, 2))
    counts = (nodes[:, 0] > 0) & (nodes[:, 1] < 0)
    averages = np.tile(np.linspace(0, 1, 32 * 32).reshape(32, 32), (4, 1, 1))
    ax = plot_manifold_atlas(averages, latent_nodes=nodes, counts=counts).axes[0]
    alpha = ax.images[-1].get_array()[..., 3]
    half = len(alpha) // 2
    assert alpha[half:, half:].sum() > 0  # below, to the right
    assert alpha[: half - 1].sum() == 0 and alpha[:, : half - 1].sum() == 0


def test_discs_are_opaque_in_the_middle_and_clear_at_the_corners():
    nodes = TOPOLOGIES["grid"].points((1, 1))
    picture = plot_manifold_atlas(averages_of(1, 33), latent_nodes=nodes).axes[0].images[-1].get_array()
    middle = len(picture) // 2
    assert picture[middle, middle, 3] == 1.0 and picture[3, 3, 3] == 0.0


def test_classes_without_a_particle_are_dots():
    nodes = TOPOLOGIES["grid"].points((2, 2))
    ax = plot_manifold_atlas(averages_of(4), latent_nodes=nodes, counts=[3, 0, 0, 1]).axes[0]
    assert sum(len(line.get_xdata()) for line in ax.lines) == 2


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"latent_nodes": np.zeros((6, 2))}, "of one fit"),
        ({"latent_nodes": None}, "Pass a fitted SMLClusterer"),
        ({"latent_nodes": np.zeros((20, 4))}, "Pass `latent_nodes_`"),
        ({"latent_positions": np.zeros((5, 2))}, r"Pass `estimator.transform\(stack\)`"),
        ({"topology": "disc"}, "Pass `estimator.topology`"),
        ({"latent_nodes": np.ones((20, 3))}, "expected unit vectors"),
    ],
)
def test_arrays_that_do_not_fit_are_named(changes, remedy):
    usual = {"latent_nodes": TOPOLOGIES["sphere"].points((20,)), "topology": "sphere"}
    with pytest.raises(ParticleDataError, match=remedy):
        plot_manifold_atlas(averages_of(20), **{**usual, **changes})
