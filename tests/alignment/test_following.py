"""Ranges of shifts that follow the images, Eq. (4.16): features, the rule, passes and poses."""

from dataclasses import replace

import numpy as np
import pytest

from sklearn_cryoem._core.progress import progress
from sklearn_cryoem.alignment.em import full_passes
from sklearn_cryoem.alignment.known import KnownPoses
from sklearn_cryoem.alignment.passes import run_pass
from sklearn_cryoem.alignment.poses import find_poses
from sklearn_cryoem.alignment.state import PassState

RANGE, REACH = 2.0, 7.0


def known_shifts(particles, shift_px):
    n = len(particles.images)
    return KnownPoses(np.zeros(n), shift_px, np.zeros(n, dtype=bool))


def assert_same_features(some, others):
    for name in ("orders", "ctf_power", "power"):
        np.testing.assert_array_equal(getattr(some, name), getattr(others, name))


@pytest.mark.parametrize("cache_bytes", [0.0, 1e9])
def test_features_are_those_at_the_shift_of_the_moment(rng, make_particles, cache_bytes):
    particles = make_particles(rng, 6)
    shift = rng.uniform(-3, 3, (6, 2))
    rows = np.arange(6)
    source = particles.source(cache_bytes=cache_bytes)
    before = source(rows, 8, 10)
    source.shift_px = np.where(rows[:, None] < 4, shift, 0.0)
    after = source(rows, 8, 10)
    wanted = particles.source(known=known_shifts(particles, shift), cache_bytes=cache_bytes)(rows, 8, 10)
    assert_same_features(after.take(rows[:4], 8, 10), wanted.take(rows[:4], 8, 10))
    assert_same_features(after.take(rows[4:], 8, 10), before.take(rows[4:], 8, 10))


def test_images_far_out_are_followed_as_far_as_the_reach(rng, make_particles):
    particles = make_particles(rng, 4)
    first = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    source = particles.source(known=known_shifts(particles, first))
    rows = np.array([0, 1, 3])
    lies = np.array([[0.9, 0.0], [1.0, -1.5], [0.0, 9.0]])  # within half the range, beyond it, beyond all
    moved = source.follow(rows, lies, RANGE, REACH)
    assert moved.tolist() == [1, 3]
    np.testing.assert_allclose(source.shift_px, [[0, 0], [1.0, -1.5], [0, 0], [0.0, REACH - RANGE]])
    assert (
        source.follow(np.array([3]), np.array([[0.0, 8.0]]), RANGE, REACH).tolist() == []
    )  # as far as it goes
    np.testing.assert_array_equal(source.known.shift_px, first)


def test_without_reach_beyond_the_range_nothing_is_followed(rng, make_particles):
    source = make_particles(rng, 3).source()
    assert not len(source.follow(np.arange(3), np.full((3, 2), 1.4), RANGE, 0.0))
    assert not source.shift_px.any()


@pytest.mark.parametrize("reach", [0.0, REACH])
def test_poses_of_images_beyond_one_range_are_found_where_the_reach_allows(
    rng, make_particles, make_settings, make_model, references, reach
):
    far = rng.uniform(0, 2 * np.pi, 40)
    shift = 5.0 * np.column_stack([np.cos(far), np.sin(far)])
    particles = make_particles(rng, 40, noise=0.15, poses=(rng.uniform(0, 2 * np.pi, 40), shift))
    settings = make_settings(max_shift_px=RANGE, reach_px=reach, shift_step_px=1.0)
    model = make_model(references, noise=0.02, k_max=11)
    found = find_poses(particles.source(), model, settings)
    error = np.hypot(*(found.shift_px - particles.shift_px).T)
    if reach:
        assert np.median(error) < 0.2
        assert (error > 1.0).mean() < 0.1
        assert (found.cluster == particles.kind).mean() > 0.9
    else:
        assert error.min() > 5.0 - RANGE - 2.0  # the search, and two steps of refinement


def test_passes_follow_images_as_far_as_they_lie(rng, make_particles, make_settings, make_model, blob_image):
    shift = np.column_stack([rng.uniform(2.3, 3.3, 60), np.zeros(60)])
    shift[::2] *= -1.0  # on average in the centre
    poses = rng.uniform(0, 2 * np.pi, 60), shift
    particles = make_particles(rng, 60, noise=0.15, kinds=(3, 4, 5), poses=poses)
    references = np.stack([blob_image(kind) for kind in (3, 4, 5)])
    settings = make_settings(max_shift_px=RANGE, reach_px=REACH, shift_step_px=1.0, max_iter=6, tol=0.0)
    model = make_model(references, noise=0.02, k_max=11, shift_sigma_px=3.0)
    source = particles.source()
    with progress(6, "aligning", verbose=0) as bar:
        full_passes(source, settings, PassState(model, scale=source.scale), bar=bar)
    far = np.hypot(*source.shift_px.T) > 0
    assert far.mean() > 0.9
    assert np.median(np.hypot(*(source.shift_px - shift).T)) < 1.0  # the search has steps of 1 pixel
    assert np.hypot(*source.shift_px.T).max() <= REACH - RANGE + 1e-9


def test_sums_of_shifts_count_from_the_picks(rng, make_particles, make_settings, make_model, references):
    particles = make_particles(rng, 50, noise=0.15, max_shift=1.0)
    settings = make_settings(shift_step_px=0.25, adaptive_fraction=1.0)
    model = make_model(references, noise=0.02, k_max=11, shift_sigma_px=50.0)
    space = settings.space(32, 11.0)
    rows = np.arange(50)
    here = run_pass(particles.source(), rows, model, space).statistics
    source = particles.source()
    source.shift_px = np.full((50, 2), 0.5)
    moved = run_pass(source, rows, model, space).statistics
    assert np.abs(here.shift_sum).max() > 1.0
    np.testing.assert_allclose(moved.shift_sum, here.shift_sum, atol=0.05 * moved.mass.max())


def test_a_stopped_alignment_remembers_where_images_lie(
    rng, make_particles, make_settings, make_model, references
):
    particles = make_particles(rng, 60, noise=0.15, max_shift=4.0)
    settings = make_settings(max_shift_px=RANGE, reach_px=REACH, shift_step_px=1.0, tol=0.0)
    model = make_model(references, noise=0.02, k_max=11, shift_sigma_px=3.0)
    kept = []

    class Keeper:
        def keep(self, state, now=False):
            kept.append(state)

    def fit(state, max_iter):
        source = particles.source()
        with progress(max_iter, "aligning", verbose=0) as bar:
            passes = replace(settings, max_iter=max_iter)
            return source, full_passes(source, passes, state, bar=bar, keeper=Keeper())

    straight, whole = fit(PassState(model), 4)
    kept.clear()
    fit(PassState(model), 2)
    resumed, rest = fit(kept[-1], 4)
    np.testing.assert_array_equal(resumed.shift_px, straight.shift_px)
    np.testing.assert_array_equal(rest.model.references, whole.model.references)
    assert straight.shift_px.any()
