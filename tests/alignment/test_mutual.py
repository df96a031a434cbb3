"""Union of references: moves that are known come back, views stay together, poses follow their frame."""

from dataclasses import replace

import numpy as np
import pytest

from sklearn_cryoem.alignment.classes import unite_references
from sklearn_cryoem.alignment.frames import Frames, turned
from sklearn_cryoem.physics.masks import soft_disc
from sklearn_cryoem.physics.polar import (
    angular_orders,
    from_angular_orders,
    images_from_polar,
    polar_grid,
    polar_transform,
    translation_phase,
)
from sklearn_cryoem.physics.rotation import aligned_images

BOX = 32


def moved_images(images, angle_rad, shift_px, mirrored=False):
    """Each image displaced by `shift_px`, mirrored, then A'(theta) = A(theta + `angle_rad`): a fine grid."""
    grid = polar_grid(BOX, 14.0, 0.5 * BOX)
    values = polar_transform(images, grid) * translation_phase(grid, shift_px)
    n_orders = grid.n_angles // 2
    turn = np.exp(1j * np.arange(n_orders) * np.asarray(angle_rad)[:, None])
    orders = angular_orders(values, n_orders)
    orders = np.where(np.broadcast_to(mirrored, len(images))[:, None, None], orders.conj(), orders)
    orders = (orders * turn[:, None, :]).astype(np.complex64)
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


def united(model, settings, n_groups, n_jobs=None, mass=None, mirror=False):
    mass = np.full(12, 10.0) if mass is None else mass
    seen = np.repeat(mass[:, None], 12, axis=1)
    return unite_references(model, seen, mass, settings, n_groups, mirror=mirror, n_jobs=n_jobs)


def test_copies_of_a_view_come_together_and_into_one_frame(scattered):
    view, angle, shift, model, settings = scattered
    frames = united(model, settings, 3)
    assert frames.n_classes == 3
    for group in range(3):
        assert len(set(view[frames.label == group])) == 1
    # a copy is the view moved by (angle, shift); moved on by its frame, all copies lie alike
    total = angle + frames.angle_rad
    place = shift + turned(frames.shift_px, angle)  # of the view before the turn
    for own in range(3):
        turns = np.exp(1j * total[view == own])
        assert np.degrees(np.abs(np.angle(turns / turns[0]))).max() < 2.0
        assert np.ptp(place[view == own], axis=0).max() < 0.25


def test_poses_follow_their_reference_into_its_frame(references, rng):
    """An image aligned by its pose to a reference is, by the moved pose, aligned to the moved reference."""
    frames = Frames(
        np.array([0, 0, 1]), np.array([0.7, -1.1, 2.0]), rng.uniform(-1, 1, (3, 2)), np.zeros(3, bool)
    )
    psi, pose = rng.uniform(0, 2 * np.pi, 3), rng.uniform(-1, 1, (3, 2))
    # the image whose displacement by `pose` and turn by -psi is the reference
    images = moved_images(moved_images(references, psi, np.zeros((3, 2))), np.zeros(3), -pose)
    new_psi, new_pose, mirrored = frames.poses(np.arange(3), psi, pose)
    assert not mirrored.any()
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
    assert len(set(frames.label[view == 1])) == len(set(frames.label[view == 2])) == 1
    assert frames.label[view == 1][0] != frames.label[view == 2][0]


def test_classes_are_numbered_by_falling_mass_and_any_number_of_workers_agrees(scattered):
    view, _, _, model, settings = scattered
    mass = 10.0 + 5.0 * view
    one, two = (united(model, settings, 3, n_jobs=n, mass=mass) for n in (1, 2))
    np.testing.assert_array_equal(one.label, two.label)
    np.testing.assert_array_equal(one.angle_rad, two.angle_rad)
    np.testing.assert_array_equal(one.shift_px, two.shift_px)
    sizes = np.bincount(one.label, mass)
    assert np.all(np.diff(sizes) <= 0)


# ------------------------------------------------------------------------------------ mirrors
MIRRORED = np.tile(np.repeat([False, True], 3), 2)  # every other copy of each view


@pytest.fixture
def handed(blob_image):
    """Three views that differ from their mirror images."""
    second, third = blob_image(1) - blob_image(0, 1.0), blob_image(2) - blob_image(1, 0.7)
    return np.stack([blob_image(0), second, third])


@pytest.fixture
def copies(handed, make_model, make_settings, rng):
    """Models of four moved copies of each of these views; of none or half of them mirrored before that."""
    view = np.tile(np.arange(3), 4)
    angle, shift = rng.uniform(0, 2 * np.pi, 12), rng.uniform(-1, 1, (12, 2))

    def make(mirrored):
        images = moved_images(handed[view], np.zeros(12), np.zeros((12, 2)), mirrored)
        images = moved_images(images, angle, shift)
        images += 0.02 * handed.std() * rng.standard_normal(images.shape).astype(np.float32)
        return make_model(images, noise=handed.std() ** 2)

    return view, make, make_settings(n_references=12)


def frame_errors(images, frames, view):
    """Greatest difference of the moved copies of a view from their mean, in units of its largest value."""
    moved = moved_images(images, frames.angle_rad, frames.shift_px, frames.mirrored)
    means = np.stack([moved[view == own].mean(axis=0) for own in range(3)])
    return np.abs(moved - means[view]).max(axis=(1, 2)) / np.abs(means[view]).max(axis=(1, 2))


def test_mirrored_copies_come_together_and_into_one_frame(copies):
    view, make, settings = copies
    model = make(MIRRORED)
    frames = united(model, settings, 3, mirror=True)
    for group in range(3):
        assert len(set(view[frames.label == group])) == 1
    for own in range(3):
        relative = frames.mirrored[view == own] ^ MIRRORED[view == own]
        assert len(set(relative)) == 1, "copies and mirrored copies of a view are told apart"
    assert frame_errors(model.references, frames, view).max() < 0.1
    unmirrored = replace(frames, mirrored=np.zeros(12, bool))
    assert frame_errors(model.references, unmirrored, view).max() > 0.3, "the test would not notice"


def test_mirrored_copies_are_classes_of_their_own_unless_asked_for(copies):
    view, make, settings = copies
    frames = united(make(MIRRORED), settings, 6)
    assert not frames.mirrored.any()
    for group in range(6):
        own = frames.label == group
        assert len(set(view[own])) == len(set(MIRRORED[own])) == 1


def test_where_nothing_is_mirrored_the_classes_are_those_without_the_option(copies):
    _, make, settings = copies
    model = make(False)
    plain, both = united(model, settings, 3), united(model, settings, 3, mirror=True)
    assert not plain.mirrored.any()
    np.testing.assert_array_equal(plain.label, both.label)
    for group in range(3):  # different views have no true relation
        assert len(set(both.mirrored[plain.label == group])) == 1
    turn = np.where(both.mirrored, -1, 1) * both.angle_rad - plain.angle_rad
    for group in range(3):
        turns = np.exp(1j * turn[plain.label == group])
        assert np.degrees(np.abs(np.angle(turns / turns[0]))).max() < 2.0


def test_the_lighter_part_of_the_mass_is_mirrored(copies):
    _, make, settings = copies
    model = make(MIRRORED)
    for heavy in (MIRRORED, ~MIRRORED):
        mass = np.where(heavy, 10.0, 5.0)
        frames = united(model, settings, 3, mass=mass, mirror=True)
        assert 0 < mass[frames.mirrored].sum() <= 0.5 * mass.sum()


def test_poses_follow_their_reference_into_a_mirrored_frame(handed, rng):
    """Images made with poses to references are, by the moved poses, aligned to the moved references."""
    mirrored = np.array([True, False, True])
    frames = Frames(np.array([0, 0, 1]), np.array([0.7, -1.1, 2.0]), rng.uniform(-1, 1, (3, 2)), mirrored)
    psi, pose = rng.uniform(0, 2 * np.pi, 3), rng.uniform(-1, 1, (3, 2))
    images = moved_images(moved_images(handed, psi, np.zeros((3, 2))), np.zeros(3), -pose)
    new_psi, new_pose, flipped = frames.poses(np.arange(3), psi, pose)
    np.testing.assert_array_equal(flipped, mirrored)
    wanted = moved_images(handed, frames.angle_rad, frames.shift_px, mirrored)
    seen = aligned_images(images, new_psi, new_pose, flipped)
    inner = soft_disc(BOX, 11.0, 2.0)  # both lack the mean, but not the same constant outside
    error = np.abs((seen - wanted) * inner).max() / np.abs(wanted).max()
    assert error < 0.1
    wrong = aligned_images(images, new_psi, new_pose)
    assert np.abs((wrong - wanted) * inner)[mirrored].max() / np.abs(wanted).max() > 0.3


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
def test_a_move_after_a_move_is_one_move(handed, rng, first, second):
    frames = Frames(np.arange(3), rng.uniform(0, 6, 3), rng.uniform(-1, 1, (3, 2)), np.full(3, first))
    once = moved_images(handed, frames.angle_rad, frames.shift_px, first)
    angle, shift = 1.3, np.array([0.8, -0.5])
    twice = moved_images(once, np.full(3, angle), np.tile(shift, (3, 1)), second)
    frames = frames.moved(np.arange(3), shift, angle_rad=angle, mirrored=second)
    np.testing.assert_array_equal(frames.mirrored, first != second)
    at_once = moved_images(handed, frames.angle_rad, frames.shift_px, frames.mirrored)
    assert np.abs(at_once - twice).max() / np.abs(twice).max() < 0.05


@pytest.mark.parametrize(("n_groups", "sizes"), [(1, [12]), (12, [1] * 12)])
def test_all_or_none_can_be_united(scattered, n_groups, sizes):
    frames = united(scattered[3], scattered[4], n_groups)
    assert np.bincount(frames.label).tolist() == sizes
