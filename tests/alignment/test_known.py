"""Searches round known poses, against searches of everything."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from sklearn_cryoem.alignment import passes
from sklearn_cryoem.alignment.classes import unite_references
from sklearn_cryoem.alignment.em import PassState, fit_alignment, full_passes
from sklearn_cryoem.alignment.expectation import LogPrior, expect
from sklearn_cryoem.alignment.frames import KnownPoses, to_image_frame
from sklearn_cryoem.alignment.poses import find_poses
from sklearn_cryoem.alignment.products import reference_bank
from sklearn_cryoem.alignment.start import starting_model
from sklearn_cryoem.physics.polar import polar_transform
from sklearn_cryoem.physics.rotation import aligned_images

ANGLE, SHIFT = 0.2, 1.0  # largest errors of the poses given, radians and pixels


def turn_between(one, other):
    return np.abs(np.angle(np.exp(1j * (one - other))))


def perturbed(particles, rng, angle=ANGLE, shift=SHIFT):
    """True poses with errors evenly spread up to the sizes given."""
    n = len(particles.kind)
    return KnownPoses(
        particles.angle_rad + rng.uniform(-angle, angle, n),
        particles.shift_px + rng.uniform(-shift, shift, (n, 2)),
        np.zeros(n, dtype=bool),
    )


@pytest.mark.parametrize("mirrored", [False, True])
def test_images_brought_into_their_poses_are_upright_and_so_are_their_ctfs(
    rng, make_particles, references, mirrored
):
    particles = make_particles(rng, 6, noise=0.0, split_angstrom=8000.0)
    known = KnownPoses(particles.angle_rad, particles.shift_px, np.full(6, mirrored))
    wide = {"mask_radius_px": 13.5, "mask_edge_px": 2.0}
    found = particles.source(known=known, **wide)(np.arange(6), 10, 20)
    # the same images and CTFs, turned by the NUFFT and by the table
    upright = aligned_images(
        particles.source(known=known, **wide).masked(np.arange(6)),
        known.angle_rad,
        known.shift_px,
        known.mirrored,
    )
    turned = replace(particles, images=upright)
    sign = -1.0 if mirrored else 1.0
    turned.ctf = lambda rows, radius, azimuth: particles.table[rows].evaluate(
        radius / (32 * 4.0), sign * azimuth, sign * particles.angle_rad[rows]
    )
    expected = turned.source(mask_radius_px=16.0, mask_edge_px=6.0)(np.arange(6), 10, 20)
    for name in ("orders", "ctf_power", "power"):
        a, b = getattr(found, name), getattr(expected, name)
        n_even = min(a.shape[1], b.shape[1])
        error = np.abs(a[:, :n_even] - b[:, :n_even]).max() / np.abs(b).max()
        assert error < 0.02, f"{name} off by {error:.2g} of the largest"


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_poses_one_after_the_other_align_like_their_sum(rng, blob_image, mirrored, again):
    image = blob_image(0)[None]  # of mean zero, which is dropped
    first = KnownPoses(np.array([0.7]), np.array([[1.0, -2.0]]), np.array([mirrored]))
    once = aligned_images(image, first.angle_rad, first.shift_px, first.mirrored)
    second = np.array([-1.9]), np.array([[0.5, 1.5]]), np.array([again])
    twice = aligned_images(once, *second)
    total = first.followed_by(*second)
    whole = aligned_images(image, total.angle_rad, total.shift_px, total.mirrored)
    assert 0 <= total.angle_rad[0] < 2 * np.pi
    np.testing.assert_allclose(whole, twice, atol=1e-3 * np.abs(image).max())


@pytest.mark.parametrize("split_angstrom", [None, 8000.0])
def test_the_evidence_at_a_pose_does_not_depend_on_what_was_known(
    rng, make_particles, make_settings, references, split_angstrom
):
    # images turned by cells of the circle, so that cells of window and circle are the same poses
    n, settings = 4, make_settings()
    circle = settings.space(32, 13.0)
    window = replace(settings, angle_range_rad=5.0 * circle.angle_step_rad).space(32, 13.0)
    assert window.n_angles == 11 and window.angle_step_rad == pytest.approx(circle.angle_step_rad)
    cell = np.array([3, 20, 41, 60]) % circle.n_angles
    psi = circle.angles_rad[cell]
    particles = make_particles(
        rng, n, noise=0.5, split_angstrom=split_angstrom, poses=(psi, np.zeros((n, 2)))
    )
    tables = []
    for space, known in (
        (circle, KnownPoses.identity(n)),
        (window, KnownPoses(psi, np.zeros((n, 2)), np.zeros(n, dtype=bool))),
    ):
        source = particles.source(known=known)
        features = source(np.arange(n), space.n_rings, space.n_orders)
        bank = reference_bank(polar_transform(references, space.grid), space, source.n_even)
        flat = LogPrior(np.zeros(3), np.zeros(space.n_shifts))
        precision = np.full(space.n_rings, 0.05, np.float32)
        posterior = expect(features, precision, bank, space, flat, floor=1e-30)
        log = np.log(posterior.weight.astype(np.float64)) + posterior.log_evidence[posterior.image]
        table = np.full((n, 3 * space.n_shifts, space.n_angles), np.nan)
        table[posterior.image, posterior.row, posterior.angle] = log + np.log(space.n_angles)
        tables.append(table)
    near = (cell[:, None] + np.arange(-5, 6)) % circle.n_angles  # cells of the circle in each window
    # a shift u in the frame of the reference is the same in both: turns come after it
    expected = np.take_along_axis(tables[0], near[:, None, :], axis=2)
    assert np.isfinite(expected).all() and np.isfinite(tables[1]).all()
    np.testing.assert_allclose(tables[1], expected, atol=2e-3 * np.ptp(expected))


def test_a_window_of_the_whole_circle_finds_what_a_search_of_everything_finds(
    rng, make_particles, make_settings, make_model, references
):
    particles = make_particles(rng, 60, noise=0.15, max_shift=0.7)
    model = make_model(references, noise=0.15**2, k_max=11, shift_sigma_px=50.0)
    settings = make_settings()
    everything = find_poses(particles.source(), model, settings)
    source = particles.source(known=perturbed(particles, rng, shift=0.5))
    round_known = find_poses(source, model, replace(settings, angle_range_rad=np.pi))
    np.testing.assert_array_equal(round_known.label, everything.label)
    assert np.degrees(np.median(turn_between(round_known.angle_rad, everything.angle_rad))) < 0.5
    assert np.median(np.hypot(*(round_known.shift_px - everything.shift_px).T)) < 0.1
    assert np.median(round_known.log_evidence / everything.log_evidence) == pytest.approx(1.0, abs=0.03)


def test_a_small_window_improves_on_the_poses_given_for_less_work(
    rng, make_particles, make_settings, make_model, references
):
    particles = make_particles(rng, 80, noise=0.3, kinds=(0, 1))
    model = make_model(references, noise=0.09, k_max=11, shift_sigma_px=1.0)
    known = perturbed(particles, rng)
    everywhere = make_settings(max_shift_px=3.0)
    settings = make_settings(max_shift_px=1.5, angle_range_rad=1.1 * ANGLE)
    assert settings.space(32, 11.0).work < 0.3 * everywhere.space(32, 11.0).work
    found = find_poses(particles.source(known=known), model, settings)
    for error, given in (
        (
            turn_between(found.angle_rad, particles.angle_rad),
            turn_between(known.angle_rad, particles.angle_rad),
        ),
        (
            np.hypot(*(found.shift_px - particles.shift_px).T),
            np.hypot(*(known.shift_px - particles.shift_px).T),
        ),
    ):
        assert np.median(error) < 0.35 * np.median(given), (np.median(error), np.median(given))


@pytest.mark.parametrize("half_window", [0.0, 0.02, 0.15])
def test_poses_never_leave_the_window(
    rng, make_particles, make_settings, make_model, references, half_window
):
    particles = make_particles(rng, 40, noise=1.0)
    known = perturbed(particles, rng, angle=1.0)  # most true poses are outside
    settings = make_settings(angle_range_rad=half_window, max_shift_px=1.0)
    found = find_poses(particles.source(known=known), make_model(references, noise=1.0), settings)
    turn = turn_between(found.angle_rad, known.angle_rad)
    assert turn.max() <= half_window + 1e-9
    assert half_window == 0.0 or turn.max() > 0.9 * half_window
    moved = np.hypot(*(found.shift_px - known.shift_px).T)
    assert moved.max() <= 1.0 + 2 * np.hypot(1.0, 1.0)  # two rounds of refinement, a step on each axis


def test_a_start_from_known_poses_is_not_round_and_follows_the_seed(rng, make_particles, make_settings):
    particles = make_particles(rng, 60, noise=0.0, split_angstrom=None, kinds=(3,))
    known = perturbed(particles, rng, angle=0.0, shift=0.0)
    one, again, other = (
        starting_model(
            particles.source(known=known), make_settings(angle_range_rad=0.1), np.random.RandomState(seed)
        )
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.references, again.references)
    assert np.abs(one.references - other.references).max() > 0
    average = aligned_images(particles.images, known.angle_rad, known.shift_px).mean(axis=0)
    for reference in one.references:
        assert np.corrcoef(reference.ravel(), average.ravel())[0, 1] > 0.9


@pytest.fixture
def local(rng, make_particles, make_settings):
    """Particles of three classes, poses with errors, and settings of a search round them."""
    particles = make_particles(rng, 150, noise=0.3, split_angstrom=2000.0, kinds=(3, 4, 5), max_shift=3.0)
    settings = make_settings(
        n_batches=12, batch_size=50, max_iter=4, angle_range_rad=1.5 * ANGLE, max_shift_px=1.5
    )
    return particles, perturbed(particles, rng), settings


def test_an_alignment_round_known_poses_finds_classes_and_better_poses(local):
    particles, known, settings = local
    source = particles.source(known=known, mask_radius_px=11.5)
    # as with a start from nothing, one start in a few ends with two classes in one
    starts = [fit_alignment(source, settings, np.random.RandomState(seed))[0] for seed in range(3)]
    fitted = max(starts, key=lambda start: start.log_evidence[-1])
    found = find_poses(source, fitted.model, settings)
    assert adjusted_rand_score(particles.kind, found.label) > 0.8
    error = turn_between(found.angle_rad, particles.angle_rad)
    given = turn_between(known.angle_rad, particles.angle_rad)
    # the frame is that of the known poses: no turn of a class has to be taken off first
    assert np.median(error) < 0.5 * np.median(given), np.degrees([np.median(error), np.median(given)])


def test_references_keep_to_the_frame_of_the_known_poses(local, make_model, blob_image):
    particles, known, settings = local
    upright = np.stack([blob_image(z) for z in (3, 4, 5)])
    askew = np.stack([blob_image(z, 0.12) for z in (3, 4, 5)])
    passes = replace(settings, max_iter=3, tol=0.0, k_limit=9.0)
    source = particles.source(known=known, k_limit=9.0)
    model = make_model(askew, noise=0.09, k_max=9)
    *_, fitted = full_passes(source, passes, PassState(model, source.known.shift_px))
    overlap = [
        [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(fitted.model.references, other, strict=True)]
        for other in (upright, askew)
    ]
    assert np.all(np.array(overlap[0]) > np.array(overlap[1])), overlap
    np.testing.assert_array_equal(fitted.stats.turn_sum, 0.0)
    seen = np.ones((3, 9))
    frames = unite_references(fitted.model, seen, np.ones(3), passes, 2, mirror=True)
    assert not frames.angle_rad.any() and not frames.mirrored.any() and not frames.shift_px.any()


def test_turning_the_sums_takes_the_mean_angle_of_each_class_to_zero(local, make_model, blob_image):
    # the image of a pose psi against A is one of psi - a against A turned by a
    particles, known, settings = local
    space = settings.space(32, 9.0)
    model = make_model(np.stack([blob_image(z) for z in (3, 4, 5)]), noise=0.09, k_max=9)
    source = particles.source(known=known)
    offset = replace(known, angle_rad=known.angle_rad - 3 * space.angle_step_rad)
    rows = np.arange(150)
    stats = source.run_pass(rows, model, space).statistics
    turned = particles.source(known=offset).run_pass(rows, model, space).statistics
    shifted = (turned.turn_sum - stats.turn_sum) / stats.mass
    np.testing.assert_allclose(shifted, 3 * space.angle_step_rad, rtol=0.5)  # the window cuts some off
    centred = stats.turn_centred()
    assert not centred.turn_sum.any() and centred.turn_centred() is centred
    np.testing.assert_allclose(np.abs(centred.numerator), np.abs(stats.numerator))
    np.testing.assert_allclose(np.hypot(*centred.shift_sum.T), np.hypot(*stats.shift_sum.T))
    angle = stats.turn_sum / stats.mass
    np.testing.assert_allclose(centred.numerator[:, 3], stats.numerator[:, 3] * np.exp(3j * angle)[:, None])
    np.testing.assert_allclose(
        centred.denominator[:, 1], stats.denominator[:, 1] * np.exp(2j * angle)[:, None]
    )
    moved = to_image_frame(angle, stats.shift_sum)
    np.testing.assert_allclose(centred.shift_sum, moved)


def test_two_workers_give_the_same_bits_as_one_round_known_poses(local, by_one_and_two, monkeypatch):
    monkeypatch.setattr(passes, "IMAGES_PER_TASK", (20, 1024))
    particles, known, settings = local
    short = replace(settings, n_batches=2, max_iter=1)
    one, two = by_one_and_two(
        lambda pool: particles.source(pool=pool, known=known),
        lambda s: fit_alignment(s, short, np.random.RandomState(0))[0],
    )
    np.testing.assert_array_equal(one.model.references, two.model.references)
    np.testing.assert_array_equal(one.log_evidence, two.log_evidence)


def test_masks_follow_the_known_shifts(rng, make_particles):
    particles = make_particles(rng, 1, split_angstrom=None)
    particles.images[:] = 0.0
    shift = np.array([[6.0, -4.0]])  # the particle is 6 pixels to the left and 4 below
    for x, y in ((-6, 4), (6, -4)):
        particles.images[0, 16 + y, 16 + x] = 1.0
    known = KnownPoses(np.zeros(1), shift, np.zeros(1, dtype=bool))
    masked = particles.source(known=known, mask_radius_px=5.0).masked(np.arange(1))[0]
    assert masked[20, 10] > 0.9 and abs(masked[12, 22]) < 0.01


@pytest.mark.parametrize("half_window, partner", [(None, 1), (np.pi, 1), (0.3, 2)])
def test_references_are_compared_where_they_lie_in_a_window(
    make_settings, make_model, blob_image, half_window, partner
):
    image = blob_image(3)
    references = np.stack([image, blob_image(3, 1.5), 0.7 * image])
    settings, seen = make_settings(angle_range_rad=half_window), np.ones((3, 9))
    frames = unite_references(make_model(references, k_max=9), seen, np.ones(3), settings, 2)
    assert frames.label[0] == frames.label[partner] != frames.label[3 - partner]


def test_features_kept_are_in_their_poses_like_those_computed_again(local):
    particles, known, _ = local
    kept, streamed = particles.source(known=known), particles.source(known=known, cache_bytes=0.0)
    kept(np.arange(10), 13, 42)
    rows = np.arange(5, 20)  # some are new, some are not
    for name in ("orders", "ctf_power", "power"):
        one, two = (getattr(source(rows, 13, 42), name) for source in (kept, streamed))
        np.testing.assert_allclose(one, two, atol=1e-6 * np.abs(two).max(), err_msg=name)
