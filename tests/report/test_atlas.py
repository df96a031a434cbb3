import numpy as np
import pytest

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.manifold.topology import TOPOLOGIES
from sklearn_cryoem.report.atlas import density_picture, flat_map, maps_side_by_side


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
    flat = flat_map(nodes, topology)
    np.testing.assert_allclose(nearest(flat.xy), 1.0, atol=0.03)  # on a circle the chord is shorter
    np.testing.assert_allclose(flat.place(nodes), flat.xy, atol=1e-6)
    inside = [
        (flat.xy[:, 0] >= x) & (flat.xy[:, 0] <= x + w) & (flat.xy[:, 1] >= y) & (flat.xy[:, 1] <= y + h)
        for x, y, w, h, _ in flat.panels
    ]
    assert (np.sum(inside, axis=0) == 1).all()


def test_the_second_coordinate_goes_up_and_the_first_to_the_right():
    flat = flat_map([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    np.testing.assert_allclose(flat.xy, [[0, 1], [0, 0], [1, 1], [1, 0]])


def test_on_a_torus_the_far_end_is_the_near_one():
    flat = flat_map(TOPOLOGIES["torus"].points((4, 4)), "torus")
    np.testing.assert_allclose(flat.place([[0.999, 0.0]])[0, 0], 0.0, atol=0.01)
    assert flat_map(TOPOLOGIES["grid"].points((4, 4))).place([[7.0, 0.0]])[0, 0] == 3.5


def test_a_sphere_is_a_map_of_equal_areas(rng):
    flat = flat_map(TOPOLOGIES["sphere"].points((400,)))
    directions = rng.normal(size=(40_000, 3))
    where = flat.place(directions / np.linalg.norm(directions, axis=1, keepdims=True))
    x, y, width, height, _ = flat.panels[0]
    counts, *_ = np.histogram2d(
        *where.T, bins=8, range=[(x + width * 0.3, x + width * 0.7), (y + height * 0.3, y + height * 0.7)]
    )
    assert counts.std() / counts.mean() < 0.12
    assert 0.75 < np.median(nearest(flat.xy)) < 1.1  # areas are kept, shapes are not


def test_scattered_nodes_keep_their_shape(rng):
    nodes = rng.uniform(size=(30, 2))
    flat = flat_map(nodes)
    between = np.linalg.norm(flat.xy[0] - flat.xy[1]) / np.linalg.norm(nodes[0] - nodes[1])
    np.testing.assert_allclose(nearest(flat.xy), nearest(nodes) * between)
    assert flat_map(rng.normal(size=(30, 3))).xy.shape == (30, 2)


def test_the_density_counts_particles_per_node():
    flat = flat_map(TOPOLOGIES["grid"].points((6, 6)))
    even = np.random.default_rng(0).uniform(-0.5, 5.5, size=(36 * 500, 2))
    assert density_picture(even, None, flat.panels)["peak"] == pytest.approx(500, rel=0.15)
    sizes = density_picture(flat.xy, np.full(36, 500), flat.panels)
    assert sizes["peak"] == pytest.approx(500, rel=0.15)
    assert (sizes["width"], sizes["height"]) == (6, 6)


def test_maps_side_by_side_do_not_overlap():
    maps = [flat_map(TOPOLOGIES["grid"].points((2, n))) for n in (2, 5, 3, 4)]
    whole = maps_side_by_side(maps, list("abcd"))
    assert [panel[4] for panel in whole.panels] == list("abcd")
    assert nearest(whole.xy).min() >= 1.0 - 1e-6 and len(whole.xy) == 28


def test_a_latent_space_of_four_dimensions_is_refused():
    with pytest.raises(ParticleDataError, match=r"expected \(n_classes, 1 to 3\). Pass `latent_nodes_`"):
        flat_map(np.zeros((5, 4)))
