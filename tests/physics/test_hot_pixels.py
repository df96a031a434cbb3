"""Single pixels that are far off their neighbours."""

import numpy as np
import pytest

from sklearn_cryoem.physics.filters import clip_hot_pixels, neighbour_residual


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
