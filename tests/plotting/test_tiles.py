import numpy as np
import pytest

from sklearn_cryoem.plotting._tiles import disc_tiles, inscribed_disc, mosaic, robust_grey, round_length


def test_grey_values_do_not_depend_on_brightness_or_contrast(rng):
    images = rng.normal(size=(3, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(robust_grey(7 * images - 3), robust_grey(images), atol=1e-5)


def test_one_hot_pixel_does_not_darken_a_tile(rng):
    image = rng.normal(size=(1, 64, 64)).astype(np.float32)
    spoiled = image.copy()
    spoiled[0, 32, 32] = 1e6
    assert abs(np.median(robust_grey(spoiled)) - np.median(robust_grey(image))) < 0.02


def test_corners_outside_the_mask_do_not_count():
    image = np.zeros((1, 32, 32), np.float32)
    inside = inscribed_disc(32)
    image[0, inside] = np.linspace(0, 1, inside.sum())
    spoiled = image.copy()
    spoiled[0, ~inside] = -50.0
    np.testing.assert_allclose(robust_grey(spoiled)[0, inside], robust_grey(image)[0, inside], atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 5.0, np.nan, np.inf])
def test_empty_images_become_mid_grey_without_a_warning(value):
    grey = robust_grey(np.full((2, 8, 8), value, np.float32))
    assert (grey == 0.5).all()


def test_a_bad_tile_does_not_touch_its_neighbour(rng):
    images = rng.normal(size=(2, 16, 16)).astype(np.float32)
    alone = robust_grey(images[:1])
    images[1, 3, 3] = np.nan
    np.testing.assert_array_equal(robust_grey(images)[0], alone[0])


def test_mosaic_puts_each_tile_into_its_cell():
    tiles = np.arange(3, dtype=np.float32)[:, None, None] * np.ones((3, 2, 2), np.float32)
    picture = mosaic(tiles, np.array([0, 1, 1]), np.array([1, 0, 1]), (2, 2), gap=(1, 1), fill=-1)
    assert picture.shape == (6, 6)
    assert (
        (picture[0:2, 3:5] == 0).all() and (picture[3:5, 0:2] == 1).all() and (picture[3:5, 3:5] == 2).all()
    )
    assert (picture == -1).sum() == 36 - 12


def test_discs_are_opaque_in_the_middle_and_clear_at_the_corners():
    tiles = disc_tiles(np.full((2, 33, 33), 0.7, np.float32), np.array([1.0, 0.0]))
    assert tiles.shape == (2, 33, 33, 4)
    assert tiles[0, 16, 16, 3] == 1.0 and tiles[0, 0, 0, 3] == 0.0
    assert (tiles[1, ..., 3] == 0.0).all()


@pytest.mark.parametrize(
    ("limit", "length"), [(1.0, 1), (101.9, 100), (49.9, 20), (0.7, 0.5), (2000, 2000), (199, 100)]
)
def test_scale_bars_have_round_lengths(limit, length):
    assert round_length(limit) == pytest.approx(length)
