import numpy as np
import pytest

from sklearn_cryoem.manifold.blocks import ArrayBlocks, FeatureLayout
from sklearn_cryoem.manifold.classes import class_averages, hold_out, map_posterior, mean_positions
from sklearn_cryoem.manifold.derived_blocks import ShellNorms
from sklearn_cryoem.manifold.expectation import Matcher, Posterior, sweep
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.state import Manifold


def setting(make_blocks, rng):
    blocks, y, ctf = make_blocks(rng, n=61)
    layout = blocks.layout
    variance = rng.uniform(0.3, 2.0, layout.n_shells)
    matcher = Matcher.of(rng.standard_normal((5, layout.n_features)), variance, layout, dtype=np.float64)
    weights = np.concatenate(
        list(map_posterior(lambda posterior: posterior.responsibilities, blocks, [matcher]))
    )
    return blocks, y, ctf, matcher, weights


def test_class_averages_are_wiener_filters_of_their_images(make_blocks, rng):
    blocks, y, ctf, matcher, weights = setting(make_blocks, rng)
    layout = blocks.layout
    halves = sweep(blocks, [matcher], "halves")
    ridge = rng.uniform(0.5, 2.0, layout.n_shells)
    for half, rows in ((None, slice(None)), (0, slice(0, None, 2)), (1, slice(1, None, 2))):
        over = weights[rows].T @ (ctf * y)[rows]
        under = weights[rows].T @ (ctf**2)[rows] + ridge[layout.shell]
        np.testing.assert_allclose(class_averages(halves, ridge, layout, half), over / under, atol=1e-10)


def test_a_class_without_images_averages_to_zero(make_blocks, rng):
    blocks, _, _, matcher, _ = setting(make_blocks, rng)
    empty = sweep(blocks, [matcher], "halves").scaled(0.0)
    averages = class_averages(empty, np.zeros(blocks.layout.n_shells), blocks.layout)
    np.testing.assert_array_equal(averages, np.zeros_like(averages))


@pytest.mark.parametrize("has_signal", [True, False])
def test_templates_of_a_fold_are_made_of_all_others_and_have_a_variance(make_blocks, rng, has_signal):
    blocks = ShellNorms(make_blocks(rng, n=60, noise=1.0, block_size=60)[0])
    layout, basis = blocks.layout, LatentBasis((7,), (4,), 0.75)
    variance, alpha = rng.uniform(0.5, 2.0, layout.n_shells), np.full(layout.n_shells, 0.5)
    manifold = Manifold(basis, rng.standard_normal((5, layout.n_features)), variance, alpha)
    block = blocks.load(0, layout.n_shells)
    shares = manifold.matcher(layout, dtype=np.float64).posterior(block).responsibilities
    found = hold_out(blocks, manifold, 3, has_signal, dtype=np.float64)
    ridge = 0.5 * variance / layout.information * np.array([1.0] * 4 + [0.0])[:, None]  # (5, S)

    norm = block.norm  # (n, S)

    def systems(rows):
        gram = shares[rows].T @ norm[rows]  # (K, S)
        return np.einsum("km,ks,kn->smn", basis.phi, gram, basis.phi) + np.stack([*map(np.diag, ridge.T)])

    if has_signal:
        for fold in range(3):
            rows = block.folds(3) != fold
            right = basis.phi.T @ (shares[rows].T @ block.data[rows])  # (5, P)
            matrix = systems(rows)[layout.shell]  # (P, 5, 5)
            wanted = np.linalg.solve(matrix, right.T[:, :, None])[:, :, 0].T
            np.testing.assert_allclose(found.weights[fold], wanted, rtol=1e-4, atol=1e-5)
        inverse = np.linalg.inv(systems(slice(None)))
        spread = np.einsum("km,smn,kn->ks", basis.phi, inverse, basis.phi) * variance / layout.information
        np.testing.assert_allclose(found.spread, spread * norm.mean(axis=0), rtol=1e-6)
    else:
        posterior = found.matchers(manifold, layout, np.float64)[0].posterior(block).responsibilities
        np.testing.assert_allclose(posterior, 1 / 7, atol=1e-4)


def test_mean_positions_are_means_over_the_posterior():
    nodes = np.array([[-1.0, 0.0], [1.0, 2.0]])
    posterior = Posterior(np.array([[0.25, 0.75], [0.9, 0.1]], dtype=np.float32), np.zeros(2))
    np.testing.assert_allclose(mean_positions(posterior, nodes), [[0.5, 1.5], [-0.8, 0.2]], atol=1e-6)


def test_a_fold_that_holds_all_images_is_compared_with_the_templates_of_all(rng):
    """Copies of one image share a fold, and there are no others."""
    shell = np.repeat([0, 1], [4, 8])
    layout, basis = FeatureLayout(shell, shell), LatentBasis((3,), (2,), 0.75)
    blocks = ShellNorms(ArrayBlocks(np.tile(rng.standard_normal(12), (40, 1)), layout=layout))
    manifold = Manifold(basis, rng.standard_normal((3, 12)), np.ones(2), np.ones(2))
    found = hold_out(blocks, manifold, 4, True, dtype=np.float64)
    assert blocks.load(0, 2).folds(4).std() == 0
    np.testing.assert_array_equal(found.weights, np.broadcast_to(found.weights[0], found.weights.shape))
    assert np.abs(found.weights).max() > 0.1
