"""Flat maps of latent spaces, and the density of particles on them."""

import numpy as np
import pytest

from sklearn_cryoem.manifold.topology import TOPOLOGIES
from sklearn_cryoem.plotting.latent_map import density_of, latent_map


def nearest(xy):
    """Distance of each place to the next one."""
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    return apart.min(axis=1)


@pytest.mark.parametrize(
    ("topology", "shape"),
    [
        ("grid", (17,)),
        ("grid", (4, 6)),
        ("grid", (3, 4, 5)),
        ("ring", (12,)),
        ("ring", (90,)),
        ("torus", (4, 5)),
    ],
)
def test_neighbours_lie_one_unit_apart_inside_a_frame(topology, shape):
    nodes = TOPOLOGIES[topology].points(shape)
    flat = latent_map(nodes, topology)
    np.testing.assert_allclose(nearest(flat.xy), 1.0, atol=0.03)  # on a circle the chord is shorter
    np.testing.assert_allclose(flat.place(nodes), flat.xy, atol=1e-6)
    inside = [
        (flat.xy[:, 0] >= x) & (flat.xy[:, 0] <= x + w) & (flat.xy[:, 1] >= y) & (flat.xy[:, 1] <= y + h)
        for x, y, w, h, *_ in flat.panels
    ]
    assert (np.sum(inside, axis=0) == 1).all()


def test_the_second_coordinate_goes_up_and_the_first_to_the_right():
    flat = latent_map([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    np.testing.assert_allclose(flat.xy, [[0, 1], [0, 0], [1, 1], [1, 0]])


def test_on_a_torus_the_far_end_is_the_near_one():
    flat = latent_map(TOPOLOGIES["torus"].points((4, 4)), "torus")
    np.testing.assert_allclose(flat.place([[0.999, 0.0]])[0, 0], 0.0, atol=0.01)
    assert latent_map(TOPOLOGIES["grid"].points((4, 4))).place([[7.0, 0.0]])[0, 0] == 3.5


def test_hemispheres_have_equal_areas_touch_at_plus_x_and_are_seen_from_outside(rng):
    flat = latent_map(TOPOLOGIES["sphere"].points((400,)), "sphere")
    left, right = flat.panels
    middles = np.array([[panel.x + panel.width / 2, panel.y + panel.height / 2] for panel in flat.panels])
    radius = left.width / 2 - 0.5
    directions = rng.normal(size=(40_000, 3))
    where = flat.place(directions)
    distance = np.linalg.norm(where[:, None] - middles, axis=2).min(axis=1)
    assert distance.max() <= radius + 1e-6
    assert np.mean(distance < radius / np.sqrt(2)) == pytest.approx(0.5, abs=0.02)  # half of the area
    assert (where[:, 0] < 0).tolist() == (directions[:, 2] >= 0).tolist()
    plus_x = flat.place([[1.0, 0.0, 1e-9], [1.0, 0.0, -1e-9]])
    np.testing.assert_allclose(plus_x, [[-0.5, 0], [0.5, 0]], atol=1e-6)  # the rims of the two panels
    assert (flat.place([[0.0, 1.0, 0.5], [0.0, 1.0, -0.5]])[:, 1] < 0).all()  # +y is up in both
    assert 0.6 < np.median(nearest(flat.xy)) < 1.1  # areas are kept, shapes are not
    assert right.x == left.x + left.width


def test_the_first_node_of_a_ring_lies_to_the_left_and_the_middle_one_to_the_right():
    flat = latent_map(TOPOLOGIES["ring"].points((8,)), "ring")
    assert flat.xy[0, 0] < -1 and flat.xy[4, 0] > 1
    np.testing.assert_allclose(flat.xy[[0, 4], 1], 0, atol=1e-9)
    assert flat.place([[0.5]])[0, 1] < 0  # anticlockwise: up on the page


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4), (1, 5)])
def test_cells_are_found_whatever_the_order_of_the_nodes(shape, rng):
    nodes = TOPOLOGIES["grid"].points(shape)
    order = rng.permutation(len(nodes))
    np.testing.assert_allclose(latent_map(nodes[order]).xy, latent_map(nodes).xy[order], atol=1e-9)


def test_scattered_nodes_keep_their_shape(rng):
    nodes = rng.uniform(size=(30, 2))
    flat = latent_map(nodes)
    between = np.linalg.norm(flat.xy[0] - flat.xy[1]) / np.linalg.norm(nodes[0] - nodes[1])
    np.testing.assert_allclose(nearest(flat.xy), nearest(nodes) * between)
    assert latent_map(rng.normal(size=(30, 3))).xy.shape == (30, 2)


@pytest.mark.parametrize("shape", [(6,), (5, 4), (4, 3, 2)])
def test_density_counts_every_particle_once(shape, rng):
    nodes = TOPOLOGIES["grid"].points(shape)
    flat = latent_map(nodes)
    where = flat.place(rng.uniform(-1.3, 1.3, size=(500, len(shape))))  # some of them beyond the rim
    density = density_of(flat, where)
    left, top, right, bottom = flat.extent
    assert density.sum() * (right - left) * (bottom - top) / density.size == pytest.approx(500, rel=0.02)
    even = rng.uniform(-0.5, 0.5, size=(400, *flat.xy.shape)) + flat.xy
    even = even.reshape(-1, 2)
    assert np.median(density_of(flat, even)[density > 0]) == pytest.approx(400, rel=0.1)


def test_a_crowd_on_one_node_is_densest_there():
    flat = latent_map(TOPOLOGIES["grid"].points((5, 4)))
    density = density_of(flat, np.tile([3.0, 1.0], (50, 1)))
    y, x = np.unravel_index(density.argmax(), density.shape)
    assert abs((x + 0.5) / 7 - 0.5 - 3) < 0.2 and abs((y + 0.5) / 7 - 0.5 - 1) < 0.2


def test_a_crowd_at_the_seam_of_a_torus_is_drawn_on_both_sides_of_it():
    nodes = TOPOLOGIES["torus"].points((8, 6))
    at_seam = np.tile([-0.5, 2.0], (50, 1))
    closed, open_ends = (density_of(latent_map(nodes, topology), at_seam) for topology in ("torus", "grid"))
    assert closed[:, 0].max() == pytest.approx(closed[:, -1].max(), rel=0.2)
    assert open_ends[:, -1].max() == 0 < open_ends[:, 0].max()


def test_density_on_a_sphere_is_even_up_to_the_rims(rng):
    flat = latent_map(TOPOLOGIES["sphere"].points((50,)), "sphere")
    density = density_of(flat, flat.place(rng.normal(size=(50_000, 3))))
    inside = density > 0
    assert density[inside].mean() == pytest.approx(1000, rel=0.05)
    assert density[inside].std() < 0.15 * density.mean()
