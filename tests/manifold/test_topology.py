import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sklearn_cryoem.manifold.blocks import ArrayBlocks
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.prior import measure_power
from sklearn_cryoem.manifold.state import pca_start, random_start
from sklearn_cryoem.manifold.topology import TOPOLOGIES

CLOSED = [("ring", (12,)), ("torus", (6, 4)), ("torus", (4, 3, 5)), ("sphere", (60,))]


def test_grids_span_the_cube_and_run_last_axis_fastest():
    points = TOPOLOGIES["grid"].points
    expected = [[-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]]
    np.testing.assert_array_equal(points((2, 3)), expected)
    np.testing.assert_array_equal(points((3, 1)), [[-1, 0], [0, 0], [1, 0]])


def test_a_ring_has_no_point_twice_and_even_steps_round_its_seam():
    points = TOPOLOGIES["ring"].points((5,))[:, 0]
    np.testing.assert_allclose(np.diff([*points, points[0] + 2]), 0.4)


def test_points_of_a_sphere_are_spread_evenly():
    sphere = TOPOLOGIES["sphere"]
    points = sphere.points((500,))
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1.0)
    distance = np.linalg.norm(points[:, None] - points, axis=-1) + 9 * np.eye(500)
    nearest = distance.min(axis=1) / sphere.spacing((500,))[0]
    assert 0.7 < nearest.min() and nearest.max() < 1.1  # of the side of a square of the same area
    np.testing.assert_allclose(points.T @ points / 500, np.eye(3) / 3, atol=0.01)


@pytest.mark.parametrize(("name", "shape"), [*CLOSED, ("grid", (3, 4))])
def test_positions_come_back_from_the_embedding(name, shape):
    space = TOPOLOGIES[name]
    points = space.points(shape)
    np.testing.assert_allclose(space.unembed(space.embed(points)), points, atol=1e-12)
    np.testing.assert_allclose(
        space.unembed(0.3 * space.embed(points)), (0.3 if name == "grid" else 1) * points
    )


def test_means_are_circular_and_those_of_directions():
    ring, sphere = TOPOLOGIES["ring"], TOPOLOGIES["sphere"]
    mean = ring.unembed(ring.embed(np.array([[0.9], [-0.9]])).mean(axis=0, keepdims=True))
    assert mean == pytest.approx(-1.0)  # where 1 and -1 meet, not 0 between them
    both = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    np.testing.assert_allclose(sphere.unembed(both.mean(axis=0, keepdims=True))[0], [0.5**0.5, 0.5**0.5, 0])
    np.testing.assert_array_equal(sphere.unembed(np.zeros((1, 3))), [[0, 0, 1]])  # no direction at all


@pytest.mark.parametrize("name", ["ring", "torus"])
def test_basis_functions_are_periodic_and_alike_everywhere(name, rng):
    shape = (9, 7)[: 1 if name == "ring" else 2]
    basis = LatentBasis(shape, shape, 0.75, name)
    positions = rng.uniform(-1, 1, (20, len(shape)))
    np.testing.assert_allclose(basis.at(positions + 2.0), basis.at(positions), atol=1e-12)
    profiles = np.sort(basis.phi[:, :-1], axis=1)  # every node sees the same, in another order
    np.testing.assert_allclose(profiles, np.tile(profiles[0], (len(profiles), 1)), atol=1e-12)


def test_widths_mean_the_same_as_on_a_grid():
    # a step between two centres takes a Gaussian down to exp(-1/2 / width^2), chord for arc
    expected = np.exp(-0.5 / 0.75**2)
    for name in ("grid", "ring"):
        basis = LatentBasis((40,), (40,), 0.75, name)
        assert basis.phi[10, 11] == pytest.approx(expected, rel=0.01), name
    sphere = LatentBasis((200,), (200,), 0.75, "sphere")
    step = np.array([[1, 0, 0], [np.cos(s := np.sqrt(4 * np.pi / 200)), np.sin(s), 0]]) @ np.eye(3)
    chord = np.linalg.norm(step[1] - step[0])
    turned = Rotation.align_vectors(sphere.nodes[:1], step[:1])[0].apply(step)
    assert sphere.at(turned)[1, 0] == pytest.approx(np.exp(-0.5 * (chord / (0.75 * s)) ** 2))
    assert sphere.mean_square == pytest.approx(LatentBasis((99, 99), (33, 33), 0.75).mean_square, rel=0.1)


@pytest.mark.parametrize(
    ("name", "shape", "n_pairs"),
    [
        ("grid", (4,), 3),
        ("grid", (3, 4), 17),
        ("ring", (5,), 5),
        ("torus", (4, 3), 24),
        ("sphere", (50,), 144),
    ],
)
def test_neighbours(name, shape, n_pairs):
    space = TOPOLOGIES[name]
    pairs = space.pairs(shape)
    assert pairs.shape == (n_pairs, 2) and (pairs[:, 0] < pairs[:, 1]).all()
    embedded = space.embed(space.points(shape))
    distance = np.linalg.norm(embedded[pairs[:, 0]] - embedded[pairs[:, 1]], axis=1)
    assert distance.max() < 2.1 * space.spacing(shape).max()


def test_two_points_on_a_ring_are_neighbours_once_and_one_has_none():
    np.testing.assert_array_equal(TOPOLOGIES["ring"].pairs((2,)), [[0, 1]])
    assert TOPOLOGIES["ring"].pairs((1,)).shape == (0, 2)


def turned_shape(name, rng, n=2000, n_features=9):
    """Vectors on a ring, torus or sphere of radii 3 and 2, in a random frame."""
    angle = rng.uniform(-np.pi, np.pi, (n, 2))
    circles = np.stack([np.cos(angle), np.sin(angle)], axis=-1)  # (n, 2, 2)
    sphere = rng.standard_normal((n, 3))
    flat = {
        "ring": 3 * circles[:, 0],
        "torus": np.hstack([3 * circles[:, 0], 2 * circles[:, 1]]),
        "sphere": 3 * sphere / np.linalg.norm(sphere, axis=1, keepdims=True),
    }[name]
    frame = np.linalg.qr(rng.standard_normal((n_features, n_features)))[0]
    return flat @ frame[: flat.shape[1]] + 5.0 + 0.05 * rng.standard_normal((n, n_features))


@pytest.mark.parametrize(("name", "shape"), [("ring", (16,)), ("torus", (10, 8)), ("sphere", (80,))])
def test_a_pca_start_lies_on_data_of_its_own_shape(name, shape, rng):
    blocks = ArrayBlocks(turned_shape(name, rng))
    basis = LatentBasis(shape, tuple(round(0.8 * side) for side in shape), 0.75, name)
    start = pca_start(blocks, basis, measure_power(blocks), 1, rng=rng)
    radius = np.linalg.norm(basis.phi @ start.weights - 5.0, axis=1)
    expected = {"ring": 3.0, "torus": 13**0.5, "sphere": 3.0}[name]
    np.testing.assert_allclose(radius, expected, rtol=0.1)
    assert 0 < start.noise_variance[0] < 9


@pytest.mark.parametrize(("name", "shape"), [*CLOSED, ("ring", (1,)), ("ring", (2,)), ("torus", (2, 1))])
def test_starts_are_finite_even_for_few_nodes_and_features(name, shape, rng):
    basis = LatentBasis(shape, shape, 0.75, name)
    for n_features in (1, 2, 6):
        blocks = ArrayBlocks(rng.standard_normal((40, n_features)))
        power = measure_power(blocks)
        for start in (
            pca_start(blocks, basis, power, 1, rng=rng),
            random_start(basis, power, blocks.layout, rng=rng),
        ):
            assert np.isfinite(start.weights).all() and np.abs(start.weights).max() < 100
            assert (start.noise_variance > 0).all()
