import numpy as np
import pytest

from sklearn_cryoem.manifold import systems
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.systems import conjugate_gradients, solve_systems

SMALL, LARGE = LatentBasis((6, 5), (4, 3), 0.75), LatentBasis((12, 10), (9, 8), 0.75)


def setting(rng, n_systems=30, spread=1.0, basis=SMALL):
    """Systems as CTFs make them: every node has a few images, each seen through its own CTF."""
    phi = basis.phi
    images = rng.poisson(5.0, len(phi))
    gram = np.stack([(rng.uniform(1 - spread, 1, (n, n_systems)) ** 2).sum(axis=0) for n in images])
    column = np.repeat(np.arange(n_systems), 2)
    return phi, gram, rng.standard_normal((phi.shape[1], len(column))), column


def naive(phi, gram, ridge, right, column):
    prior = ridge * np.diag(np.append(np.ones(phi.shape[1] - 1), 0.0))
    pairs = [
        np.linalg.solve(phi.T * gram[:, q] @ phi + prior, right[:, i]) for i, q in enumerate(column)
    ]  # fmt: skip
    return np.stack(pairs, axis=1)


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
def test_both_ways_are_the_plain_solution(rng, ridge, spread):
    phi, gram, right, column = setting(rng, spread=spread)
    expected = naive(phi, gram, ridge, right, column)
    scale = np.abs(expected).max()
    together = conjugate_gradients(phi, gram, ridge, right, column)
    one_by_one = systems._one_by_one(phi, gram, ridge, right, column)
    np.testing.assert_allclose(together, expected, atol=1e-7 * scale)
    np.testing.assert_allclose(one_by_one.weights, expected, atol=1e-7 * scale)
    assert one_by_one.n_singular == 0


def test_the_cheaper_way_is_taken(rng, monkeypatch):
    calls = []
    monkeypatch.setattr(
        systems, "conjugate_gradients", lambda *given: calls.append(given) or conjugate_gradients(*given)
    )
    for n_systems, expected in ((1, 0), (3, 0), (200, 1)):
        calls.clear()
        phi, gram, right, column = setting(rng, n_systems, basis=LARGE)
        if n_systems == 3:  # a shell without astigmatism: few systems of many features
            column = np.repeat(np.arange(3), 40)
            right = rng.standard_normal((phi.shape[1], 120))
        solution = solve_systems(phi, gram, 0.5, right, column)
        assert len(calls) == expected
        np.testing.assert_allclose(solution.weights, naive(phi, gram, 0.5, right, column), atol=1e-8)


def test_nodes_without_images_and_right_sides_of_zero_are_solved_together(rng):
    phi, gram, right, column = setting(rng, 200)
    gram[::2] = 0.0
    right[:, 4:7] = 0.0
    solution = solve_systems(phi, gram, 0.5, right, column)
    np.testing.assert_allclose(solution.weights, naive(phi, gram, 0.5, right, column), atol=1e-9)


def test_singular_systems_are_solved_one_by_one(rng):
    phi, gram, right, column = setting(rng, 200)
    gram[3:] = 0.0  # three nodes with images, thirteen functions, no prior
    assert conjugate_gradients(phi, gram, 0.0, right, column) is None
    solution = solve_systems(phi, gram, 0.0, phi.T @ (gram[:, column] * 1.0), column)
    assert solution.n_singular > 0 and np.isfinite(solution.weights).all()
    np.testing.assert_allclose((phi @ solution.weights)[:3], 1.0, atol=1e-4)


def test_systems_that_have_nothing_in_common_are_left_to_the_direct_way(rng):
    phi, gram, right, column = setting(rng, 200)
    gram *= 10.0 ** rng.uniform(-9, 9, gram.shape)
    assert conjugate_gradients(phi, gram, 1e-6, right, column) is None
    solution = solve_systems(phi, gram, 1e-6, right, column)
    residual = phi.T @ (gram[:, column] * (phi @ solution.weights)) - right
    assert np.isfinite(residual).all()
