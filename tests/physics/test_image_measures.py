"""What one look at images tells of each."""

from itertools import pairwise

import numpy as np
import pytest

from sklearn_cryoem.physics.image_measures import Ruler, band_edges


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
