import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm as gaussian

from sklearn_cryoem.manifold.expectation import Matcher, e_step


def naive_log_likelihood(y, ctf, templates, variance, layout):
    """log p(y_i | node k) as Eq. (1.3) writes it, feature by feature."""
    table = np.empty((len(y), len(templates)))
    for k, template in enumerate(templates):
        table[:, k] = gaussian.logpdf(y, ctf * template, np.sqrt(variance[layout.shell])).sum(axis=1)
    return layout.information * table


def setting(make_blocks, rng, **options):
    blocks, y, ctf = make_blocks(rng, **options)
    templates = rng.standard_normal((7, blocks.layout.n_features))
    variance = rng.uniform(0.3, 2.0, blocks.layout.n_shells)
    return blocks, y, ctf, templates, variance


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_posterior_and_evidence_are_bayes_rule(make_blocks, rng, temperature):
    blocks, y, ctf, templates, variance = setting(make_blocks, rng, block_size=100)
    naive = naive_log_likelihood(y, ctf, templates, variance, blocks.layout)
    matcher = Matcher.of(templates, variance, blocks.layout, dtype=np.float64, temperature=temperature)
    posterior = matcher.posterior(blocks.load(0, blocks.layout.n_shells))
    total = logsumexp(naive / temperature, axis=1, keepdims=True)
    np.testing.assert_allclose(posterior.responsibilities, np.exp(naive / temperature - total), atol=1e-12)
    evidence = temperature * (total[:, 0] - np.log(len(templates)))
    np.testing.assert_allclose(posterior.log_evidence, evidence, rtol=1e-10)


def test_statistics_are_sums_over_images(make_blocks, rng):
    blocks, y, ctf, templates, variance = setting(make_blocks, rng)
    layout = blocks.layout
    statistics = e_step(blocks, Matcher.of(templates, variance, layout, dtype=np.float64))
    naive = naive_log_likelihood(y, ctf, templates, variance, layout)
    weights = np.exp(naive - logsumexp(naive, axis=1, keepdims=True))
    np.testing.assert_allclose(statistics.cross, weights.T @ (ctf * y), atol=1e-9)
    np.testing.assert_allclose(statistics.gram[:, layout.norm_index], weights.T @ ctf**2, atol=1e-9)
    np.testing.assert_allclose(statistics.node_mass, weights.sum(axis=0), atol=1e-9)
    np.testing.assert_allclose(statistics.power, layout.sum_shells((y**2).sum(axis=0)))
    evidence = (logsumexp(naive, axis=1) - np.log(len(templates))).sum()
    assert statistics.log_evidence == pytest.approx(evidence, rel=1e-10)
    assert statistics.n_samples == len(y)


def test_new_shells_enter_the_statistics_before_they_enter_the_match(make_blocks, rng):
    blocks, _, _, templates, variance = setting(make_blocks, rng)
    first, n_shells = blocks.layout.truncate(1), blocks.layout.n_shells
    matcher = Matcher.of(templates[:, : first.n_features], variance[:1], first, dtype=np.float64)
    wide, narrow = e_step(blocks, matcher, n_shells=n_shells), e_step(blocks, matcher)
    assert wide.cross.shape == templates.shape
    np.testing.assert_allclose(wide.cross[:, : first.n_features], narrow.cross)
    assert wide.log_evidence == pytest.approx(narrow.log_evidence, rel=1e-12)


def test_single_precision_agrees_with_double(make_blocks, rng):
    blocks, y, ctf, templates, variance = setting(make_blocks, rng, dtype=np.float32)
    naive = naive_log_likelihood(y.astype(float), ctf.astype(float), templates, variance, blocks.layout)
    weights = np.exp(naive - logsumexp(naive, axis=1, keepdims=True))
    statistics = e_step(blocks, Matcher.of(templates, variance, blocks.layout, dtype=np.float32))
    assert statistics.cross.dtype == np.float64
    np.testing.assert_allclose(statistics.node_mass, weights.sum(axis=0), rtol=1e-4, atol=1e-3)


def test_thousands_of_nats_between_nodes_neither_overflow_nor_become_nan(rng, make_blocks):
    blocks, *_ = setting(make_blocks, rng)
    layout = blocks.layout
    templates = np.stack([np.zeros(layout.n_features), np.full(layout.n_features, 1e3)])
    matcher = Matcher.of(templates, np.full(layout.n_shells, 1e-3), layout, dtype=np.float64)
    posterior = matcher.posterior(blocks.load(0, layout.n_shells))
    assert np.isfinite(posterior.log_evidence).all()
    np.testing.assert_allclose(posterior.responsibilities.sum(axis=1), 1.0)


@pytest.mark.parametrize("n_jobs", [2, 3])
def test_the_same_bits_for_any_number_of_workers(make_blocks, rng, n_jobs):
    blocks, _, _, templates, variance = setting(make_blocks, rng, n=200, dtype=np.float32)
    matcher = Matcher.of(templates, variance, blocks.layout)
    alone, together = e_step(blocks, matcher, n_jobs=1), e_step(blocks, matcher, n_jobs=n_jobs)
    np.testing.assert_array_equal(alone.cross, together.cross)
    assert alone.log_evidence == together.log_evidence
