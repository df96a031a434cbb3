import numpy as np
import pytest

from sklearn_cryoem.plotting._tiles import disc_tiles, mosaic, round_length


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
