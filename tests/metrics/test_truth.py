"""Accuracy against the truth: views against the double loop, pose errors in whatever frame of a class."""

from itertools import combinations

import numpy as np
import pytest

from sklearn_cryoem.datasets import make_particles, project, true_poses, volume_of_blobs
from sklearn_cryoem.metrics import fraction_within, pose_errors, truth, view_distances
from sklearn_cryoem.particles import Poses
from sklearn_cryoem.physics.rotation import aligned_images


# ---------------------------------------------------------------- views of a class
def random_views(rng, n):
    directions = rng.standard_normal((n, 3))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def plain_distances(labels, directions):
    pairs = combinations(range(len(labels)), 2)
    return [
        np.degrees(np.arccos(np.clip(directions[i] @ directions[j], -1, 1)))
        for i, j in pairs
        if labels[i] == labels[j] and labels[i] >= 0
    ]


@pytest.mark.parametrize("block", [1, 3, 1024])
def test_distances_are_those_of_the_double_loop(block, rng, monkeypatch):
    monkeypatch.setattr(truth, "_ROWS_A_BLOCK", block)
    labels, directions = rng.integers(-1, 4, 40), random_views(rng, 40)
    expected = plain_distances(labels, directions)
    observed = view_distances(labels, 5.0 * directions)  # lengths do not matter
    assert observed.dtype == np.float32
    np.testing.assert_allclose(np.sort(observed), np.sort(expected), atol=1e-3)
    for degrees in (0.0, 30.0, 90.0, 180.0):
        assert fraction_within(labels, directions, degrees) == pytest.approx(
            np.mean(np.array(expected) <= degrees)
        )


def test_known_angles():
    directions = np.array([(1, 0, 0), (0, 1, 0), (-1, 0, 0), (1, 1, 0)], dtype=float)
    np.testing.assert_allclose(
        sorted(view_distances(np.zeros(4, int), directions)), [45, 45, 90, 90, 135, 180], rtol=1e-5
    )
    assert fraction_within(np.zeros(4, int), directions, 45.0) == pytest.approx(2 / 6)


def test_random_classes_are_within_an_angle_as_often_as_chance(rng):
    labels, directions = rng.integers(0, 5, 3000), random_views(rng, 3000)
    chance = (1 - np.cos(np.radians(10.0))) / 2
    assert fraction_within(labels, directions, 10.0) == pytest.approx(chance, rel=0.1)


def test_a_sample_of_pairs_follows_the_distribution_of_all(rng):
    labels = np.repeat([0, 1, 2], [10, 60, 200])
    directions = random_views(rng, 270)
    directions[:10] += [0, 0, 50]  # a tight class, few pairs
    everything = view_distances(labels, directions)
    sample = view_distances(labels, directions, max_pairs=5000, random_state=0)
    assert len(everything) == 45 + 1770 + 19900 and len(sample) == 5000
    assert np.isin(sample, everything).all(), "a sampled pair is not a pair of distinct members of one class"
    quantiles = [0.1, 0.5, 0.9]
    np.testing.assert_allclose(np.quantile(sample, quantiles), np.quantile(everything, quantiles), atol=4.0)
    np.testing.assert_array_equal(sample, view_distances(labels, directions, max_pairs=5000, random_state=0))


def test_no_pair_gives_no_distance():
    assert view_distances([0, 1, -1], np.eye(3)).shape == (0,)
    assert np.isnan(fraction_within([0, 1, -1], np.eye(3)))
    assert view_distances([], np.empty((0, 3))).shape == (0,)


def test_junk_may_be_left_out_by_its_label_but_not_slip_in():
    directions = np.array([(1, 0, 0), (1, 0, 0), (np.nan, np.nan, np.nan)])
    assert fraction_within([0, 0, -1], directions) == 1.0
    with pytest.raises(ValueError, match="or give them the label -1"):
        fraction_within([0, 0, 0], directions)
    with pytest.raises(ValueError, match="Give one label and one view direction for each particle"):
        view_distances([0, 0], directions)


# ---------------------------------------------------------------- poses
@pytest.fixture(scope="module")
def simulated():
    return make_particles(
        n_samples=240, box=16, n_views=4, max_shift=30.0, snr=None, junk_fraction=0.1, random_state=0
    )


def in_class_frames(stack, labels, rng):
    """True poses as an aligner would report them whose classes are turned and off centre at random."""
    poses = true_poses(stack)
    turn, offset = rng.uniform(-np.pi, np.pi, 9)[labels], rng.uniform(-20, 20, (9, 2))[labels]
    psi = poses.angle_rad + turn
    # class average A'(q) = A(q - u): the estimated shift gains R(-psi) u
    moved = np.column_stack(
        [
            np.cos(psi) * offset[:, 0] + np.sin(psi) * offset[:, 1],
            -np.sin(psi) * offset[:, 0] + np.cos(psi) * offset[:, 1],
        ]
    )
    return Poses(psi, poses.shift + moved)


def test_the_frame_of_a_class_is_no_error(simulated, rng):
    labels = rng.integers(0, 3, len(simulated))
    errors = pose_errors(in_class_frames(simulated, labels, rng), simulated.truth, labels)
    junk = simulated.truth["is_junk"].to_numpy()
    assert np.isnan(errors.angle_rad[junk]).all() and np.isnan(errors.shift[junk]).all()
    assert np.nanmax(errors.angle_rad) < 1e-6
    assert np.nanmax(errors.shift) < 1e-6
    assert errors.median_angle_rad < 1e-6 and errors.median_shift < 1e-6


def test_errors_have_their_size(simulated, rng):
    labels = np.zeros(len(simulated), int)
    poses = in_class_frames(simulated, labels, rng)
    n = len(simulated)
    turned = Poses(poses.angle_rad + rng.normal(0, 0.1, n), poses.shift)
    moved = Poses(poses.angle_rad, poses.shift + rng.normal(0, 3.0, (n, 2)))
    # of normal numbers of deviation 1 the median absolute value is 0.6745; of pairs, the median length 1.1774
    median = pose_errors(turned, simulated.truth, labels).median_angle_rad
    assert median == pytest.approx(0.06745, rel=0.2)
    assert pose_errors(moved, simulated.truth, labels).median_shift == pytest.approx(3.532, rel=0.2)


def test_a_few_wild_poses_do_not_move_the_frame(simulated, rng):
    labels = np.zeros(len(simulated), int)
    poses = in_class_frames(simulated, labels, rng)
    wild = rng.random(len(simulated)) < 0.15
    shaken = Poses(poses.angle_rad + np.where(wild, np.pi, 0), poses.shift)
    errors = pose_errors(shaken, simulated.truth, labels)
    good = ~simulated.truth["is_junk"].to_numpy()
    np.testing.assert_allclose(errors.angle_rad[good & wild], np.pi, atol=1e-6)
    np.testing.assert_allclose(errors.angle_rad[good & ~wild], 0.0, atol=1e-6)


def test_without_fixed_views_the_poles_of_the_euler_angles_do_not_show(rng):
    # views within a few degrees of the pole: rot is arbitrary there, yet the images are nearly the same
    n_views = 30
    stack = make_particles(n_samples=n_views, box=16, snr=None, random_state=1)
    rot, tilt, psi = (
        rng.uniform(-np.pi, np.pi, n_views),
        np.radians(rng.uniform(0, 3, n_views)),
        rng.uniform(0, 6, n_views),
    )
    truth = stack.truth.assign(rot_rad=rot, tilt_rad=tilt, angle_rad=psi)
    # at the pole the image is turned by rot + psi in all
    poses = Poses(rot + psi, truth[["shift_x", "shift_y"]].to_numpy())
    errors = pose_errors(poses, truth, np.zeros(n_views, int))
    assert np.degrees(errors.angle_rad).max() < 0.5
    images = project(
        volume_of_blobs(np.array([(30, 8, 5, 9, 1.0), (-20, -30, 3, 9, 1.5)]), 32, 6.0), rot, tilt, psi
    )
    aligned = aligned_images(images, poses.angle_rad, np.zeros((n_views, 2)))
    correlation = [np.corrcoef(image.ravel(), aligned[0].ravel())[0, 1] for image in aligned]
    assert min(correlation) > 0.97, "the premise: these poses do align the images"


def test_lonely_and_unlabelled_particles_are_left_out(simulated):
    labels = np.full(len(simulated), -1)
    good = np.flatnonzero(~simulated.truth["is_junk"].to_numpy())
    labels[good[0]] = 0
    errors = pose_errors(true_poses(simulated), simulated.truth, labels)
    assert np.isnan(errors.angle_rad).all() and np.isnan(errors.median_shift)


def test_rows_must_agree(simulated):
    with pytest.raises(ValueError, match="Slice all three with the same rows"):
        pose_errors(true_poses(simulated)[:5], simulated.truth, np.zeros(len(simulated), int))


def test_mirrored_images_have_the_errors_of_the_others(simulated, rng):
    """The same true poses and errors, of which any half is mirrored: psi turns the other way, shifts stay."""
    labels = rng.integers(0, 3, len(simulated))
    mirrored = labels == 1  # whole classes, so that no group is divided
    poses = in_class_frames(simulated, labels, rng)
    n = len(simulated)
    poses = Poses(poses.angle_rad + rng.normal(0, 0.1, n), poses.shift + rng.normal(0, 3.0, (n, 2)))
    other = Poses(np.where(mirrored, -poses.angle_rad, poses.angle_rad), poses.shift, mirrored)
    expected, found = (pose_errors(p, simulated.truth, labels) for p in (poses, other))
    np.testing.assert_allclose(found.angle_rad, expected.angle_rad, atol=1e-9)
    np.testing.assert_allclose(found.shift, expected.shift, atol=1e-9)
    ignored = pose_errors(Poses(other.angle_rad, other.shift), simulated.truth, labels)
    assert np.nanmedian(ignored.angle_rad[mirrored]) > 3 * np.nanmedian(found.angle_rad[mirrored])


def test_mirrored_images_of_a_view_are_a_group_apart(simulated, rng):
    labels = np.zeros(len(simulated), int)
    poses = in_class_frames(simulated, labels, rng)
    mirrored = np.arange(len(simulated)) % 2 == 0
    half = Poses(np.where(mirrored, 1.0 - poses.angle_rad, poses.angle_rad), poses.shift, mirrored)
    errors = pose_errors(half, simulated.truth, labels)
    assert errors.median_angle_rad < 1e-6 and errors.median_shift < 1e-6
