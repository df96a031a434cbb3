import numpy as np
import pytest

from sklearn_cryoem.manifold.classes import class_averages, information_share, map_posterior, mean_positions
from sklearn_cryoem.manifold.expectation import Matcher, Posterior, sweep
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.state import Manifold


def setting(make_blocks, rng):
    blocks, y, ctf = make_blocks(rng, n=61)
    layout = blocks.layout
    variance = rng.uniform(0.3, 2.0, layout.n_shells)
    matcher = Matcher.of(rng.standard_normal((5, layout.n_features)), variance, layout, dtype=np.float64)
    weights = np.concatenate(
        list(map_posterior(lambda posterior: posterior.responsibilities, blocks, matcher))
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


def test_images_claim_no_more_than_the_other_half_says_of_their_labels(make_blocks, rng):
    blocks, y, ctf = make_blocks(rng, n=60, noise=1.0)
    layout, basis = blocks.layout, LatentBasis((7,), (4,), 0.75)
    variance, alpha = np.ones(layout.n_shells), np.full(layout.n_shells, 0.5)

    def templates(weights, rows):
        penalty = np.diag(0.5 / layout.information * np.append(np.ones(basis.phi.shape[1] - 1), 0.0))
        over, under = weights[rows].T @ (ctf * y)[rows], weights[rows].T @ (ctf**2)[rows]
        return np.stack(
            [
                np.linalg.solve(basis.phi.T @ (g[:, None] * basis.phi) + penalty, basis.phi.T @ b)
                for g, b in zip(under.T, over.T, strict=True)
            ],
            axis=1,
        )

    def posterior(weights, share=1.0):
        mu = basis.phi @ weights
        joint = layout.information * ((ctf * y) @ mu.T - 0.5 * ctf**2 @ (mu**2).T) * share
        joint = np.exp(joint - joint.max(axis=1, keepdims=True))
        return joint / joint.sum(axis=1, keepdims=True)

    everyone = slice(None)
    manifold = Manifold(basis, templates(rng.dirichlet(np.ones(7), 60), everyone), variance, alpha)
    for _ in range(5):
        manifold = Manifold(basis, templates(posterior(manifold.weights), everyone), variance, alpha)
    found = posterior(manifold.weights)
    labels, halves = found.argmax(axis=1), (slice(0, None, 2), slice(1, None, 2))
    borne_out = np.concatenate(
        [posterior(templates(found, halves[1 - half]))[halves[half]][np.arange(30), labels[halves[half]]]
         for half in (0, 1)]
    )  # fmt: skip
    statistics = sweep(blocks, [manifold.matcher(layout, dtype=np.float64)], "halves")
    share = information_share(blocks, manifold, statistics, dtype=np.float64)
    assert 1 / 64 < share < 1
    assert posterior(manifold.weights, share).max(axis=1).mean() == pytest.approx(borne_out.mean(), abs=2e-3)


def test_mean_positions_are_means_over_the_posterior():
    nodes = np.array([[-1.0, 0.0], [1.0, 2.0]])
    posterior = Posterior(np.array([[0.25, 0.75], [0.9, 0.1]], dtype=np.float32), np.zeros(2))
    np.testing.assert_allclose(mean_positions(posterior, nodes), [[0.5, 1.5], [-0.8, 0.2]], atol=1e-6)
