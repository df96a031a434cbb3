"""Background, hot pixels and power of images, and what one look tells of each."""

from itertools import pairwise

import numpy as np
import pytest

from sklearn_cryoem.physics.images import (
    Ruler,
    band_edges,
    clip_hot_pixels,
    neighbour_residual,
    normalise_background,
    radial_power,
)
from sklearn_cryoem.physics.masks import pixel_radius


@pytest.mark.parametrize("box", [24, 25])
@pytest.mark.parametrize("radius", [None, 8.0])
def test_background_gets_mean_zero_and_deviation_one(box, radius, rng):
    images = rng.normal(100.0, 7.0, (4, box, box)).astype(np.float32)
    images[:, box // 2, box // 2] += 1000.0  # the particle must not count
    normalised = normalise_background(images, radius)
    outside = pixel_radius(box) > (box / 2 if radius is None else radius)
    np.testing.assert_allclose(normalised[:, outside].mean(axis=1), 0.0, atol=1e-5)
    np.testing.assert_allclose(normalised[:, outside].std(axis=1), 1.0, atol=1e-5)
    assert normalised.dtype == np.float32
    again = normalise_background(3.0 * images - 40.0, radius)
    np.testing.assert_allclose(again, normalised, atol=1e-3)  # whatever the gain and the offset were


def test_a_constant_background_stops_no_normalisation(rng):
    images = rng.standard_normal((3, 16, 16)).astype(np.float32)
    sound = normalise_background(images, 5.0)
    images[1] = 0.1
    images[2, :8] = images[2, 8:] = 0.1
    images[2, 6:10, 6:10] = 7.0
    normalised = normalise_background(images, 5.0)
    np.testing.assert_array_equal(normalised[0], sound[0])
    np.testing.assert_allclose(normalised[1], 0.0, atol=1e-6)
    assert normalised[2].std() == pytest.approx(1.0, rel=1e-5) and abs(normalised[2, 0, 0]) < 1e-6


def test_a_box_without_background_is_an_error(rng):
    images = rng.standard_normal((3, 16, 16)).astype(np.float32)
    with pytest.raises(ValueError, match="Use a particle radius below 8 pixels"):
        normalise_background(images, 50.0)


@pytest.mark.parametrize("box", [16, 17])
def test_radial_power_is_the_mean_over_the_full_plane(box, rng):
    images = rng.standard_normal((2, 3, box, box)).astype(np.float32)
    k = np.fft.fftfreq(box, 1 / box)
    ring = np.rint(np.hypot(k[:, None], k))
    power = np.abs(np.fft.fft2(images, norm="ortho")) ** 2
    expected = np.stack([power[..., ring == r].mean(axis=-1) for r in range(box // 2 + 1)], axis=-1)
    np.testing.assert_allclose(radial_power(images), expected, rtol=1e-4)


def test_radial_power_of_white_noise_is_its_variance(rng):
    images = rng.normal(0.0, 3.0, (500, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(radial_power(images).mean(axis=0)[1:], 9.0, rtol=0.1)
    assert radial_power(images[:0]).shape == (0, 17)


def test_the_residual_is_the_pixel_less_its_four_neighbours():
    images = np.random.default_rng(0).normal(size=(3, 6, 6)).astype(np.float32)
    naive = np.empty((3, 4, 4))
    for y in range(1, 5):
        for x in range(1, 5):
            around = images[:, y - 1, x] + images[:, y + 1, x] + images[:, y, x - 1] + images[:, y, x + 1]
            naive[:, y - 1, x - 1] = images[:, y, x] - around / 4
    np.testing.assert_allclose(neighbour_residual(images), naive, atol=1e-6)


@pytest.mark.parametrize("place", [(20, 11), (0, 0), (31, 5)], ids=["inside", "corner", "edge"])
@pytest.mark.parametrize("value", [1e4, -60.0])
def test_hot_and_dead_pixels_become_the_median_of_those_round_them(place, value):
    clean = np.random.default_rng(1).normal(size=(4, 32, 32)).astype(np.float32)
    images = clean.copy()
    images[2][place] = value
    clipped = clip_hot_pixels(images)
    assert abs(clipped[2][place]) < 2.5
    np.testing.assert_array_equal(np.delete(clipped, 2, axis=0), np.delete(clean, 2, axis=0))
    far = np.ones((32, 32), bool)
    y, x = place
    far[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = False
    np.testing.assert_array_equal(clipped[2][far], clean[2][far])  # at most its neighbours go with it


def test_noise_and_sharp_particles_are_left_alone():
    noise = np.random.default_rng(2).normal(size=(50, 64, 64)).astype(np.float32)
    np.testing.assert_array_equal(clip_hot_pixels(noise), noise)
    noise[:, 30:33, 30:33] += 8.0  # gold, three pixels wide
    np.testing.assert_array_equal(clip_hot_pixels(noise), noise)


def test_power_of_bands_is_that_of_their_shells():
    images = np.random.default_rng(0).normal(size=(5, 64, 64)).astype(np.float32)
    measures = Ruler(64, 24.0)(images)
    power = np.abs(np.fft.rfft2(images, norm="ortho")) ** 2
    radius = np.rint(np.hypot(np.fft.fftfreq(64, 1 / 64)[:, None], np.fft.rfftfreq(64, 1 / 64)))
    edges = band_edges(64)
    assert edges == [1, 4, 6, 9, 13, 19, 27, 33]
    for band, (low, high) in enumerate(pairwise(edges)):
        naive = power[:, (radius >= low) & (radius < high)].mean(axis=1)
        np.testing.assert_allclose(np.exp(measures.log_power[:, band]), naive, rtol=1e-4)


def test_backgrounds_are_measured_as_they_are():
    images = np.random.default_rng(0).normal(2.0, 3.0, size=(5, 48, 48)).astype(np.float32)
    outside = np.hypot(*(np.mgrid[:48, :48] - 24)) > 18.0
    measures = Ruler(48, 18.0)(images)
    np.testing.assert_allclose(measures.level, images[:, outside].mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(measures.spread, images[:, outside].std(axis=1), rtol=1e-4)
    images[:, outside] = 0.0
    assert (Ruler(48, 18.0)(images).spread == 0).all()


def test_a_stripe_and_a_hot_pixel_are_measured_in_standard_deviations():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(200, 64, 64)).astype(np.float32)
    quiet = Ruler(64, 24.0)(noise)
    assert 3.0 < np.median(quiet.hot_pixel) < 4.5 and 2.0 < np.median(quiet.stripe) < 3.5
    noise[:, 30] += 5.0
    noise[:, 10, 10] += 40.0
    loud = Ruler(64, 24.0)(noise)
    assert np.median(loud.stripe) == pytest.approx(
        5 * 8 / np.sqrt(1.5) * 0.67, rel=0.3
    )  # less what is clipped
    assert np.median(loud.hot_pixel) == pytest.approx(40 / np.sqrt(1.25), rel=0.15)


def test_constant_and_non_finite_images_are_measured_as_nan():
    images = np.random.default_rng(0).normal(size=(5, 32, 32)).astype(np.float32)
    sound = Ruler(32, 12.0)(images)
    images[1], images[2, 3, 4], images[3, 0, 0] = 2.0, np.nan, np.inf
    measures = Ruler(32, 12.0)(images)
    np.testing.assert_array_equal(measures.unusable, [False, True, True, True, False])
    np.testing.assert_array_equal(measures.values[[0, 4], 1:], sound.values[[0, 4], 1:])
    for some in (measures, measures.normalised()):
        assert np.isnan(np.delete(some.values[1:4], 3, axis=1)).all()  # no line of them is called blank
