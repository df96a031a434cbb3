"""The model and its M-step: closed forms, limits, priors, and the law that EM obeys."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax, xlogy

from sklearn_cryoem.alignment.em import PassState, full_passes
from sklearn_cryoem.alignment.expectation import LogPrior, Posterior, expect
from sklearn_cryoem.alignment.maximisation import (
    Statistics,
    accumulate,
    order_power,
    orders_needed,
    signal_power,
)
from sklearn_cryoem.alignment.model import (
    EMPTY_SHARE,
    PolarStatistics,
    explained_power,
    log_noise_likelihood,
    polar_statistics,
    reference_weights,
    resolved_ring,
    shift_centring,
    solve_references,
    update_model,
)
from sklearn_cryoem.alignment.products import reference_bank, ring_power
from sklearn_cryoem.alignment.stream import nats_of_own_part
from sklearn_cryoem.physics.masks import soft_disc
from sklearn_cryoem.physics.polar import (
    angular_orders,
    from_angular_orders,
    polar_grid,
    polar_transform,
    translation_phase,
)


def test_what_references_owe_their_images_is_the_same_in_the_orders_that_hold_the_signal(
    make_model, make_settings, one_rng
):
    """Eq. (4.24): a round signal as strong as the noise, in sums of all orders and in those of a few."""
    settings = make_settings()
    grid = settings.space(32, 8.0).grid
    disc = soft_disc(32, settings.mask_radius_px + settings.mask_edge_px, 0.1)
    white = (one_rng.standard_normal((400, 32, 32)) * disc).astype(np.float32)
    values = polar_transform(white, grid)
    level = np.mean(np.abs(values) ** 2)
    orders = angular_orders(values + np.sqrt(level), grid.n_angles // 2).transpose(0, 2, 1)
    counted, nothing = np.ones((400, 1, grid.n_rings), dtype=complex), np.zeros(400)
    rest = nothing[: grid.n_rings], nothing[: grid.n_rings], nothing + 1.0, nothing[:1], nothing[:1]
    stats = Statistics(orders.astype(complex), counted, *rest, np.zeros((400, 2)), nothing)
    model = make_model(white[:1], noise=level)
    whole, few = (
        nats_of_own_part(sums, model, grid, settings, 1.0).mean()
        for sums in (stats, stats.resized(4, grid.n_rings))
    )
    assert few == pytest.approx(whole, rel=0.02)


def test_balance_tilts_the_class_prior(make_model, make_settings, references):
    space = make_settings().space(32, 8.0)
    weight, balance = np.array([0.5, 0.3, 0.2]), np.array([0.4, -0.9, 0.5])
    model = make_model(references, weight=weight, balance=balance, shift_sigma_px=0.8)
    prior = model.log_prior(space)
    np.testing.assert_allclose(prior.reference, np.log(weight) + balance)
    np.testing.assert_allclose(prior.shift, space.log_shift_prior(0.8))


def test_a_class_of_weight_zero_has_a_finite_log_prior(make_model, make_settings, references):
    model = make_model(references, weight=np.array([1.0, 0.0, 0.0]))
    prior = model.log_prior(make_settings().space(32, 8.0))
    assert np.isfinite(prior.reference).all() and prior.reference[1] < -500


def test_the_search_space_is_that_of_the_settings(make_settings):
    space = make_settings(max_shift_px=3.0).space(32, 11.0)
    assert space.n_rings == 11 and space.shift_step_px == 1.0
    assert np.hypot(*space.shifts_px.T).max() == pytest.approx(3.0)
    small, large = (make_settings(mask_radius_px=r).space(32, 7.0) for r in (6.0, 12.0))
    assert small.n_orders < large.n_orders  # the orders follow the radius of the references


N_RINGS = 13


def random_polar(rng, n_references=2, n_rings=4, half=6):
    shape = (n_references, n_rings, half)
    numerator = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    return PolarStatistics(numerator, rng.uniform(1.0, 5.0, shape))


def known_posterior(particles, space):
    """All weight on the true class and the true pose, which must lie on the grid of `space`."""
    cell = np.floor(particles.angle_rad * space.n_angles / (2 * np.pi)).astype(int)
    psi = space.angles_rad[cell]
    cos, sin, (x, y) = np.cos(psi), np.sin(psi), particles.shift_px.T
    u = np.column_stack([cos * x - sin * y, sin * x + cos * y])  # R_psi t, in the frame of the class
    distance = np.hypot(*(u[:, None] - space.shifts_px).transpose(2, 0, 1))
    assert distance.min(axis=1).max() < 1e-6, "the shifts do not lie on the grid"
    n = len(cell)
    row = particles.kind % 3 * space.n_shifts + distance.argmin(axis=1)
    one = np.ones(n)
    return Posterior(np.arange(n), row, cell, one.astype(np.float32), one, row, cell, one)


@pytest.fixture
def solved(rng, make_particles, make_settings):
    """Particles at known poses on the grid, their source, and the sums over them."""

    def build(n_images=150, noise=0.5, kinds=(3, 4, 5), mask_radius_px=13.0, shifts=range(5)):
        space = make_settings().space(32, float(N_RINGS))
        psi = space.angles_rad[rng.integers(space.n_angles, size=n_images)]
        u = space.shifts_px[rng.choice(shifts, size=n_images)]
        cos, sin = np.cos(psi), np.sin(psi)
        shift = np.column_stack([cos * u[:, 0] + sin * u[:, 1], cos * u[:, 1] - sin * u[:, 0]])
        particles = make_particles(rng, n_images, noise=noise, kinds=kinds, poses=(psi, shift))
        source = particles.source(mask_radius_px=mask_radius_px)
        features = source(np.arange(n_images), space.n_rings, space.n_orders)
        posterior = known_posterior(particles, space)
        return source, space, accumulate(features, posterior, space, 3, source.n_even)

    return build


def test_without_a_prior_the_references_are_those_of_maximum_likelihood(rng):
    polar = random_polar(rng)
    plain = solve_references(polar, np.zeros((2, 4)))
    np.testing.assert_allclose(plain, polar.numerator / polar.denominator, rtol=1e-5)
    empty = PolarStatistics(np.zeros_like(polar.numerator), np.zeros_like(polar.denominator))
    assert not solve_references(empty, np.zeros((2, 4))).any()  # and not 0 / 0


def test_the_prior_shrinks_each_ring_of_each_class_by_its_own_amount(rng):
    polar, inverse = random_polar(rng), rng.uniform(0.1, 10.0, (2, 4))
    references = solve_references(polar, inverse)
    # the gradient of 1/2 G |A|^2 - Re(conj(B) A) + 1/2 |A|^2 s2 / tau2 vanishes, Eq. (4.2)
    gradient = (polar.denominator + inverse[:, :, None]) * references - polar.numerator
    assert np.abs(gradient).max() < 1e-5
    assert np.abs(solve_references(polar, np.full((2, 4), 1e9))).max() < 1e-8


def residual_power(stats, polar, references):
    """Mean over images of |F - C A|^2 on each ring."""
    return (stats.power - explained_power(polar, references).sum(axis=0)) / stats.n_images


def test_residual_is_the_power_that_the_references_do_not_explain(solved, rng):
    _, space, stats = solved(n_images=40)
    polar = polar_statistics(stats, space.grid)
    nothing = residual_power(stats, polar, np.zeros_like(polar.numerator))
    np.testing.assert_allclose(nothing, stats.power / 40, rtol=1e-6)
    # maximum likelihood explains the most; any other references leave more
    best = solve_references(polar, np.zeros((3, N_RINGS)))
    least = residual_power(stats, polar, best)
    assert np.all(least > 0) and np.all(least < nothing)
    for _ in range(3):
        jitter = 0.3 * rng.standard_normal(best.shape) * np.abs(best).mean(axis=-1, keepdims=True)
        assert np.all(residual_power(stats, polar, best + jitter) > least)


def test_residual_of_a_noiseless_image_under_its_own_reference_is_zero(solved, blob_image):
    _, space, stats = solved(n_images=30, noise=0.0, mask_radius_px=14.0)
    polar = polar_statistics(stats, space.grid)
    truth = polar_transform(np.stack([blob_image(z) for z in (3, 4, 5)]), space.grid)
    residual = residual_power(stats, polar, truth)
    # the mask of the images and the even orders left out are what remains
    assert np.abs(residual).sum() < 0.01 * (stats.power / 30).sum()


def test_known_poses_give_back_the_references_and_the_noise(solved, make_model, make_settings, blob_image):
    source, space, stats = solved(n_images=150, noise=0.5)
    truth = np.stack([blob_image(z) for z in (3, 4, 5)])
    model = make_model(truth, noise=0.25)
    updated, _ = update_model(stats, model, space.grid, make_settings(), source.noise_fraction)
    moves = shift_centring(stats)
    for found, true, move in zip(updated.references, truth, moves, strict=True):
        phase = translation_phase(space.grid, move)
        a, b = polar_transform(np.stack([found, true]), space.grid)[:, :6]  # as far as they are resolved
        b = b * phase[0, :6] * np.sqrt(space.grid.ring_weight[:6, None])
        a = a * np.sqrt(space.grid.ring_weight[:6, None])
        similarity = (a * b.conj()).real.sum() / np.linalg.norm(a) / np.linalg.norm(b)
        assert similarity > 0.95, f"correlation {similarity:.3f}"
    # inner rings hold what the mask takes from the signal; white noise of variance 0.25 elsewhere
    np.testing.assert_allclose(updated.noise[4:], 0.25, rtol=0.15)
    assert updated.k_max == model.k_max


def test_noise_stays_positive_where_rounding_would_make_it_negative(
    solved, make_model, make_settings, blob_image
):
    source, space, stats = solved(n_images=30, noise=0.0)
    model = make_model(np.stack([blob_image(z) for z in (3, 4, 5)]))
    for factor in (0.5, 0.0):  # a residual far below zero, and no power at all
        poorer = replace(stats, power=factor * stats.power)
        updated, _ = update_model(poorer, model, space.grid, make_settings(), source.noise_fraction)
        assert np.all(updated.noise > 0) and np.isfinite(1.0 / updated.noise.astype(np.float32)).all()


def test_outer_rings_keep_the_noise_they_had(solved, make_model, make_settings, blob_image):
    source, _, stats = solved(n_images=20)
    model = make_model(np.stack([blob_image(z) for z in (3, 4, 5)]), noise=7.0)
    few = make_settings().space(32, 8.0)
    small = stats.resized(few.n_orders, few.n_rings)
    updated, moved = update_model(small, model, few.grid, make_settings(), source.noise_fraction)
    assert moved.numerator.shape == (3, few.n_orders, 8)
    assert len(updated.noise) == N_RINGS and np.all(updated.noise[:8] < 2.0)
    np.testing.assert_array_equal(updated.noise[8:], 7.0)


def similarity(one, other):
    """Correlation of references on the polar grid; (n_references,)."""
    norms = np.linalg.norm(one, axis=(1, 2)) * np.linalg.norm(other, axis=(1, 2))
    return (one * other.conj()).real.sum(axis=(1, 2)) / norms


def test_references_never_move_by_more_than_three_pixels_nor_without_shifts(solved):
    _, _, stats = solved(n_images=20)
    far = replace(stats, shift_sum=stats.mass[:, None] * np.array([30.0, -40.0]))
    np.testing.assert_allclose(shift_centring(far), [[-1.8, 2.4]] * 3)
    empty = replace(stats, mass=np.zeros(3), shift_sum=np.zeros((3, 2)))
    np.testing.assert_array_equal(shift_centring(empty), np.zeros((3, 2)))


def test_references_are_masked_and_move_to_where_their_images_are_and_the_sums_move_along(
    solved, make_model, make_settings
):
    source, space, stats = solved(n_images=60, noise=0.1, shifts=[0, 1, 1, 1])
    settings = make_settings()
    mean = stats.shift_sum / stats.mass[:, None]
    assert np.hypot(*mean.T).min() > 0.5
    model = make_model(np.zeros((3, 32, 32), np.float32))
    updated, moved = update_model(stats, model, space.grid, settings, source.noise_fraction)
    outside = soft_disc(32, settings.mask_radius_px + settings.mask_edge_px, 0.0) == 0
    assert np.all(updated.references[:, outside] == 0) and np.abs(updated.references).max() > 0.5
    before, after = (polar_statistics(sums, space.grid).numerator for sums in (stats, moved))
    assert similarity(after, before * translation_phase(space.grid, -mean)).min() > 0.99
    assert similarity(after, before).max() < 0.97
    still = replace(stats, shift_sum=np.zeros((3, 2)))
    unmoved, _ = update_model(still, model, space.grid, settings, source.noise_fraction)
    before, after = (polar_transform(m.references, space.grid) for m in (unmoved, updated))
    followed = similarity(after, before * translation_phase(space.grid, -mean))
    assert np.all(followed > 0.99) and np.all(followed > similarity(after, before))
    np.testing.assert_allclose(moved.shift_sum, 0.0, atol=1e-9)
    _, again = update_model(moved, updated, space.grid, settings, source.noise_fraction)
    np.testing.assert_allclose(again.numerator, moved.numerator, atol=1e-4 * np.abs(moved.numerator).max())
    np.testing.assert_array_equal(moved.denominator, stats.denominator)


def test_reference_weights_follow_the_mass_only_when_estimated(solved, make_model, make_settings):
    source, space, stats = solved(n_images=30)
    model = make_model(np.zeros((3, 32, 32), np.float32))
    for prior, expected in (("uniform", np.full(3, 1 / 3)), ("estimated", stats.mass / 30)):
        settings = make_settings(class_prior=prior)
        updated, _ = update_model(stats, model, space.grid, settings, source.noise_fraction)
        np.testing.assert_allclose(updated.weight, expected)


def test_spread_of_the_shifts_is_their_root_mean_square_per_axis(solved, make_model, make_settings):
    source, space, stats = solved(n_images=30)
    model = make_model(np.zeros((3, 32, 32), np.float32))
    wide = replace(stats, shift_square=np.array([30 * 2 * 1.7**2]))
    updated, _ = update_model(wide, model, space.grid, make_settings(), source.noise_fraction)
    assert updated.shift_sigma_px == pytest.approx(1.7)
    still = replace(stats, shift_square=np.zeros(1))
    updated, _ = update_model(still, model, space.grid, make_settings(), source.noise_fraction)
    assert updated.shift_sigma_px > 0.1  # never so narrow that no image could move again


def test_a_class_without_images_stays_finite(solved, make_model, make_settings):
    source, space, stats = solved(n_images=30, kinds=(3, 4))
    assert stats.mass[2] == 0
    model = make_model(np.zeros((3, 32, 32), np.float32))
    updated, moved = update_model(stats, model, space.grid, make_settings(), source.noise_fraction)
    assert np.isfinite(updated.references).all() and np.isfinite(moved.numerator).all()
    assert np.isfinite(updated.noise).all() and np.all(updated.noise > 0)
    assert not updated.references[2].any() and updated.resolution[2] <= updated.resolution[:2].min()


def test_signal_is_the_power_above_the_noise_pooled_over_classes():
    power, noise = np.full((3, 5), 3.0), np.full((3, 5), 1.0)
    np.testing.assert_allclose(signal_power(power, noise, np.array([1.0, 5.0, 90.0])), 2.0)
    np.testing.assert_array_equal(signal_power(noise, power, np.ones(3)), np.zeros((3, 5)))  # never negative


def test_small_classes_borrow_the_signal_of_the_others():
    power = np.repeat([[1.0], [5.0], [9.0]], 6, axis=1)
    noise, mass = np.zeros((3, 6)), np.array([0.0, 100.0, 200.0])
    signal = signal_power(power, noise, mass)
    pooled = (100.0 * 5.0 + 200.0 * 9.0) / 300.0
    np.testing.assert_allclose(signal[0], pooled)  # no image of its own
    assert np.all((5.0 < signal[1]) & (signal[1] < pooled)) and np.all(
        (pooled < signal[2]) & (signal[2] < 9.0)
    )
    larger = signal_power(power, noise, mass * [0, 1, 5])
    assert 9.0 - larger[2, 0] < 9.0 - signal[2, 0]  # the larger the class, the less it borrows
    np.testing.assert_allclose(signal_power(power, noise, np.ones(3))[1], 5.0)


def test_signal_is_averaged_over_neighbouring_rings():
    power = np.zeros((1, 7))
    power[0, 3] = 4.0
    signal = signal_power(power, np.zeros((1, 7)), np.ones(1))
    np.testing.assert_allclose(signal[0], [0, 0, 1, 2, 1, 0, 0])


def test_orders_that_hold_little_information_are_left_out(rng):
    grid = polar_grid(32, 10.0, 12.0)
    orders = np.zeros((2, grid.n_rings, grid.n_angles // 2), dtype=np.complex64)
    orders[:, 4, :10] = 0.1  # 2 pi r |a|^2 = 0.31 an order, twice for its negative
    orders[1, 4, 15] = 1e-4
    values = from_angular_orders(orders, grid.n_angles)
    assert orders_needed(order_power(values), np.full(grid.n_rings, 1.0)) == 10 + 4
    assert orders_needed(order_power(values), np.full(grid.n_rings, 1e6)) == 16 + 4


def test_resolved_ring_is_the_last_before_the_signal_first_fails():
    ratio = np.array([[9.0, 2.0, 1.0, 0.9, 5.0], [0.5, 9.0, 9.0, 9.0, 9.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    np.testing.assert_array_equal(resolved_ring(ratio), [3, 0, 5])
    assert resolved_ring(ratio, n_ignored=1)[1] > 0, "a ring that does not count resolves nothing"


@pytest.mark.parametrize("split_angstrom", [None, 3000.0])
def test_an_em_step_never_lowers_the_log_posterior(rng, make_particles, make_settings, split_angstrom):
    # With references that stay on the polar grid (not masked, not re-centred), fixed tau2 and all of the
    # noise passing, E-step, references and noise are exact coordinate steps on one objective.
    particles = make_particles(rng, 60, noise=0.8, kinds=(3, 4, 5), split_angstrom=split_angstrom)
    space = make_settings().space(32, 8.0)
    source = particles.source()
    features = source(np.arange(60), space.n_rings, space.n_orders)
    prior = LogPrior(np.log([0.3, 0.3, 0.4]), space.log_shift_prior(1.0))
    area = 2 * np.pi * space.grid.radius
    values = polar_transform(rng.standard_normal((3, 32, 32)).astype(np.float32), space.grid)
    values *= 0.3
    noise, tau2, trace = features.power.mean(axis=0, dtype=np.float64), np.full((3, 8), 2.0), []
    for _ in range(8):
        bank = reference_bank(values, space, source.n_even)
        precision = (1 / noise).astype(np.float32)
        posterior = expect(features, precision, bank, space, prior, floor=1e-9)
        likelihood = posterior.log_evidence + log_noise_likelihood(features.power, noise, 1.0)
        trace.append(likelihood.sum() - 0.5 * (area * ring_power(values) / tau2).sum())
        stats = accumulate(features, posterior, space, 3, source.n_even)
        polar = polar_statistics(stats, space.grid)
        values = solve_references(polar, noise / tau2)  # Eq. (4.2)
        noise = residual_power(stats, polar, values)  # Eq. (3.4)
    steps = np.diff(trace) / abs(trace[-1])
    assert steps.min() >= -1e-5, f"fell by {-steps.min():.3g} at iteration {steps.argmin() + 1}: {trace}"
    assert trace[-1] - trace[0] > 100.0


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
