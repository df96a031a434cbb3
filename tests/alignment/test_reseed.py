"""Dead classes come back to life."""

from dataclasses import fields, replace

import numpy as np
import pytest

from sklearn_cryoem.alignment.em import PassState, full_passes
from sklearn_cryoem.alignment.maximisation import Statistics
from sklearn_cryoem.alignment.model import polar_statistics, solve_references, update_model
from sklearn_cryoem.alignment.start import dead_references, mean_evidence, reseed
from sklearn_cryoem.physics.polar import polar_transform

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
