"""Noise of groups: bookkeeping, the law of EM, and a set of two groups of different noise."""

from dataclasses import replace

import numpy as np
import pytest

from sklearn_cryoem._core.progress import progress
from sklearn_cryoem.alignment.em import full_passes
from sklearn_cryoem.alignment.expectation import LogPrior, expect
from sklearn_cryoem.alignment.maximisation import accumulate, blend
from sklearn_cryoem.alignment.passes import run_pass
from sklearn_cryoem.alignment.poses import find_poses
from sklearn_cryoem.alignment.references import reference_bank, ring_power
from sklearn_cryoem.alignment.residuals import group_noise, group_sums, image_terms, log_noise_likelihood
from sklearn_cryoem.alignment.state import PassState
from sklearn_cryoem.alignment.update import polar_statistics, residual_power, solve_references
from sklearn_cryoem.physics.polar import polar_transform

BOX, RINGS = 32, 13


def coloured_noise(rng, n_images, spectrum):
    """White noise filtered to a power `spectrum(radius)` per pixel."""
    k = np.fft.fftfreq(BOX) * BOX
    radius = np.hypot(k[:, None], k[None, :])
    white = np.fft.fft2(rng.standard_normal((n_images, BOX, BOX)))
    return np.fft.ifft2(white * np.sqrt(spectrum(radius))).real.astype(np.float32)


def quiet(radius):
    return 0.25 * np.exp(-radius / 8.0) + 0.1


def loud(radius):
    return np.full_like(radius, 0.9)


@pytest.fixture
def two_groups(rng, make_particles):
    """Particles of which every third has loud white noise, the others quiet coloured noise."""

    def build(n_images=300, kinds=(3, 4, 5)):
        particles = make_particles(rng, n_images, noise=0.0, kinds=kinds)
        group = (np.arange(n_images) % 3 == 0).astype(np.int64)
        for g, spectrum in enumerate((quiet, loud)):
            own = group == g
            particles.images[own] += coloured_noise(rng, own.sum(), spectrum)
        return particles, group

    return build


def fitted(source, settings, model):
    with progress(settings.max_iter, "passes", verbose=0) as bar:
        return full_passes(source, settings, PassState(model, scale=source.scale), bar=bar)


def test_both_spectra_are_found_and_the_evidence_of_known_spectra_beats_the_pooled_one(
    two_groups, make_settings, make_model, blob_image
):
    particles, group = two_groups(900)
    settings = make_settings(k_start=12.0, k_limit=12.0, max_iter=4, tol=0.0)
    start = make_model(np.stack([blob_image(z) for z in (3, 4, 5)]), noise=0.4, k_max=12)
    shared = particles.source()
    shell = fitted(shared, settings, start).model
    apart = particles.source(group=group)
    split = fitted(apart, settings, replace(start, group_noise=np.ones((2, RINGS)))).model
    radius = np.arange(1.0, 13.0)
    found = (split.noise * split.group_noise)[:, :12]
    truth = np.array([quiet(radius), loud(radius)])
    n = np.array([[600], [300]])
    drawn = (n * truth + 30 * (n * truth).sum(axis=0) / 900) / (n + 30)  # by 30 images of average noise
    # the innermost rings see the mask; references fitted to noise take some of it
    error, off = (found / drawn - 1)[:, 3:], (found / truth - 1)[:, 3:]
    assert np.abs(error.mean(axis=1)).max() < 0.04 and np.abs(error).max() < 0.07, error
    assert np.abs(off).max() < 0.1, off
    likelihood = [
        (poses.log_evidence + poses.log_noise).mean()
        for poses in (find_poses(shared, shell, settings), find_poses(apart, split, settings))
    ]
    assert likelihood[1] > likelihood[0] + 25.0, likelihood  # nats per image
    labels = [find_poses(s, m, settings).cluster for s, m in ((shared, shell), (apart, split))]
    right = [np.mean(label == particles.kind - 3) for label in labels]
    assert right[1] >= right[0] - 0.01, right


def test_images_of_unknown_groups_get_the_pooled_noise(two_groups, make_settings, make_model, blob_image):
    particles, _ = two_groups(20)
    model = make_model(np.stack([blob_image(z) for z in (3, 4, 5)]), noise=0.4, k_max=8)
    groups = replace(model, group_noise=np.full((2, RINGS), 0.5))
    space = make_settings().space(BOX, 8.0)
    rows = np.arange(20)
    pooled = run_pass(particles.source(), rows, model, space)
    unseen = run_pass(particles.source(group=np.full(20, -1)), rows, groups, space)
    beyond = run_pass(particles.source(group=np.full(20, 7)), rows, groups, space)
    np.testing.assert_array_equal(pooled.log_evidence, unseen.log_evidence)
    np.testing.assert_array_equal(pooled.log_evidence, beyond.log_evidence)
    known = run_pass(particles.source(group=np.zeros(20, int)), rows, groups, space)
    half = run_pass(particles.source(), rows, replace(model, noise=0.5 * model.noise), space)
    np.testing.assert_allclose(known.log_evidence, half.log_evidence, rtol=1e-5)


def test_sums_of_a_pass_are_weighted_by_the_noise_of_each_group(two_groups, make_settings, make_model, rng):
    particles, group = two_groups(30)
    references = np.stack([particles.images[i] for i in range(3)])
    relative = rng.uniform(0.5, 2.0, (2, RINGS))
    model = replace(make_model(references, noise=0.4, k_max=8), group_noise=relative)
    space, source = make_settings().space(BOX, 8.0), particles.source(group=group)
    whole = run_pass(source, np.arange(30), model, space).statistics
    values = polar_transform(references, space.grid)
    parts = []
    for g in range(2):
        rows = np.flatnonzero(group == g)
        noise = replace(model, noise=model.noise * relative[g], group_noise=np.empty((0, 0)))
        part = run_pass(particles.source(), rows, noise, space).statistics
        own = residual_power(part, polar_statistics(part, space.grid), values)
        np.testing.assert_allclose(whole.group_residual[g], own * len(rows), rtol=1e-3)
        np.testing.assert_array_equal(whole.group_images[g], len(rows))
        parts.append((part, relative[g, : space.n_rings]))
    for name in ("numerator", "denominator", "power"):
        expected = sum(getattr(part, name) / h for part, h in parts)
        error = np.abs(getattr(whole, name) - expected).max()
        assert error < 1e-4 * np.abs(expected).max(), name


def test_small_groups_are_drawn_to_the_pooled_spectrum():
    residual = np.array([[1000 * 2.0], [2 * 8.0], [0.0]])
    counts = np.array([[1000.0], [2.0], [0.0]])
    pooled = residual.sum() / 1002.0
    relative = group_noise(residual, counts)[:, 0]
    np.testing.assert_allclose(relative[0] * pooled, 2.0, rtol=1e-3)
    np.testing.assert_allclose(relative[1], (2 * 8.0 / pooled + 30) / 32)
    assert relative[2] == 1.0
    assert group_noise(np.zeros((2, 3)), np.ones((2, 3))).min() > 0  # images that are zero


def test_online_sums_of_groups_hold_the_images_seen(two_groups, make_settings, make_model):
    particles, group = two_groups(30)
    model = replace(make_model(particles.images[:3], k_max=6), group_noise=np.ones((2, RINGS)))
    space, source = make_settings().space(BOX, 6.0), particles.source(group=group)
    one, two = (
        run_pass(source, rows, model, space).statistics.scaled(3.0)
        for rows in (np.arange(10), np.arange(10, 30))
    )
    np.testing.assert_array_equal(one.group_images.sum(axis=0), 10.0)
    np.testing.assert_allclose(blend(one, two, 0.25).group_images.sum(axis=0), 0.75 * 10 + 20)
    np.testing.assert_allclose(blend(one, two, 0.25).n_images, 3 * (0.75 * 10 + 0.25 * 20))


def test_an_em_step_with_noise_groups_never_lowers_the_log_posterior(two_groups, make_settings, rng):
    # as in test_update.py; here the groups' shares of the noise come from the references before the update,
    # which costs less than the tolerance
    particles, group = two_groups(60)
    space, source = make_settings().space(BOX, 8.0), particles.source()
    features = source(np.arange(60), space.n_rings, space.n_orders)
    prior = LogPrior(np.log([0.3, 0.3, 0.4]), space.log_shift_prior(1.0))
    area = 2 * np.pi * space.grid.radius
    values = 0.3 * polar_transform(rng.standard_normal((3, BOX, BOX)).astype(np.float32), space.grid)
    noise, relative = features.power.mean(axis=0, dtype=np.float64), np.ones((2, 8))
    tau2, trace = np.full((3, 8), 2.0), []
    for _ in range(8):
        bank = reference_bank(values, space, source.n_even)
        each = noise * relative[group]
        posterior = expect(features, (1 / each).astype(np.float32), bank, space, prior, floor=1e-9)
        likelihood = posterior.log_evidence + log_noise_likelihood(features.power, each, 1.0)
        trace.append(likelihood.sum() - 0.5 * (area * ring_power(values) / tau2).sum())
        stats = accumulate(features.weighted(1 / relative[group]), posterior, space, 3, source.n_even)
        terms = image_terms(features, posterior, space, values)
        polar = polar_statistics(stats, space.grid)
        values = solve_references(polar, noise / tau2)
        noise = residual_power(stats, polar, values)
        residual, images = group_sums(terms, group, 2)
        pooled = residual.sum(axis=0) / 60
        relative = residual / images / pooled
    steps = np.diff(trace) / abs(trace[-1])
    assert steps.min() >= -1e-5, f"fell by {-steps.min():.3g} at iteration {steps.argmin() + 1}: {trace}"
    assert trace[-1] - trace[0] > 100.0
