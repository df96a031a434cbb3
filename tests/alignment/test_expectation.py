"""The search by matrix products against aligning every image at every cell and comparing pixel by pixel."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import i0, logsumexp

from sklearn_cryoem.alignment import expectation
from sklearn_cryoem.alignment.expectation import LogPrior, Posterior, expect
from sklearn_cryoem.alignment.products import reference_bank
from sklearn_cryoem.physics.fourier import fourier_features, half_plane
from sklearn_cryoem.physics.polar import polar_transform
from sklearn_cryoem.physics.rotation import aligned_features

# The polar quadrature and the Cartesian sum are different discretisations of one integral. For a product that
# is smooth and vanishes at the centre and beyond the rim they differ by its curvature at the centre:
# 1e-3 (no noise in the images) to 2.5e-3 (noise as here) of the range of the log posterior, as
# measured. More angular orders or angles change nothing; NUFFTs (1e-4) add nothing visible.
QUADRATURE = 4e-3


def precision_at(radius):
    """1 / noise variance: coloured, and smooth in the radius, as the quadrature needs."""
    return 0.6 + 0.3 * np.cos(radius / 4.0)


def direct_log_joint(particles, images, references, space, prior):
    """Log prior and likelihood ratio by Eq. (1.3); (n_images, n_references, n_shifts, n_angles)."""
    box = images.shape[-1]
    plane = half_plane(box)
    beta = precision_at(plane.radius)
    a = fourier_features(references, plane)  # (n_references, J)
    n, n_shifts = len(images), space.n_shifts
    table = np.empty((n, len(references), n_shifts, space.n_angles))
    for column, psi in enumerate(space.angles_rad):
        cos, sin = np.cos(psi), np.sin(psi)
        shift = space.shifts_px @ np.array([[cos, -sin], [sin, cos]])  # R_-psi u, in the frame of the image
        y = aligned_features(
            np.repeat(images, n_shifts, axis=0), plane, np.full(n * n_shifts, psi), np.tile(shift, (n, 1))
        ).reshape(n, 1, n_shifts, -1)
        if particles.table is None:
            c = np.ones((n, plane.n_coefficients))
        else:
            c = particles.table.evaluate(plane.radius / (box * 4.0), plane.azimuth, np.full(n, psi))
        mu = c[:, None, None, :] * a[:, None, :]  # (n, n_references, 1, J)
        table[..., column] = -0.5 * (beta * (np.abs(y - mu) ** 2 - np.abs(y) ** 2)).sum(axis=-1)
    return table + prior.reference[:, None, None] + prior.shift[:, None] - np.log(space.n_angles)


def log_table(posterior, n_references, space):
    """Log posterior of every cell that is not zero, -inf elsewhere."""
    table = np.full((len(posterior.log_evidence), n_references * space.n_shifts, space.n_angles), -np.inf)
    table[posterior.image, posterior.row, posterior.angle] = np.log(posterior.weight)
    return table.reshape(len(table), n_references, space.n_shifts, space.n_angles)


@pytest.fixture
def setting(rng, make_particles, make_settings, references):
    """Build images, their features and everything else that `expect` takes."""

    def build(n_images=3, *, split_angstrom=3000.0, noise=1.0, **options):
        particles = make_particles(rng, n_images, split_angstrom=split_angstrom, noise=noise)
        space = make_settings(**options).space(32, 13.0)
        source = particles.source()
        features = source(np.arange(n_images), space.n_rings, space.n_orders)
        bank = reference_bank(polar_transform(references, space.grid), space, source.n_even)
        beta = precision_at(space.grid.radius).astype(np.float32)
        prior = LogPrior(np.log([0.5, 0.2, 0.3]), space.log_shift_prior(1.2))
        return particles, source, (features, beta, bank, space, prior)

    return build


@pytest.mark.parametrize("split_angstrom", [None, 0.0, 4000.0])
def test_posterior_is_that_of_the_cartesian_model(setting, references, split_angstrom):
    particles, source, arguments = setting(split_angstrom=split_angstrom)
    space, prior = arguments[-2:]
    assert space.n_shifts > 5 and source.n_even > (3 if split_angstrom else 0)
    naive = direct_log_joint(particles, source.masked(np.arange(3)), references, space, prior)
    posterior = expect(*arguments, floor=1e-30)
    kept = log_table(posterior, 3, space)
    log_joint = kept + posterior.log_evidence[:, None, None, None]
    seen = np.isfinite(kept)
    assert seen.sum() > 1000
    error = np.abs(log_joint - naive)[seen].max() / np.ptp(naive)
    assert error < QUADRATURE, f"off by {error:.2g} of the range {np.ptp(naive):.3g} nats"
    evidence = logsumexp(naive, axis=(1, 2, 3))
    np.testing.assert_allclose(posterior.log_evidence, evidence, atol=QUADRATURE * np.ptp(naive))


@pytest.mark.parametrize("split_angstrom", [None, 4000.0])
def test_directions_of_filaments_are_a_prior_of_either_way(setting, split_angstrom):
    """Eq. (4.23), of order 2 wherever the norm has only order 0; shifts along x are limited."""
    kappa, rise_px = 5.0, 3.0
    *_, free = setting(split_angstrom=split_angstrom)
    *_, bound = setting(split_angstrom=split_angstrom, kappa=kappa, rise_px=rise_px)
    space = bound[3]
    assert np.abs(space.shifts_px[:, 0]).max() <= 0.5 * rise_px < np.abs(free[3].shifts_px[:, 0]).max()
    arguments = (*free[:2], bound[2], bound[3], bound[4])
    found, plain = (
        expect(*arguments[:3], one, arguments[4], floor=1e-30) for one in (space, replace(space, kappa=0.0))
    )
    kept, before = (
        log_table(one, 3, space) + one.log_evidence[:, None, None, None] for one in (found, plain)
    )
    prior = kappa * np.cos(2 * space.angles_rad) - np.log(i0(kappa))
    seen = np.isfinite(kept) & np.isfinite(before)
    assert seen.sum() > 500
    np.testing.assert_allclose(kept[seen] - before[seen], np.broadcast_to(prior, seen.shape)[seen], atol=2e-3)
    assert np.mean(np.exp(prior)) == pytest.approx(1.0, rel=1e-3), "a density, beside the uniform one"


def test_posterior_is_a_distribution_over_what_its_own_logs_say(setting):
    *_, arguments = setting(n_images=5)
    space = arguments[3]
    posterior = expect(*arguments, floor=1e-30)
    total = np.bincount(posterior.image, posterior.weight, 5)
    np.testing.assert_allclose(total, 1.0, atol=1e-5)
    table = log_table(posterior, 3, space).reshape(5, -1)
    np.testing.assert_array_equal(
        table.argmax(axis=1), posterior.best_row * space.n_angles + posterior.best_angle
    )
    np.testing.assert_allclose(np.exp(table.max(axis=1)), posterior.best_weight, rtol=1e-4)


@pytest.mark.parametrize("floor", [1e-3, 1e-5])
def test_posteriors_below_the_floor_are_exactly_zero_and_the_others_are_rescaled(setting, floor):
    *_, arguments = setting(n_images=5)
    space = arguments[3]
    every = np.exp(log_table(expect(*arguments, floor=1e-30), 3, space))
    posterior = expect(*arguments, floor=floor)
    kept = np.exp(log_table(posterior, 3, space))
    # the floor is a fraction of the sum over cells within `floor` of the best: all but a per cent or two
    clear = np.abs(np.log(np.maximum(every, 1e-300) / floor)) > 0.05
    np.testing.assert_array_equal((kept > 0)[clear], (every >= floor)[clear])
    assert 0 < (kept > 0).sum() < 0.9 * (every > 0).sum()
    expected = np.where(kept > 0, every, 0.0)
    expected /= expected.sum(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(kept, expected, rtol=2e-4, atol=1e-9)


def test_a_posterior_so_flat_that_all_of_it_is_below_the_floor_stays_a_distribution(setting):
    *_, (features, beta, bank, space, _) = setting(n_images=4)
    flat = LogPrior(np.full(3, -np.log(3.0)), np.full(space.n_shifts, -np.log(space.n_shifts)))
    n_cells = 3 * space.n_shifts * space.n_angles
    posterior = expect(features, beta * np.float32(1e-9), bank, space, flat, floor=10.0 / n_cells)
    assert len(posterior.weight) == 4 * n_cells
    np.testing.assert_allclose(posterior.weight, 1.0 / n_cells, rtol=1e-3)
    np.testing.assert_allclose(posterior.log_evidence, 0.0, atol=1e-3)


def test_priors_enter_the_posterior_and_the_evidence(setting):
    *_, (features, beta, bank, space, prior) = setting(n_images=4)
    flat = expect(features, beta, bank, space, prior, floor=1e-30)
    tilt, drift = np.array([0.7, -1.1, 0.0]), 0.1 * np.arange(space.n_shifts)
    other = LogPrior(prior.reference + tilt, prior.shift + drift)
    tilted = expect(features, beta, bank, space, other, floor=1e-30)
    change = tilt[:, None, None] + drift[:, None]
    before, after = log_table(flat, 3, space), log_table(tilted, 3, space)
    seen = np.isfinite(before) & np.isfinite(after)
    expected = (before + change)[seen] - np.repeat(
        tilted.log_evidence - flat.log_evidence, seen.sum(axis=(1, 2, 3))
    )
    np.testing.assert_allclose(after[seen], expected, atol=1e-3)
    assert np.abs(tilted.log_evidence - flat.log_evidence).max() > 0.05


def test_a_class_that_the_prior_excludes_is_never_found(setting):
    *_, (features, beta, bank, space, prior) = setting(n_images=4)
    excluded = LogPrior(np.log([0.5, np.finfo(float).tiny, 0.5]), prior.shift)
    posterior = expect(features, beta, bank, space, excluded)
    assert not np.any(posterior.row // space.n_shifts == 1)


@pytest.mark.parametrize(("columns", "at_once"), [(1, 1), (1, 10**6), (10**6, 50)])
def test_cutting_the_work_differently_changes_nothing(setting, monkeypatch, columns, at_once):
    *_, arguments = setting(n_images=7)
    space = arguments[3]
    whole = expect(*arguments)
    monkeypatch.setattr(expectation, "IMAGES_PER_PRODUCT", 3)
    monkeypatch.setattr(expectation, "COLUMNS_PER_PRODUCT", columns)
    monkeypatch.setattr(expectation, "COLUMNS_PER_SYNTHESIS", at_once)
    cut = expect(*arguments)
    np.testing.assert_allclose(
        np.exp(log_table(cut, 3, space)), np.exp(log_table(whole, 3, space)), rtol=1e-3, atol=2e-5
    )
    np.testing.assert_allclose(cut.log_evidence, whole.log_evidence, atol=1e-4)
    np.testing.assert_array_equal(cut.best_row, whole.best_row)


def test_concatenated_blocks_are_the_posterior_of_all_images(setting):
    *_, (features, beta, *rest) = setting(n_images=6)
    space = rest[1]
    parts = [
        expect(features.take(rows, space.n_rings, space.n_orders), beta, *rest)
        for rows in (slice(0, 4), slice(4, 6))
    ]
    joined, whole = Posterior.concatenate(parts), expect(features, beta, *rest)
    np.testing.assert_allclose(
        np.exp(log_table(joined, 3, space)), np.exp(log_table(whole, 3, space)), rtol=1e-3, atol=2e-5
    )
    np.testing.assert_array_equal(joined.best_angle, whole.best_angle)


def test_thousands_of_nats_between_cells_give_one_cell_and_no_nan(setting):
    *_, (features, beta, bank, space, prior) = setting(noise=0.01)
    posterior = expect(features, beta * np.float32(1e4), bank, space, prior)
    assert np.isfinite(posterior.log_evidence).all() and posterior.log_evidence.min() > 1e4
    assert posterior.best_weight.min() > 0.9
    np.testing.assert_allclose(np.bincount(posterior.image, posterior.weight), 1.0, atol=1e-6)
