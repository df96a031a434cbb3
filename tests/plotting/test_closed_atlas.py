"""Atlases of rings, tori and spheres."""

import numpy as np
import pytest

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.manifold.topology import TOPOLOGIES
from sklearn_cryoem.plotting import plot_manifold_atlas
from sklearn_cryoem.plotting._closed import from_hemisphere, hemisphere_map, sphere_density
from sklearn_cryoem.plotting.atlas import particle_density


def averages_of(n_nodes, box=9):
    return np.random.default_rng(0).normal(size=(n_nodes, box, box))


@pytest.mark.parametrize(
    ("topology", "shape", "words"),
    [
        ("ring", (9,), "9 classes on a ring"),
        ("ring", (60,), "60 classes on a ring: the last is next to the first"),
        ("ring", (1,), "1 classes on a ring"),
        ("torus", (5, 4), "5 × 4 classes on a torus: opposite edges meet"),
        ("torus", (3, 2, 2), "3 × 2 × 2 classes on a torus: opposite edges meet"),
        ("sphere", (30,), "30 classes on a sphere"),
    ],
)
@pytest.mark.parametrize("crowd", ["positions", "counts", "none"])
def test_every_shape_is_drawn_with_and_without_a_crowd(topology, shape, words, crowd, rng, tmp_path):
    nodes = TOPOLOGIES[topology].points(shape)
    crowds = {
        "positions": {"latent_positions": nodes[rng.integers(len(nodes), size=100)]},
        "counts": {"counts": np.arange(1, len(nodes) + 1)},
        "none": {},
    }
    ax = plot_manifold_atlas(averages_of(len(nodes)), nodes, topology=topology, **crowds[crowd])
    ax.figure.savefig(tmp_path / "atlas.png", dpi=40)
    assert ax.get_title() == words


def test_a_crowd_at_the_seam_of_a_ring_is_drawn_on_both_sides_of_it():
    at_seam = np.full((50, 1), -0.5)  # half a node before the first is half a node after the last
    open_ends, closed = (particle_density(at_seam, None, (8,), is_closed=closed) for closed in (False, True))
    assert closed[0] == pytest.approx(closed[-1], rel=0.1)
    assert open_ends[-1] == 0 < open_ends[0]
    assert closed.sum() == pytest.approx(50 * 8)
    round_again = particle_density(at_seam + 8, None, (8,), is_closed=True)
    np.testing.assert_allclose(round_again, closed)


def test_first_node_of_a_ring_lies_to_the_left_and_the_middle_one_to_the_right():
    nodes = TOPOLOGIES["ring"].points((8,))
    counts = np.zeros(8)
    for node, side in ((0, -1), (4, 1)):
        counts[:] = 0
        counts[node] = 5
        ax = plot_manifold_atlas(averages_of(8), nodes, topology="ring", counts=counts)
        left, right, bottom, top = ax.images[0].get_extent()
        assert len(ax.images) == 1 and np.sign(left + right) == side and bottom + top == pytest.approx(0)


@pytest.mark.parametrize("north", [True, False])
def test_hemispheres_map_there_and_back_with_equal_areas(north, rng):
    points = TOPOLOGIES["sphere"].points((4000,))
    own = points[(points[:, 2] > 0) == north]
    x, y = hemisphere_map(own, north)
    assert np.hypot(x, y).max() <= np.sqrt(2) + 1e-9
    np.testing.assert_allclose(from_hemisphere(x, y, north), own, atol=1e-9)
    inner = np.hypot(x, y) < 1.0  # half of the area
    assert inner.mean() == pytest.approx(0.5, abs=0.01)


def test_the_hemispheres_touch_at_plus_x_and_are_seen_from_outside():
    plus_x = np.array([[1.0, 0.0, 0.0]])
    assert hemisphere_map(plus_x, True)[0] > 1.4 and hemisphere_map(plus_x, False)[0] < -1.4
    plus_y = np.array([[0.0, 1.0, 0.0]])
    assert hemisphere_map(plus_y, True)[1] > 1.4 and hemisphere_map(plus_y, False)[1] > 1.4


def test_density_on_a_sphere_counts_every_particle_once(rng):
    positions = rng.standard_normal((3000, 3))
    positions /= np.linalg.norm(positions, axis=1, keepdims=True)
    everywhere = TOPOLOGIES["sphere"].points((5000,))
    density = sphere_density(positions, None, everywhere, 50, 0.4)
    assert density.mean() * 50 == pytest.approx(3000, rel=0.03)
    assert density.std() < 0.5 * density.mean()
    one = sphere_density(positions[:1], np.array([7.0]), everywhere, 50, 0.4)
    assert np.linalg.norm(everywhere[one.argmax()] - positions[0]) < 0.2
    assert one.mean() * 50 == pytest.approx(7, rel=0.05)


@pytest.mark.parametrize(
    ("topology", "changes", "remedy"),
    [
        ("disc", {}, "Pass `estimator.topology`"),
        ("sphere", {"latent_nodes": np.zeros((20, 2))}, "expected unit vectors"),
        ("sphere", {"latent_nodes": np.ones((20, 3))}, "expected unit vectors"),
        ("sphere", {"latent_positions": np.zeros((5, 3))}, "latent_positions .* expected unit vectors"),
        ("torus", {"latent_nodes": TOPOLOGIES["sphere"].points((20,))}, "not a regular grid"),
    ],
)
def test_arrays_that_do_not_fit_are_named(topology, changes, remedy):
    nodes = changes.pop("latent_nodes", TOPOLOGIES["sphere"].points((20,)))
    with pytest.raises(ParticleDataError, match=remedy):
        plot_manifold_atlas(averages_of(20), nodes, topology=topology, **changes)
