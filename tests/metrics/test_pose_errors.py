"""Pose errors: zero whatever frame a class chose, and the right size when poses are wrong."""

import numpy as np
import pytest

from sklearn_cryoem.datasets import make_particles, project, true_poses, volume_of_blobs
from sklearn_cryoem.metrics import pose_errors
from sklearn_cryoem.particles import Poses
from sklearn_cryoem.physics.rotation import aligned_images


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
