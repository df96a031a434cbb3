"""Union of references into classes: moves, mirrors, frames and averages."""

from dataclasses import replace

import numpy as np
import pytest

from sklearn_cryoem.alignment.classes import (
    aligned_classes,
    centre_of_mass,
    centred_classes,
    unite_references,
)
from sklearn_cryoem.alignment.frames import Frames, turned
from sklearn_cryoem.alignment.model import update_model
from sklearn_cryoem.alignment.poses import find_poses
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


@pytest.fixture
def finished(rng, make_particles, make_settings, make_model, references):
    """A pass over particles of three views with their true references, and its model and sums."""
    source = make_particles(rng, 60, noise=0.5).source()
    settings = make_settings(k_start=8.0, k_limit=8.0)
    model = make_model(references, noise=0.25)
    space = settings.space(32, 8.0)
    result = source.run_pass(np.arange(60), model, space)
    model, stats = update_model(result.statistics, model, space.grid, settings, source.noise_fraction)
    return model, stats, space.grid, settings, source.noise_fraction


def test_classes_of_one_reference_each_are_the_references(finished):
    model, stats, grid, settings, fraction = finished
    alone = Frames.identity(np.arange(3))
    classes = aligned_classes(stats, alone, model, grid, settings, fraction)
    assert classes.mass.sum() == pytest.approx(60, rel=1e-4)
    for average, reference in zip(classes.averages, model.references, strict=True):
        assert np.corrcoef(average.ravel(), reference.ravel())[0, 1] > 0.98


def test_a_class_of_two_references_is_the_average_of_all_their_images(finished):
    model, stats, grid, settings, fraction = finished
    frames = Frames.identity(np.array([0, 0, 1]))
    classes = aligned_classes(stats, frames, model, grid, settings, fraction)
    np.testing.assert_allclose(classes.mass, [stats.mass[:2].sum(), stats.mass[2]])
    mixed = model.references[0] * stats.mass[0] + model.references[1] * stats.mass[1]
    assert np.corrcoef(classes.averages[0].ravel(), mixed.ravel())[0, 1] > 0.95


def test_averages_are_turned_with_their_frame(finished):
    model, stats, grid, settings, fraction = finished
    half_turn = replace(Frames.identity(np.arange(3)), angle_rad=np.array([np.pi, 0.0, 0.0]))
    straight = Frames.identity(np.arange(3))
    turned, plain = (
        aligned_classes(stats, f, model, grid, settings, fraction).averages for f in (half_turn, straight)
    )
    inner = slice(1, None)  # a half turn about the pixel D // 2 maps rows 1 .. D - 1 onto themselves
    opposite = plain[0][inner, inner][::-1, ::-1]
    np.testing.assert_allclose(turned[0][inner, inner], opposite, atol=0.01 * np.abs(opposite).max())
    np.testing.assert_allclose(turned[1:], plain[1:], atol=1e-5)


def test_averages_are_mirrored_with_their_frame(finished):
    model, stats, grid, settings, fraction = finished
    mirrored = Frames(np.arange(3), np.zeros(3), np.zeros((3, 2)), np.array([True, False, True]))
    straight = Frames.identity(np.arange(3))
    other, plain = (
        aligned_classes(stats, f, model, grid, settings, fraction).averages for f in (mirrored, straight)
    )
    below = plain[:, :0:-1]  # y -> -y about the pixel D // 2 maps rows 1 .. D - 1 onto themselves
    for reference in (0, 2):
        np.testing.assert_allclose(other[reference, 1:], below[reference], atol=0.01 * np.abs(below).max())
    np.testing.assert_allclose(other[1], plain[1], atol=1e-5)


def test_mirrored_particles_land_on_the_average_of_the_others(
    rng, make_particles, make_settings, make_model, references
):
    """Two references, one the mirror image of the other, with images of their own: one class of all."""
    source = make_particles(rng, 80, noise=0.3).source()
    settings = make_settings(k_start=8.0, k_limit=8.0, n_references=2)
    pair = np.stack([references[0], np.roll(references[0][::-1], 1, axis=0)])
    model = make_model(pair, noise=0.09)
    space = settings.space(32, 8.0)
    stats = source.run_pass(np.arange(80), model, space).statistics
    frames = Frames(np.zeros(2, int), np.zeros(2), np.zeros((2, 2)), np.array([False, True]))
    classes = aligned_classes(stats, frames, model, space.grid, settings, source.noise_fraction)
    assert np.corrcoef(classes.averages[0].ravel(), pair[0].ravel())[0, 1] > 0.9


def spot(x, y, sd, height=1.0, box=32):
    axis = np.arange(box) - box // 2
    return height * np.exp(-((axis - x) ** 2 + (axis[:, None] - y) ** 2) / (2.0 * sd**2))


def test_the_centre_of_mass_is_that_of_the_density():
    """A round, a hollow and a lopsided particle, and one with the dark halo of missing low frequencies."""
    ring = spot(3.0, -2.0, 4.0) - spot(3.0, -2.0, 2.5)
    lopsided = 2.0 * spot(-4.0, 1.0, 2.5) + spot(8.0, -2.0, 2.5)
    halo = spot(2.0, 2.0, 2.5) - 0.2 * spot(-3.0, -3.0, 5.0)
    pictures = np.stack([spot(1.5, 4.0, 2.5), ring, lopsided, halo]).astype(np.float32)
    found = centre_of_mass(pictures)
    np.testing.assert_allclose(found, [[1.5, 4.0], [3.0, -2.0], [0.0, 0.0], [2.0, 2.0]], atol=0.35)
    np.testing.assert_array_equal(centre_of_mass(np.zeros((1, 8, 8), np.float32)), [[0.0, 0.0]])


def test_classes_are_centred_and_the_poses_of_their_images_with_them(
    rng, make_particles, make_settings, make_model, blob_image
):
    """Views 3 and 5 have their mass in the centre; references off centre give poses that are not."""
    particles = make_particles(rng, 90, noise=0.3, kinds=(3, 5), max_shift=0.5)
    away = np.array([[2.0, 0.0], [0.0, -1.5]])
    references = np.stack([blob_image(kind, 0.0, move) for kind, move in zip((3, 5), away, strict=True)])
    settings = make_settings(max_shift_px=4.0)
    model = make_model(references, noise=0.1, k_max=11, shift_sigma_px=3.0)
    source = particles.source()
    space = settings.space(32, 11.0)
    stats = source.run_pass(np.arange(90), model, space).statistics
    alone = Frames.identity(np.arange(2))
    arguments = (model, space.grid, settings, source.noise_fraction)
    frames, classes = centred_classes(stats, alone, *arguments)
    np.testing.assert_allclose(centre_of_mass(classes.averages), 0.0, atol=0.3)
    np.testing.assert_allclose(frames.shift_px, -away, atol=0.7)
    found = find_poses(source, model, settings, frames=frames)
    error = np.hypot(*(found.shift_px - particles.shift_px).T)
    assert np.median(error) < 0.8  # 2 and 1.5 pixels before
    known = replace(settings, angle_range_rad=0.1)
    assert centred_classes(stats, alone, model, space.grid, known, 1.0)[0] is alone
