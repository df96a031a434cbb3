from dataclasses import fields, replace

import numpy as np
import pytest

from sklearn_cryoem.alignment import features as alignment_features
from sklearn_cryoem.alignment import passes, prepared
from sklearn_cryoem.alignment.expectation import expect
from sklearn_cryoem.alignment.frames import Frames
from sklearn_cryoem.alignment.maximisation import Statistics, accumulate
from sklearn_cryoem.alignment.passes import placed_rows
from sklearn_cryoem.alignment.poses import find_poses
from sklearn_cryoem.alignment.prepared import PreparedSearch
from sklearn_cryoem.alignment.products import reference_bank
from sklearn_cryoem.physics.polar import polar_transform


@pytest.fixture
def setting(one_rng, make_particles, make_settings, make_model, references):
    particles = make_particles(one_rng, 30, noise=0.5)
    model = make_model(references, noise=0.4, balance=np.array([0.3, -0.3, 0.0]))
    return particles.source(), model, make_settings().space(32, 10.0)


def assert_same_sums(one, other, rtol):
    for field in fields(Statistics):
        a, b = getattr(one, field.name), getattr(other, field.name)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max(initial=0), err_msg=field.name)


def test_a_pass_is_one_e_step_and_its_sums(setting):
    source, model, space = setting
    rows = np.array([3, 7, 8, 20, 29])
    result = source.run_pass(rows, model, space)
    features = source(rows, space.n_rings, space.n_orders)
    bank = reference_bank(polar_transform(model.references, space.grid), space, source.n_even)
    precision = np.full(space.n_rings, 1 / 0.4, np.float32)
    posterior = expect(features, precision, bank, space, model.log_prior(space))
    np.testing.assert_allclose(result.log_evidence, posterior.log_evidence, rtol=1e-6)
    np.testing.assert_array_equal(result.label, posterior.best_row // space.n_shifts)
    expected = accumulate(features, posterior, space, 3, source.n_even)
    assert_same_sums(result.statistics, expected, rtol=1e-6)
    assert result.statistics.mass.sum() == pytest.approx(5, rel=1e-6)


def test_true_references_tell_the_classes_apart(rng, make_particles, make_settings, make_model, references):
    particles = make_particles(rng, 30, noise=0.2, max_shift=1.0)
    space = make_settings().space(32, 10.0)
    result = particles.source().run_pass(np.arange(30), make_model(references, noise=0.04), space)
    assert np.mean(result.label == particles.kind) > 0.95
    assert result.log_evidence.min() > 0


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (prepared, "IMAGES_PER_BLOCK", 7),
        (prepared, "BLOCKS_PER_BANK", 1),
        (passes, "IMAGES_PER_TASK", (4, 1024)),
        (passes, "IMAGES_PER_SUM", 5),
        (passes, "CELLS_PER_SUM", 1),
        (prepared, "BANK_BYTES", 1.0),
    ],
)
def test_cutting_a_pass_differently_changes_nothing(setting, monkeypatch, module, name, value):
    source, model, space = setting
    whole = source.run_pass(np.arange(30), model, space)
    monkeypatch.setattr(prepared, "IMAGES_PER_BLOCK", 6)
    monkeypatch.setattr(module, name, value)
    parts = source.run_pass(np.arange(30), model, space)
    np.testing.assert_allclose(parts.log_evidence, whole.log_evidence, rtol=1e-5)
    assert_same_sums(parts.statistics, whole.statistics, rtol=1e-4)


@pytest.mark.parametrize("room", [0.5, 0.0])
def test_two_workers_give_the_same_bits_as_one(
    setting, one_rng, make_particles, monkeypatch, by_one_and_two, room
):
    _, model, space = setting
    monkeypatch.setattr(alignment_features, "ROOM_SHARE", room)  # 0: each makes its references
    monkeypatch.setattr(passes, "IMAGES_PER_TASK", (4, 8))
    particles = make_particles(one_rng, 30, noise=0.5)
    one, two = by_one_and_two(particles.source, lambda s: s.run_pass(np.arange(30), model, space))
    np.testing.assert_array_equal(one.log_evidence, two.log_evidence)
    for field in fields(Statistics):
        np.testing.assert_array_equal(
            getattr(one.statistics, field.name), getattr(two.statistics, field.name)
        )


def test_posteriors_come_in_the_order_of_the_rows(setting, monkeypatch):
    source, model, space = setting
    monkeypatch.setattr(prepared, "IMAGES_PER_BLOCK", 4)
    rows = np.array([9, 2, 17, 4, 11, 0])
    shards = list(
        PreparedSearch.of(source, model, space).posteriors(source.cache, rows, source.known.shift_px[rows])
    )
    assert [len(features) for features, _ in shards] == [3, 3]
    power = np.concatenate([features.power for features, _ in shards])
    np.testing.assert_allclose(power, source(rows, space.n_rings, space.n_orders).power, rtol=1e-5)


def test_an_empty_class_takes_no_image_and_gives_no_nan(setting):
    source, model, space = setting
    model = replace(model, weight=np.array([0.5, 0.0, 0.5]), balance=np.zeros(3))
    stats = source.run_pass(np.arange(30), model, space).statistics
    assert stats.mass[1] == 0 and not stats.numerator[1].any()
    assert all(np.isfinite(getattr(stats, field.name)).all() for field in fields(Statistics))


@pytest.mark.parametrize(
    ("n_rows", "sizes"),
    [
        (1, [1]),
        (150, [150]),
        (200, [100, 100]),
        (500, [125] * 4),
        (2000, [250] * 8),
        (9000, [563] * 8 + [562] * 8),
    ],
)
def test_tasks_are_even_and_neither_small_nor_large(n_rows, sizes):
    rows = np.arange(n_rows)
    tasks = [part for part, _ in placed_rows(rows, np.zeros((n_rows, 2)))]
    np.testing.assert_array_equal(np.concatenate(tasks), rows)
    assert [len(task) for task in tasks] == sizes


@pytest.fixture
def two_faces(rng, make_particles):
    """Particles, which of them are mirrored, y -> -y about pixel D // 2, CTF and all, and these."""
    particles, other = make_particles(rng, 30, noise=0.5), rng.random(30) < 0.5
    images = particles.images.copy()
    images[other, 1:] = images[other, :0:-1]  # row 0 has no twin, and lies beyond the mask
    azimuth = np.where(other, -1, 1) * particles.table.astigmatism_angle_rad
    return (
        particles,
        other,
        replace(particles, images=images, table=replace(particles.table, astigmatism_angle_rad=azimuth)),
    )


@pytest.mark.parametrize("broad", [False, True])
def test_mirrored_images_change_no_sum_where_mirrors_are_searched(
    two_faces, make_settings, make_model, references, broad
):
    particles, other, mirrored = two_faces
    model, rows = make_model(references, noise=0.4), np.arange(30)
    space = make_settings(mirror=True).space(32, 10.0)
    one, two = (some.source().run_pass(rows, model, space, broad=broad) for some in (particles, mirrored))
    np.testing.assert_array_equal(one.label % 3, two.label % 3)
    np.testing.assert_array_equal((one.label >= 3) ^ other, two.label >= 3)
    np.testing.assert_allclose(
        one.shift_px * np.column_stack([np.ones(30), np.where(other, -1, 1)]), two.shift_px, atol=1e-6
    )
    assert_same_sums(one.statistics, two.statistics, rtol=1e-3)


def test_evidence_with_mirrors_is_that_of_the_image_and_of_its_mirror_image(
    two_faces, make_settings, make_model, references
):
    particles, other, mirrored = two_faces
    model, space, rows = (
        make_model(references, noise=0.4),
        make_settings(mirror=True).space(32, 10.0),
        np.flatnonzero(other),
    )
    both = particles.source().run_pass(rows, model, space)
    space = replace(space, mirror=False)
    plain = [some.source().run_pass(rows, model, space).log_evidence for some in (particles, mirrored)]
    np.testing.assert_allclose(both.log_evidence, np.logaddexp(*plain) - np.log(2.0), atol=2e-3)
    assert np.abs(plain[0] - plain[1]).max() > 1.0, "the test would not notice"


def test_mirroring_an_image_flips_whether_it_is_mirrored_and_nothing_else(
    two_faces, make_settings, make_model, references
):
    particles, other, mirrored = two_faces
    frames = Frames(
        np.array([0, 1, 0]),
        np.array([0.3, -1.0, 2.0]),
        np.array([[1.0, 0.5], [0, -0.5], [0.2, 0]]),
        np.array([False, True, False]),
    )
    model, settings = make_model(references, noise=0.4, k_max=10.0), make_settings(mirror=True)
    one, two = (find_poses(some.source(), model, settings, frames=frames) for some in (particles, mirrored))
    np.testing.assert_array_equal(one.label, two.label)
    np.testing.assert_array_equal(one.mirrored ^ other, two.mirrored)
    turn = np.angle(np.exp(1j * (one.angle_rad - two.angle_rad)))
    assert np.abs(turn).max() < 0.01, turn
    sign = np.column_stack([np.ones(30), np.where(other, -1, 1)])
    np.testing.assert_allclose(one.shift_px * sign, two.shift_px, atol=0.02)
