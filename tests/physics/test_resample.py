"""Resampling by any ratio: exact for what the pixels hold, and fair to noise."""

import numpy as np
import pytest

from sklearn_cryoem.physics.fourier import fourier_resize
from sklearn_cryoem.physics.resample import resample


def wave(box, pixel_size, period, angle):
    """A plane wave of a period in Angstrom, its crest on the centre pixel."""
    axis = (np.arange(box) - box // 2) * pixel_size
    return np.cos(2 * np.pi / period * (np.cos(angle) * axis + np.sin(angle) * axis[:, None]))


def blob(box, pixel_size, width=12.0, shift=(4.0, -7.0)):
    axis = (np.arange(box) - box // 2) * pixel_size
    squared = (axis - shift[0]) ** 2 + (axis[:, None] - shift[1]) ** 2
    return np.exp(-squared / (2 * width**2))


@pytest.mark.parametrize(
    ("old", "size", "box", "new_size"), [(64, 3.0, 48, 3.9), (65, 3.0, 40, 4.7), (64, 3.0, 33, 5.1)]
)
def test_what_both_hold_is_the_same_picture(old, size, box, new_size):
    images = blob(old, size)[None].astype(np.float32)
    resampled = resample(images, box, new_size / size)
    np.testing.assert_allclose(resampled[0] * size / new_size, blob(box, new_size), atol=2e-3)


@pytest.mark.parametrize("box", [32, 64])
def test_a_whole_ratio_is_a_crop_of_the_transform(rng, box):
    images = rng.normal(size=(3, 64, 64)).astype(np.float32)
    if box == 64:
        np.testing.assert_array_equal(resample(images, 64, 1.0), images)
        np.testing.assert_array_equal(resample(images, 40, 1.0), images[:, 12:52, 12:52])
        return
    expected = 2.0 * fourier_resize(images, 32)
    np.testing.assert_allclose(resample(images, 32, 2.0), expected, atol=2e-5)


def test_detail_that_the_new_pixels_cannot_hold_is_gone():
    image = wave(96, 2.0, 192.0 / 40, 0.0)[None].astype(np.float32)  # 4.8 A; 3 A pixels end at 6 A
    assert np.abs(resample(image, 64, 1.5)).max() < 1e-4
    kept = wave(96, 2.0, 192.0 / 20, 0.0)[None].astype(np.float32)
    np.testing.assert_allclose(resample(kept, 64, 1.5)[0] / 1.5, wave(64, 3.0, 9.6, 0.0), atol=1e-4)


@pytest.mark.parametrize("ratio", [1.0, 1.13, 1.5, 2.2])
def test_white_noise_keeps_its_variance(rng, ratio):
    images = rng.normal(size=(60, 64, 64)).astype(np.float32)
    assert resample(images, int(64 / ratio), ratio).std() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(("box", "ratio"), [(33, 2.0), (16, 0.9), (0, 1.0)])
def test_what_does_not_fit_is_refused(box, ratio):
    with pytest.raises(ValueError, match="Use larger pixels and at most"):
        resample(np.zeros((1, 64, 64), np.float32), box, ratio)
