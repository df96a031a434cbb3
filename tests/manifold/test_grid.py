import numpy as np
import pytest

from sklearn_cryoem.manifold.grid import LatentBasis, nearest_grid


@pytest.mark.parametrize(
    ("n_nodes", "n_components", "shape"),
    [
        (7, 1, (7,)), (1, 2, (1, 1)), (3, 2, (3, 1)), (9, 2, (3, 3)), (64, 2, (8, 8)), (100, 2, (10, 10)),
        (225, 2, (15, 15)), (300, 2, (18, 17)), (27, 3, (3, 3, 3)), (216, 3, (6, 6, 6)),
    ],
)  # fmt: skip
def test_the_nearest_grid_is_the_one_a_person_would_choose(n_nodes, n_components, shape):
    assert nearest_grid(n_nodes, n_components) == shape


@pytest.mark.parametrize("n_components", [1, 2, 3])
def test_the_nearest_grid_is_near_for_any_number(n_components):
    for n_nodes in range(10, 400, 13):
        shape = nearest_grid(n_nodes, n_components)
        assert abs(np.prod(shape) / n_nodes - 1) < 0.2, (n_nodes, shape)
        assert list(shape) == sorted(shape, reverse=True)


def test_basis_functions_are_gaussians_of_their_spacing_and_one_constant():
    basis = LatentBasis((5,), (3,), 0.5)
    # centres -1, 0, 1 with spacing 1: standard deviation 0.5, Eq. (2.3)
    expected = [np.exp(-0.5 * ((0.25 - centre) / 0.5) ** 2) for centre in (-1, 0, 1)]
    np.testing.assert_allclose(basis.at([[0.25]]), [[*expected, 1.0]])
    assert basis.phi.shape == (5, 4)
    np.testing.assert_array_equal(basis.phi, basis.at(basis.nodes))
    np.testing.assert_allclose(basis.mean_square, np.mean(np.sum(basis.phi[:, :3] ** 2, axis=1)))


def test_each_axis_of_the_basis_has_its_own_spacing():
    basis = LatentBasis((4, 4), (3, 5), 1.0)
    one_step = basis.at([[-1.0, -1.0], [0.0, -1.0], [-1.0, -0.5]])[:, 0]  # one spacing along either axis
    np.testing.assert_allclose(one_step, [1.0, np.exp(-0.5), np.exp(-0.5)])
