"""Ranges of shifts that follow the images, Eq. (4.16): features, the rule, passes and poses."""

from dataclasses import replace

import numpy as np
import pytest

from sklearn_cryoem.alignment.em import PassState, full_passes
from sklearn_cryoem.alignment.frames import KnownPoses
from sklearn_cryoem.alignment.passes import run_pass
from sklearn_cryoem.alignment.poses import find_poses, followed_shifts
from sklearn_cryoem.alignment.search import shift_grid

RANGE, REACH = 2.0, 7.0


def known_shifts(particles, shift_px):
    n = len(particles.images)
    return KnownPoses(np.zeros(n), shift_px, np.zeros(n, dtype=bool))


def assert_same_features(some, others):
    for name in ("orders", "ctf_power", "power"):
        np.testing.assert_array_equal(getattr(some, name), getattr(others, name))


@pytest.mark.parametrize("cache_bytes", [0.0, 1e9])
def test_features_are_those_at_the_shift_of_the_moment(one_rng, make_particles, cache_bytes):
    particles = make_particles(one_rng, 6)
    shift = one_rng.uniform(-3, 3, (6, 2))
    rows = np.arange(6)
    source = particles.source(cache_bytes=cache_bytes)
    before = source(rows, 8, 10)
    after = source.cache(rows, np.where(rows[:, None] < 4, shift, 0.0), 8, 10)
    wanted = particles.source(known=known_shifts(particles, shift), cache_bytes=cache_bytes)(rows, 8, 10)
    assert_same_features(after.take(rows[:4], 8, 10), wanted.take(rows[:4], 8, 10))
    assert_same_features(after.take(rows[4:], 8, 10), before.take(rows[4:], 8, 10))


def test_images_far_out_are_followed_as_far_as_the_reach(make_settings):
    settings = make_settings(max_shift_px=RANGE, reach_px=REACH)
    known = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    rows = np.array([0, 1, 3])
    found = np.array([[0.9, 0.0], [1.0, -1.5], [0.0, 9.0]])  # within half the range, beyond it, beyond all
    shift = followed_shifts(known, settings, rows, known, found, np.ones(3))
    np.testing.assert_allclose(shift, [[0, 0], [1.0, -1.5], [0, 0], [0.0, REACH - RANGE]])
    again = followed_shifts(known, settings, rows[2:], shift, np.array([[0.0, 8.0]]), np.ones(1))
    np.testing.assert_array_equal(again, shift)  # as far as it goes
    noise = followed_shifts(known, settings, rows, known, found, np.zeros(3))
    np.testing.assert_array_equal(noise, known)  # what noise explains as well is not followed
    short = followed_shifts(known, make_settings(max_shift_px=RANGE), rows, known, found, np.ones(3))
    np.testing.assert_array_equal(short, known)  # no reach beyond the range


@pytest.mark.parametrize("reach", [0.0, REACH])
def test_poses_of_images_beyond_one_range_are_found_where_the_reach_allows(
    rng, make_particles, make_settings, make_model, references, reach
):
    far = rng.uniform(0, 2 * np.pi, 40)
    shift = 5.0 * np.column_stack([np.cos(far), np.sin(far)])
    particles = make_particles(rng, 40, noise=0.15, poses=(rng.uniform(0, 2 * np.pi, 40), shift))
    settings = make_settings(max_shift_px=RANGE, reach_px=reach)
    model = make_model(references, noise=0.02, k_max=11)
    found = find_poses(particles.source(), model, settings)
    error = np.hypot(*(found.shift_px - particles.shift_px).T)
    if reach:
        assert np.median(error) < 0.2
        assert (error > 1.0).mean() < 0.1
        assert (found.label == particles.kind).mean() > 0.9
    else:
        assert error.min() > 5.0 - RANGE - 2.0  # the search, and two steps of refinement


def test_passes_follow_images_as_far_as_they_lie(rng, make_particles, make_settings, make_model, blob_image):
    shift = np.column_stack([rng.uniform(2.3, 3.3, 60), np.zeros(60)])
    shift[::2] *= -1.0  # on average in the centre
    poses = rng.uniform(0, 2 * np.pi, 60), shift
    particles = make_particles(rng, 60, noise=0.15, kinds=(3, 4, 5), poses=poses)
    references = np.stack([blob_image(kind) for kind in (3, 4, 5)])
    settings = make_settings(max_shift_px=RANGE, reach_px=REACH, max_iter=6, tol=0.0)
    model = make_model(references, noise=0.02, k_max=11, shift_sigma_px=3.0)
    source = particles.source()
    *_, state = full_passes(source, settings, PassState(model, source.known.shift_px))
    assert (np.hypot(*state.start_shift_px.T) > 0).mean() > 0.9
    assert np.median(np.hypot(*(state.start_shift_px - shift).T)) < 1.0  # the search has steps of 1 pixel
    assert np.hypot(*state.start_shift_px.T).max() <= REACH - RANGE + 1e-9


def test_sums_of_shifts_count_from_the_picks(rng, make_particles, make_settings, make_model, references):
    particles = make_particles(rng, 50, noise=0.15, max_shift=1.0)
    model = make_model(references, noise=0.02, k_max=11, shift_sigma_px=50.0)
    fine = shift_grid(2.0, 0.25)  # so that half a pixel is a whole number of steps
    space = replace(make_settings().space(32, 11.0), shifts_px=fine, shift_step_px=0.25, coarse=None)
    rows, source = np.arange(50), particles.source()
    here = source.run_pass(rows, model, space).statistics
    moved = run_pass(source, rows, np.full((50, 2), 0.5), model, space).statistics
    assert np.abs(here.shift_sum).max() > 1.0
    np.testing.assert_allclose(moved.shift_sum, here.shift_sum, atol=0.05 * moved.mass.max())


def test_a_stopped_alignment_remembers_where_images_lie(
    one_rng, make_particles, make_settings, make_model, references
):
    particles = make_particles(one_rng, 60, noise=0.15, max_shift=4.0)
    settings = make_settings(max_shift_px=RANGE, reach_px=REACH, tol=0.0, max_iter=4)
    source = particles.source()
    model = make_model(references, noise=0.02, k_max=11, shift_sigma_px=3.0)
    *_, second, _, whole = full_passes(source, settings, PassState(model, source.known.shift_px))
    *_, resumed = full_passes(particles.source(), settings, second)
    np.testing.assert_array_equal(resumed.start_shift_px, whole.start_shift_px)
    np.testing.assert_array_equal(resumed.model.references, whole.model.references)
    assert whole.start_shift_px.any()
