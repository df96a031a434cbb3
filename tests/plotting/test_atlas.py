import numpy as np
import pytest

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.plotting import plot_manifold_atlas
from sklearn_cryoem.plotting.atlas import grid_cells, particle_density


def nodes_of(shape):
    """Regular grid over [-1, 1] in as many dimensions as `shape` is long."""
    grids = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return np.stack([grid.ravel() for grid in grids], axis=1)


def averages_of(n_nodes, box=9):
    return np.random.default_rng(0).normal(size=(n_nodes, box, box))


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4), (1, 5)])
def test_cells_are_found_whatever_the_order_of_the_nodes(shape, rng):
    nodes = nodes_of(shape)
    order = rng.permutation(len(nodes))
    cells, axes = grid_cells(nodes[order], len(nodes))
    assert tuple(map(len, axes)) == shape
    expected = np.stack(np.unravel_index(order, shape), axis=1)
    np.testing.assert_array_equal(cells, expected)


@pytest.mark.parametrize("shape", [(6,), (5, 4), (4, 3, 2)])
def test_density_counts_every_particle_once(shape, rng):
    positions = rng.uniform(-1, 6, size=(500, len(shape)))  # some of them beyond the rim
    density = particle_density(positions, None, shape)
    per_node = 8 ** min(len(shape), 2)
    assert density.sum() / per_node == pytest.approx(500)


def test_a_crowd_on_one_node_is_densest_there():
    density = particle_density(np.tile([3.0, 1.0], (50, 1)), None, (5, 4))
    x, y = np.unravel_index(density.argmax(), density.shape)
    assert abs((x + 0.5) / 8 - 0.5 - 3) < 0.2 and abs((y + 0.5) / 8 - 0.5 - 1) < 0.2


def test_first_coordinate_runs_right_and_second_up():
    averages = np.zeros((4, 32, 32))
    bright = nodes_of((2, 2)).tolist().index([1.0, -1.0])
    averages[bright] = np.linspace(0, 1, 32 * 32).reshape(32, 32)
    counts = np.zeros(4)
    counts[bright] = 1
    picture = plot_manifold_atlas(averages, nodes_of((2, 2)), counts=counts).images[-1].get_array()
    alpha = picture[..., 3]
    half = len(alpha) // 2
    assert alpha[half:, half:].sum() > 0  # below, to the right
    assert alpha[:half].sum() == 0 and alpha[:, :half].sum() == 0


@pytest.mark.parametrize("shape", [(5,), (40,), (4, 3), (3, 2, 4)])
@pytest.mark.parametrize("crowd", ["positions", "counts", "none"])
def test_every_dimension_is_drawn_with_and_without_a_crowd(shape, crowd, tmp_path):
    n_nodes = int(np.prod(shape))
    positions = np.random.default_rng(1).uniform(-1, 1, size=(200, len(shape)))
    extra = {
        "positions": {"latent_positions": positions},
        "counts": {"counts": np.arange(n_nodes)},
        "none": {},
    }
    ax = plot_manifold_atlas(averages_of(n_nodes), nodes_of(shape), **extra[crowd])
    ax.figure.savefig(tmp_path / "atlas.png", dpi=40)
    assert ax.get_title() == f"{' × '.join(map(str, shape))} classes on a {len(shape)}-D manifold"


def test_classes_without_a_particle_are_dots():
    ax = plot_manifold_atlas(averages_of(4), nodes_of((2, 2)), counts=[3, 0, 0, 1])
    assert sum(len(line.get_xdata()) for line in ax.lines) == 2


@pytest.mark.parametrize(
    ("nodes", "positions", "remedy"),
    [
        (nodes_of((2, 3)), None, "same estimator"),
        (nodes_of((2, 2, 1, 1)), None, "same estimator"),
        (np.array([[0, 0], [0, 1], [1, 0], [0.5, 0.5]]), None, "plot_class_averages instead"),
        (nodes_of((2, 2)), np.zeros((5, 3)), r"Pass `estimator.transform\(X\)`"),
    ],
)
def test_arrays_that_do_not_fit_are_named(nodes, positions, remedy):
    with pytest.raises(ParticleDataError, match=remedy):
        plot_manifold_atlas(averages_of(4), nodes, latent_positions=positions)
