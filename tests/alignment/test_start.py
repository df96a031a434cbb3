"""How references begin, and how dead ones come back to life."""

from dataclasses import fields, replace

import numpy as np
import pytest

from sklearn_cryoem.alignment import start
from sklearn_cryoem.alignment.em import PassState, full_passes
from sklearn_cryoem.alignment.maximisation import Statistics
from sklearn_cryoem.alignment.model import masked_references, polar_statistics, solve_references, update_model
from sklearn_cryoem.alignment.start import dead_references, first_noise, mean_evidence, reseed, starting_model
from sklearn_cryoem.physics.masks import soft_disc
from sklearn_cryoem.physics.polar import (
    angular_orders,
    from_angular_orders,
    images_from_polar,
    polar_grid,
    polar_transform,
)


@pytest.fixture
def source(rng, make_particles):
    return make_particles(rng, 60).source()


def test_a_start_is_masked_references_and_uniform_priors(source, make_settings):
    settings = make_settings(n_references=4, k_start=5.0)
    model = starting_model(source, settings, np.random.RandomState(0))
    assert model.references.shape == (4, 32, 32) and model.references.dtype == np.float32
    outside = soft_disc(32, settings.mask_radius_px + settings.mask_edge_px, 0.0) == 0
    assert np.all(model.references[:, outside] == 0) and np.all(np.abs(model.references).max(axis=(1, 2)) > 0)
    np.testing.assert_allclose(model.weight, 0.25)
    np.testing.assert_array_equal(model.balance, 0.0)
    assert model.k_max == 5.0 and model.shift_sigma_px > 0 and len(model.noise) == 13
    space = settings.space(32, 5.0)
    prior = model.log_prior(space)
    assert np.exp(prior.reference).sum() == pytest.approx(1) and np.exp(prior.shift).sum() == pytest.approx(1)


def test_references_differ_from_each_other_and_follow_the_seed(source, make_settings):
    one, again, other = (
        starting_model(source, make_settings(), np.random.RandomState(seed)).references for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()
    assert np.abs(one[0] - one[1]).max() > 1e-3 * np.abs(one).max()


def test_references_are_rounder_than_the_images(rng, make_particles, make_settings):
    particles = make_particles(rng, 60, noise=0.0, split_angstrom=None, kinds=(3,))
    particles.images[:] = particles.images[0]  # only the random angles can round them
    model = starting_model(particles.source(), make_settings(), np.random.RandomState(0))
    grid = polar_grid(32, 5.0, 15.0)

    def share_of_structure(images):
        power = (np.abs(angular_orders(polar_transform(images, grid), 12)) ** 2).sum(axis=(0, 1))
        return power[1:].sum() / power.sum()

    assert share_of_structure(model.references) < 0.4 * share_of_structure(particles.images[:1])


def test_references_hold_nothing_beyond_the_first_resolution(rng, make_particles, make_settings):
    model = starting_model(
        make_particles(rng, 60, noise=3.0).source(), make_settings(), np.random.RandomState(0)
    )
    spectrum = np.abs(np.fft.fftshift(np.fft.fft2(model.references), axes=(1, 2))) ** 2
    axis = np.arange(32) - 16
    radius = np.hypot(axis[:, None], axis[None, :])
    # the soft mask spreads each frequency over a few neighbours
    assert spectrum[:, radius > 9].sum() < 0.02 * spectrum[:, radius <= 9].sum()


def test_first_noise_is_the_power_of_the_images_over_what_the_mask_lets_pass(
    rng, make_particles, make_settings
):
    particles = make_particles(rng, 80, noise=2.0)
    particles.images = (2.0 * rng.standard_normal(particles.images.shape)).astype(np.float32)
    source, settings = particles.source(), make_settings(k_limit=12.0)
    noise = first_noise(source, settings, np.random.RandomState(0))
    power = source(np.arange(80), 12, 1).power.mean(axis=0)
    np.testing.assert_allclose(noise, power / source.noise_fraction, rtol=1e-5)
    model = starting_model(source, settings, np.random.RandomState(0))
    np.testing.assert_allclose(model.noise, noise, rtol=1e-6)
    np.testing.assert_allclose(model.noise[4:], 4.0, rtol=0.2)


@pytest.mark.parametrize("n_images", [1, 2])
def test_fewer_images_than_classes_are_enough_to_start(one_rng, make_particles, make_settings, n_images):
    model = starting_model(
        make_particles(one_rng, n_images).source(), make_settings(), np.random.RandomState(0)
    )
    assert np.isfinite(model.references).all() and np.all(model.noise > 0)


def test_images_that_are_zero_give_a_finite_start(one_rng, make_particles, make_settings):
    particles = make_particles(one_rng, 5)
    particles.images *= 0
    model = starting_model(particles.source(), make_settings(), np.random.RandomState(0))
    assert not model.references.any() and np.all(model.noise > 0)


@pytest.mark.parametrize("cache_bytes", [256e6, 0.0])
def test_a_start_has_the_same_bits_for_two_workers(
    one_rng, make_particles, make_settings, monkeypatch, cache_bytes, by_one_and_two
):
    monkeypatch.setattr(start, "IMAGES_PER_TASK", 7)
    particles = make_particles(one_rng, 60)
    one, two = by_one_and_two(
        lambda pool: particles.source(pool=pool, cache_bytes=cache_bytes),
        lambda s: starting_model(s, make_settings(), np.random.RandomState(0)),
    )
    np.testing.assert_array_equal(one.references, two.references)
    np.testing.assert_array_equal(one.noise, two.noise)


def test_a_reference_is_the_average_of_its_images_turned(rng, make_particles, make_settings):
    source, settings = make_particles(rng, 40, noise=0.0).source(), make_settings(n_references=2)
    space, again = settings.space(32, settings.k_start), np.random.RandomState(3)
    expected = []
    for _ in range(2):
        rows = np.sort(again.permutation(40)[:20])
        features = source(rows, space.n_rings, space.n_orders)
        turn = np.exp(-1j * again.uniform(0.0, 2.0 * np.pi, (20, 1)) * np.arange(space.n_orders))
        weight = features.ctf_power[:, 0].real.sum(axis=0)
        expected.append(((features.orders * turn[:, :, None]).sum(axis=0) / (weight + 0.1 * weight.mean())).T)
    values = from_angular_orders(np.array(expected, dtype=np.complex64), space.grid.n_angles)
    images = masked_references(images_from_polar(values, space.grid), settings)
    found = starting_model(source, settings, np.random.RandomState(3)).references
    np.testing.assert_allclose(found, images, atol=1e-3 * np.abs(images).max())


ALIKE = np.zeros(6)  # no reference explains its images better than another


@pytest.fixture
def half_dead(rng, make_particles, make_settings, make_model, blob_image):
    """Three kinds of particles, six references of which only two are not zero; the sums of a pass."""
    particles = make_particles(rng, 150, noise=0.3, kinds=(3, 4, 5))
    references = np.stack([blob_image(z) for z in (3, 4)] + [np.zeros((32, 32), np.float32)] * 4)
    settings = make_settings(n_references=6, k_start=9.0, k_limit=9.0, max_iter=6, tol=0.0)
    model = make_model(references, noise=0.09, k_max=9)
    source, space = particles.source(), settings.space(32, 9.0)
    result = source.run_pass(np.arange(150), model, space)
    model, stats = update_model(result.statistics, model, space.grid, settings, source.noise_fraction)
    return particles, source, space, settings, model, stats, result


def test_dead_references_come_back_and_the_evidence_grows(half_dead):
    _, source, space, settings, model, stats, _ = half_dead
    dead = dead_references(stats.mass)
    assert len(dead) == 4, stats.mass
    evidence, alive = [], []
    for revive in (False, True):
        current, sums = model, stats
        for turn in range(3):
            if revive:
                current, sums = reseed(
                    current,
                    sums,
                    space.grid,
                    settings,
                    source.noise_fraction,
                    np.random.RandomState(turn),
                    ALIKE,
                )
            passed = source.run_pass(np.arange(150), current, space).statistics
            current, sums = update_model(passed, current, space.grid, settings, source.noise_fraction)
        *_, fit = full_passes(source, settings, PassState(current, source.known.shift_px))
        evidence.append(fit.log_evidence[-1])
        last = source.run_pass(np.arange(150), fit.model, space).statistics
        alive.append(6 - len(dead_references(last.mass)))
    assert alive[0] == 2 and alive[1] >= 5, alive
    assert evidence[1] > evidence[0] + 1.0, evidence


def test_the_halves_share_the_sums_and_lie_about_the_class_that_was_split(half_dead):
    _, source, space, settings, model, stats, _ = half_dead
    rng = np.random.RandomState(0)
    split, halves = reseed(model, stats, space.grid, settings, source.noise_fraction, rng, ALIKE)
    lost = stats.mass[halves.mass > 2 * stats.mass].sum()  # the little that dead classes had
    assert halves.mass.sum() == pytest.approx(stats.mass.sum() - lost, rel=1e-6)
    donors = np.argsort(-stats.mass)[:2]  # only two classes can give
    revived = np.flatnonzero(halves.mass > 2 * stats.mass)
    assert len(revived) == 2 and not set(revived) & set(donors)
    for name in ("numerator", "denominator"):
        before, after = getattr(stats, name), getattr(halves, name)
        both = np.concatenate([donors, revived])
        total = before[donors].sum(axis=0)
        np.testing.assert_allclose(after[both].sum(axis=0), total, atol=1e-4 * np.abs(total).max())
        others = np.setdiff1d(np.arange(6), both)
        np.testing.assert_array_equal(after[others], before[others])
    for field in fields(Statistics):
        if field.name not in ("numerator", "denominator", "mass", "shift_sum"):
            np.testing.assert_array_equal(getattr(halves, field.name), getattr(stats, field.name))
    # the model fits the sums: they give references that differ by what the model's differ by
    found = solve_references(polar_statistics(halves, space.grid), np.full((6, 9), 1e-6))
    kept = polar_transform(split.references, space.grid)
    first, second = (
        revived[0],
        donors[np.argmin([np.abs(split.references[d] - split.references[revived[0]]).sum() for d in donors])],
    )
    one, other = found[first] - found[second], kept[first] - kept[second]
    assert np.abs(one).max() > 0
    assert (one * other.conj()).real.sum() > 0.8 * np.linalg.norm(one) * np.linalg.norm(other)
    assert not np.array_equal(split.references[first], model.references[first])
    assert split.weight.sum() == pytest.approx(model.weight.sum())


def test_nothing_changes_while_all_classes_live(half_dead):
    _, source, space, settings, model, stats, _ = half_dead
    living = replace(stats, mass=np.full(6, 25.0))
    same = reseed(model, living, space.grid, settings, source.noise_fraction, np.random.RandomState(0), ALIKE)
    assert same[0] is model and same[1] is living


def test_the_larger_and_worse_explained_class_is_split_first(half_dead):
    _, source, space, settings, model, stats, _ = half_dead
    masses = replace(stats, mass=np.array([40.0, 40.0, 0.0, 30.0, 20.0, 20.0]))
    for explained, donor in ((ALIKE, 0), (np.array([9.0, 2.0, 5.0, 5.0, 0.0, 9.0]), 1)):
        _, after = reseed(
            model, masses, space.grid, settings, source.noise_fraction, np.random.RandomState(0), explained
        )
        assert after.mass[2] == after.mass[donor] == 20.0
        assert np.sum(after.mass != masses.mass) == 2


def test_dead_is_less_than_a_twentieth_of_the_mean_or_two_images():
    np.testing.assert_array_equal(dead_references(np.array([100.0, 4.9, 195.1])), [1])
    np.testing.assert_array_equal(dead_references(np.array([10.0, 1.9, 2.1])), [1])
    np.testing.assert_array_equal(dead_references(np.array([1.0, 0.4, 1.0, 0.9])), [1])  # few images: by half
    assert not len(dead_references(np.full(4, 1.0)))


def test_mean_evidence_of_a_class_without_images_is_the_overall_mean():
    label, evidence = np.array([0, 0, 2]), np.array([1.0, 3.0, 8.0])
    np.testing.assert_allclose(mean_evidence(label, evidence, 3), [(4 + 4) / 3, 4.0, (8 + 4) / 2])
