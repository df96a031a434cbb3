import numpy as np
import pytest

from sklearn_cryoem.manifold.classes import (
    class_statistics,
    information_share,
    latent_positions,
    map_posterior,
)
from sklearn_cryoem.manifold.expectation import Matcher, Posterior
from sklearn_cryoem.manifold.fit import Manifold
from sklearn_cryoem.manifold.grid import LatentBasis


def setting(make_blocks, rng):
    blocks, y, ctf = make_blocks(rng, n=61)
    layout = blocks.layout
    variance = rng.uniform(0.3, 2.0, layout.n_shells)
    matcher = Matcher.of(rng.standard_normal((5, layout.n_features)), variance, layout, dtype=np.float64)
    weights = np.concatenate(
        list(map_posterior(lambda posterior: posterior.responsibilities, blocks, matcher))
    )
    return blocks, y, ctf, matcher, weights


@pytest.mark.parametrize("hard", [False, True])
def test_class_averages_are_wiener_filters_of_their_images(make_blocks, rng, hard):
    blocks, y, ctf, matcher, weights = setting(make_blocks, rng)
    layout = blocks.layout
    statistics = class_statistics(blocks, matcher, hard=hard)
    np.testing.assert_array_equal(statistics.labels, weights.argmax(axis=1))
    np.testing.assert_allclose(statistics.node_mass, weights.sum(axis=0))
    used = np.eye(5)[weights.argmax(axis=1)] if hard else weights
    ridge = rng.uniform(0.5, 2.0, layout.n_shells)
    for half, rows in ((None, slice(None)), (0, slice(0, None, 2)), (1, slice(1, None, 2))):
        over = used[rows].T @ (ctf * y)[rows]
        under = used[rows].T @ (ctf**2)[rows] + ridge[layout.shell]
        np.testing.assert_allclose(statistics.averages(ridge, layout, half), over / under, atol=1e-10)


def test_a_class_without_images_averages_to_zero(make_blocks, rng):
    blocks, _, _, matcher, _ = setting(make_blocks, rng)
    statistics = class_statistics(blocks, matcher)
    empty = type(statistics)(
        0 * statistics.cross, 0 * statistics.gram, statistics.node_mass, statistics.labels
    )
    averages = empty.averages(np.zeros(blocks.layout.n_shells), blocks.layout)
    np.testing.assert_array_equal(averages, np.zeros_like(averages))


def test_workers_change_no_bit(make_blocks, rng):
    blocks, _, _, matcher, _ = setting(make_blocks, rng)
    alone, together = (class_statistics(blocks, matcher, n_jobs=n) for n in (1, 2))
    np.testing.assert_array_equal(alone.cross, together.cross)
    np.testing.assert_array_equal(alone.labels, together.labels)


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
    statistics = class_statistics(blocks, manifold.matcher(layout, dtype=np.float64))
    share = information_share(blocks, manifold, statistics, dtype=np.float64)
    assert 1 / 64 < share < 1
    assert posterior(manifold.weights, share).max(axis=1).mean() == pytest.approx(borne_out.mean(), abs=2e-3)


def test_latent_positions_are_the_mean_or_the_mode_of_the_posterior():
    nodes = np.array([[-1.0, 0.0], [1.0, 2.0]])
    posterior = Posterior(np.array([[0.25, 0.75], [0.9, 0.1]], dtype=np.float32), np.zeros(2))
    np.testing.assert_allclose(
        latent_positions(posterior, nodes, "mean"), [[0.5, 1.5], [-0.8, 0.2]], atol=1e-6
    )
    np.testing.assert_array_equal(latent_positions(posterior, nodes, "mode"), nodes[[1, 0]])
