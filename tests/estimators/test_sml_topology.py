"""Rings, tori and spheres through SMLClusterer: the shape of the data comes back."""

import numpy as np
import pytest
from sklearn.base import clone

from sklearn_cryoem import SMLClusterer, load_model, save_model
from sklearn_cryoem.datasets import aligned_to_truth, make_particles


def shaped(name, rng, n=800, n_features=8):
    """Vectors on a ring, torus or sphere with noise, and their true coordinates."""
    angle = rng.uniform(-np.pi, np.pi, (n, 1 if name == "ring" else 2))
    if name == "sphere":
        truth = rng.standard_normal((n, 3))
        truth = flat = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    else:
        truth = angle
        # circles of different size, so that it is told which is the first
        flat = np.hstack(
            [
                np.hstack([np.cos(a), np.sin(a)]) * r
                for a, r in zip(angle.T[..., None], (1.5, 1), strict=False)
            ]
        )
    frame = np.linalg.qr(rng.standard_normal((n_features, n_features)))[0]
    return flat @ frame[: flat.shape[1]] + 0.1 * rng.standard_normal((n, n_features)) + 3.0, truth


def circular_error(latent, angle):
    """Median difference of two circular coordinates in radians, after the best shift and reflection."""
    best = np.inf
    for sign in (1, -1):
        difference = np.pi * latent - sign * angle
        centre = np.angle(np.exp(1j * difference).mean())
        best = min(best, np.median(np.abs(np.angle(np.exp(1j * (difference - centre))))))
    return best


def test_a_ring_is_laid_out_round_it(rng):
    X, truth = shaped("ring", rng)
    model = SMLClusterer(24, topology="ring").fit(X)
    latent = model.transform(X)
    assert latent.shape == (800, 1) and -1 <= latent.min() and latent.max() < 1
    assert circular_error(latent[:, 0], truth[:, 0]) < 0.1
    assert model.grid_shape_ == (24,) and len(model.node_pairs_) == 24


def test_a_torus_has_two_periodic_coordinates(rng):
    X, truth = shaped("torus", rng)
    model = SMLClusterer((12, 12), topology="torus").fit(X)
    latent = model.transform(X)
    assert latent.shape == (800, 2)
    assert circular_error(latent[:, 0], truth[:, 0]) < 0.15
    assert circular_error(latent[:, 1], truth[:, 1]) < 0.2


def test_a_sphere_gives_directions(rng):
    X, truth = shaped("sphere", rng)
    model = SMLClusterer(120, topology="sphere").fit(X)
    latent = model.transform(X)
    np.testing.assert_allclose(np.linalg.norm(latent, axis=1), 1.0)
    u, _, vt = np.linalg.svd(latent.T @ truth)  # the rotation or reflection that fits best
    cosine = np.einsum("ij,ij->i", latent @ (u @ vt), truth)
    assert np.degrees(np.arccos(np.median(cosine))) < 10
    assert model.latent_nodes_.shape == (120, 3) and len(model.get_feature_names_out()) == 3
    nodes = model.inverse_transform(7.0 * model.latent_nodes_)  # length does not matter
    np.testing.assert_allclose(nodes, model.cluster_centers_)


@pytest.mark.parametrize("topology", ["ring", "sphere"])
def test_random_starts_describe_the_data_too(topology, rng):
    X, _ = shaped(topology, rng)
    model = SMLClusterer(64, topology=topology, init="random", random_state=0).fit(X)
    assert model.noise_variance_[0] < 0.1 * X.var(axis=0).sum() and model.converged_


def test_held_out_likelihood_prefers_the_shape_of_the_data(rng):
    X, _ = shaped("ring", rng)
    candidates = [
        {"n_components": 1},
        {},
        {"topology": "ring"},
        {"topology": "torus"},
        {"topology": "sphere"},
    ]
    scores = [SMLClusterer(36, n_basis=9, **c).fit(X[:500]).score(X[500:]) for c in candidates]
    assert np.argmax(scores) == 2, scores
    X, _ = shaped("sphere", rng)
    scores = [SMLClusterer(64, **c).fit(X[:500]).score(X[500:]) for c in candidates]
    assert np.argmax(scores) == 4, scores


def test_closed_shapes_are_periodic_for_new_positions_too(rng):
    X, _ = shaped("torus", rng, n=200)
    model = SMLClusterer((6, 5), topology="torus").fit(X)
    Z = rng.uniform(-1, 1, (10, 2))
    np.testing.assert_allclose(model.inverse_transform(Z + np.array([2, -4])), model.inverse_transform(Z))


@pytest.mark.parametrize("topology", ["ring", "torus", "sphere"])
def test_particles_on_every_shape_saved_and_cloned(topology, tmp_path):
    stack = aligned_to_truth(make_particles("ribosome", 200, box=24, snr=1.0, random_state=0))
    model = SMLClusterer(25, topology=topology).fit(stack)
    positions = model.transform(stack)
    assert model.n_effective_clusters_ > 8
    save_model(model, tmp_path / "model.npz")
    loaded = load_model(tmp_path / "model.npz")
    np.testing.assert_array_equal(loaded.transform(stack), positions)
    np.testing.assert_array_equal(loaded.predict(stack), model.labels_)
    assert clone(model).get_params()["topology"] == topology


def test_dimensions_that_are_left_out_follow_the_shape():
    X = np.random.default_rng(0).standard_normal((60, 5))
    shapes = {"grid": (4, 4), "ring": (16,), "torus": (4, 4), "sphere": (16,)}
    for topology, shape in shapes.items():
        assert SMLClusterer(16, topology=topology).fit(X).grid_shape_ == shape
    solid = SMLClusterer(27, topology="torus", n_components=3).fit(X)
    assert solid.grid_shape_ == (3, 3, 3) and solid.transform(X).shape == (60, 3)
    assert SMLClusterer(16, topology="sphere", n_basis=7).fit(X).weights_.shape == (8, 5)


@pytest.mark.parametrize(
    ("topology", "n_clusters"), [("ring", 3), ("torus", (3, 3)), ("sphere", 4), ("ring", 2)]
)
def test_the_fewest_nodes_are_still_told_apart(topology, n_clusters, rng):
    X, _ = shaped(topology, rng, n=200)
    basis = SMLClusterer(n_clusters, topology=topology).fit(X)._manifold.basis
    distance = np.linalg.norm(basis.phi[:, None] - basis.phi, axis=-1) + np.eye(len(basis.phi))
    assert distance.min() > 0.1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"topology": "disc"}, "'topology' of SMLClusterer must be one of 'grid', 'ring', 'torus', 'sphere'"),
        (
            {"topology": "ring", "n_components": 2},
            r"expected 1\. Leave n_components out, .*'grid' or 'torus'",
        ),
        ({"topology": "torus", "n_components": 1}, "expected 2 or 3.*'grid' or 'ring'"),
        ({"topology": "sphere", "n_components": 3}, "expected 2.*'grid' or 'torus'"),
        ({"topology": "sphere", "n_clusters": 3}, "make no sphere, expected at least 4. Ask for more"),
        ({"topology": "sphere", "n_clusters": (5, 5)}, "expected 1 side for topology='sphere'"),
        ({"topology": "ring", "n_clusters": (5, 5)}, "expected 1 side for topology='ring'. Change it"),
        ({"topology": "ring", "n_basis": 2}, "at least 3 along each side .*'ring'.*Raise n_basis"),
        ({"topology": "torus", "n_basis": 4}, "leaves 2 x 2 basis functions, expected at least 3"),
        ({"topology": "sphere", "n_basis": 3}, "at least 4 along each side"),
        ({"topology": "torus", "n_basis": (5,)}, "expected 2 sides for topology='torus'"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        SMLClusterer(**parameters).fit(np.zeros((10, 3)))


def test_positions_with_the_wrong_number_of_coordinates_are_refused(rng):
    model = SMLClusterer(20, topology="sphere").fit(shaped("sphere", rng, n=100)[0])
    with pytest.raises(ValueError, match=r"expected \(n, 3\)"):
        model.inverse_transform([[0.1, 0.2]])
