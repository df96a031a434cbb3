"""Normalisation, contrast, low-pass filter and radial power."""

import numpy as np
import pytest

from sklearn_cryoem.physics.filters import invert_contrast, low_pass, normalise_background, radial_power
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


def test_inverting_twice_is_nothing(rng):
    images = rng.standard_normal((2, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(invert_contrast(images), -images)
    np.testing.assert_array_equal(invert_contrast(invert_contrast(images)), images)


@pytest.mark.parametrize("box", [32, 33])
def test_low_pass_keeps_what_is_below_and_removes_what_is_beyond(box, rng):
    images = rng.standard_normal((2, box, box)).astype(np.float32) + 1.0
    cutoff = 8.0
    filtered = low_pass(images, box / cutoff, edge_shells=3.0)
    k = np.fft.fftfreq(box, 1 / box)
    radius = np.hypot(k[:, None], k)
    before, after = np.fft.fft2(images), np.fft.fft2(filtered)
    np.testing.assert_allclose(after[:, radius <= cutoff], before[:, radius <= cutoff], atol=1e-3)
    assert np.abs(after[:, radius >= cutoff + 3.0]).max() < 1e-3
    edge = (radius > cutoff) & (radius < cutoff + 3.0)
    ratio = np.abs(after[:, edge] / before[:, edge])
    assert ((ratio > 0) & (ratio < 1)).all()
    sharp = np.fft.fft2(low_pass(images, box / cutoff, edge_shells=0.0))
    assert np.abs(sharp[:, radius > cutoff + 0.01]).max() < 1e-3


def test_low_pass_errors_say_what_to_do():
    with pytest.raises(ValueError, match="Two pixels are Nyquist"):
        low_pass(np.zeros((1, 8, 8), np.float32), 0.0)


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
