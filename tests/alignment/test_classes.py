"""Averages of classes: those of one reference are its own, those of many the sum of their images."""

from dataclasses import replace

import numpy as np
import pytest

from sklearn_cryoem.alignment.classes import aligned_classes, centre_of_mass, centred_classes
from sklearn_cryoem.alignment.frames import Frames
from sklearn_cryoem.alignment.model import update_model
from sklearn_cryoem.alignment.poses import find_poses


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
