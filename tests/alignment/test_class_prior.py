"""Prior weights of classes: what they maximise, and what they do to unequal views."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax, xlogy

from sklearn_cryoem.alignment.em import PassState, full_passes
from sklearn_cryoem.alignment.model import EMPTY_SHARE, reference_weights


def objective(q, log_likelihood, rho):
    """Eq. (4.14), with what is added to the shares."""
    share = (q.mean(axis=0) + EMPTY_SHARE / q.shape[1]) / (1 + EMPTY_SHARE)
    entropy = -(1 + EMPTY_SHARE) * xlogy(share, share).sum()
    return (q * log_likelihood - xlogy(q, q)).sum() + rho * len(q) * entropy


def settled(log_likelihood, class_prior, n_steps=200):
    """Posteriors once the weights have settled."""
    weight = np.full(log_likelihood.shape[1], 1 / log_likelihood.shape[1])
    for _ in range(n_steps):
        q = softmax(log_likelihood + np.log(weight), axis=1)
        weight, last = reference_weights(q.sum(axis=0), weight, class_prior), weight
    np.testing.assert_allclose(weight, last, atol=1e-6)
    return softmax(log_likelihood + np.log(weight), axis=1)


@pytest.mark.parametrize(("class_prior", "rho"), [("uniform", 0.0), ("balanced", 1.0)])
def test_settled_weights_maximise_their_objective(rng, class_prior, rho):
    log_likelihood = 2.0 * rng.standard_normal((40, 5)) + np.array([3.0, 1.0, 0.0, 0.0, -2.0])
    best = settled(log_likelihood, class_prior)
    top = objective(best, log_likelihood, rho)
    for size in (1e-3, 0.1, 3.0):
        for _ in range(20):
            other = softmax(np.log(best) + size * rng.standard_normal(best.shape), axis=1)
            assert objective(other, log_likelihood, rho) < top
            shifted = softmax(np.log(best) + size * rng.standard_normal(5), axis=1)
            assert objective(shifted, log_likelihood, rho) < top


def test_estimated_weights_are_the_shares_and_uniform_ones_stay(rng):
    mass, last = rng.uniform(0.0, 9.0, 4), rng.dirichlet(np.ones(4))
    np.testing.assert_allclose(reference_weights(mass, last, "estimated"), mass / mass.sum())
    np.testing.assert_array_equal(reference_weights(mass, last, "uniform"), last)


def test_balanced_weights_favour_small_classes_within_bounds():
    weight = np.full(3, 1 / 3)
    for _ in range(60):
        weight = reference_weights(np.array([90.0, 10.0, 0.0]), weight, "balanced")
    assert weight.sum() == pytest.approx(1.0) and np.all(np.diff(weight) > 0)
    # an empty class counts as a tenth of the mean one
    assert weight[2] / weight[0] == pytest.approx((0.9 + 0.1 / 3) / (0.1 / 3), rel=1e-6)


def test_balanced_classes_are_more_even_than_uniform_and_estimated_ones(
    rng, make_particles, make_settings, make_model, blob_image
):
    particles = make_particles(rng, 300, noise=0.6, kinds=(3, 3, 3, 3, 3, 3, 3, 4, 4, 5))
    settings = make_settings(k_start=8.0, k_limit=8.0, max_iter=5, tol=0.0)
    start = make_model(np.stack([blob_image(z) for z in (3, 4, 5)]), noise=0.36, k_max=8)
    source, effective = particles.source(), {}
    for prior in ("estimated", "uniform", "balanced"):
        start_state = PassState(start, source.known.shift_px)
        *_, fit = full_passes(source, replace(settings, class_prior=prior), start_state)
        space = settings.space(32, fit.model.k_max)
        share = source.run_pass(np.arange(300), fit.model, space).statistics.mass / 300
        effective[prior] = np.exp(-xlogy(share, share).sum())
    assert effective["estimated"] < effective["uniform"] - 0.1, effective
    assert effective["uniform"] < effective["balanced"], effective
