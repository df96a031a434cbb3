"""Union of references: moves that are known come back, views stay together, poses follow their frame."""

import numpy as np
import pytest

from sklearn_cryoem.alignment.mutual import Frames, turned, unite_references
from sklearn_cryoem.physics.polar import (
    angular_orders,
    from_angular_orders,
    images_from_polar,
    polar_grid,
    polar_transform,
    translation_phase,
)

BOX = 32


def moved_images(images, angle_rad, shift_px):
    """Each image displaced by `shift_px`, then A'(theta) = A(theta + `angle_rad`), on a fine polar grid."""
    grid = polar_grid(BOX, 14.0, 0.5 * BOX)
    values = polar_transform(images, grid) * translation_phase(grid, shift_px)
    n_orders = grid.n_angles // 2
    turn = np.exp(1j * np.arange(n_orders) * np.asarray(angle_rad)[:, None])
    orders = (angular_orders(values, n_orders) * turn[:, None, :]).astype(np.complex64)
    return images_from_polar(from_angular_orders(orders, grid.n_angles), grid)


@pytest.fixture
def scattered(references, make_model, make_settings, rng):
    """Four copies of each of three references, turned and displaced at random, a little noise on each."""
    view = np.tile(np.arange(3), 4)
    angle, shift = rng.uniform(0, 2 * np.pi, 12), rng.uniform(-1, 1, (12, 2))
    images = moved_images(references[view], angle, shift)
    images += rng.normal(scale=0.02 * references.std(), size=images.shape).astype(np.float32)
    model = make_model(images.astype(np.float32), noise=references.std() ** 2)
    return view, angle, shift, model, make_settings(n_references=12)


def united(model, settings, n_groups, n_jobs=None, mass=None):
    mass = np.full(12, 10.0) if mass is None else mass
    seen = np.repeat(mass[:, None], 12, axis=1)
    return unite_references(model, seen, mass, settings, n_groups, n_jobs=n_jobs)


def test_copies_of_a_view_come_together_and_into_one_frame(scattered):
    view, angle, shift, model, settings = scattered
    frames = united(model, settings, 3)
    assert frames.n_groups == 3
    for group in range(3):
        assert len(set(view[frames.group == group])) == 1
    # a copy is the view moved by (angle, shift); moved on by its frame, all copies lie alike
    total = angle + frames.angle_rad
    place = shift + turned(frames.shift_px, angle)  # of the view before the turn
    for own in range(3):
        turns = np.exp(1j * total[view == own])
        assert np.degrees(np.abs(np.angle(turns / turns[0]))).max() < 2.0
        assert np.ptp(place[view == own], axis=0).max() < 0.25


def test_poses_follow_their_reference_into_its_frame(references, rng):
    """An image aligned by its pose to a reference is, by the moved pose, aligned to the moved reference."""
    frames = Frames(np.array([0, 0, 1]), np.array([0.7, -1.1, 2.0]), rng.uniform(-1, 1, (3, 2)))
    psi, pose = rng.uniform(0, 2 * np.pi, 3), rng.uniform(-1, 1, (3, 2))
    # the image whose displacement by `pose` and turn by -psi is the reference
    images = moved_images(moved_images(references, psi, np.zeros((3, 2))), np.zeros(3), -pose)
    new_psi, new_pose = frames.poses(np.arange(3), psi, pose)
    seen = moved_images(images, np.zeros(3), new_pose)
    seen = moved_images(seen, -new_psi, np.zeros((3, 2)))
    wanted = moved_images(references, frames.angle_rad, frames.shift_px)
    error = np.abs(seen - wanted).max() / np.abs(wanted).max()
    assert error < 0.1
    wrong = moved_images(moved_images(images, np.zeros(3), pose), -psi, np.zeros((3, 2)))
    assert np.abs(wrong - wanted).max() / np.abs(wanted).max() > 0.3, "the frames change nothing"


def test_small_references_join_others_before_large_ones_do(scattered):
    view, _, _, model, settings = scattered
    mass = np.where(view == 0, 0.02, 10.0)
    frames = united(model, settings, 2, mass=mass)
    assert len(set(frames.group[view == 1])) == len(set(frames.group[view == 2])) == 1
    assert frames.group[view == 1][0] != frames.group[view == 2][0]


def test_classes_are_numbered_by_falling_mass_and_any_number_of_workers_agrees(scattered):
    view, _, _, model, settings = scattered
    mass = 10.0 + 5.0 * view
    one, two = (united(model, settings, 3, n_jobs=n, mass=mass) for n in (1, 2))
    np.testing.assert_array_equal(one.group, two.group)
    np.testing.assert_array_equal(one.angle_rad, two.angle_rad)
    np.testing.assert_array_equal(one.shift_px, two.shift_px)
    sizes = np.bincount(one.group, mass)
    assert np.all(np.diff(sizes) <= 0)


@pytest.mark.parametrize(("n_groups", "sizes"), [(1, [12]), (12, [1] * 12)])
def test_all_or_none_can_be_united(scattered, n_groups, sizes):
    frames = united(scattered[3], scattered[4], n_groups)
    assert np.bincount(frames.group).tolist() == sizes
