import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.plotting import plot_class_averages
from sklearn_cryoem.plotting._figure import round_length
from sklearn_cryoem.plotting.gallery import balanced_columns, class_order, mosaic


def gradients(n_classes, box=8):
    """Class k rises along x by k + 1: each tile is known after its own contrast by its sign alone."""
    return np.linspace(-1, 1, box) * np.ones((n_classes, box, 1)) * (np.arange(n_classes) + 1)[:, None, None]


def texts(ax):
    return [text.get_text() for text in ax.texts if text.get_text()]


def test_largest_class_first_and_empty_classes_left_out():
    counts = np.array([5, 0, 12, 7])
    assert class_order(counts).tolist() == [2, 3, 0]
    ax = plot_class_averages(gradients(4), counts=counts, numbers=True)
    assert texts(ax) == ["12", "7", "5", "3", "4", "1"]  # sizes, then numbers counted from 1
    assert ax.get_title() == "24 particles in 3 of 4 classes"


def test_equal_sizes_keep_their_order():
    assert class_order(np.full(5, 3.0)).tolist() == [0, 1, 2, 3, 4]


def test_without_sizes_classes_stand_as_they_come_and_unknown_resolutions_are_blank():
    ax = plot_class_averages(gradients(4), resolutions=np.array([20.0, np.nan, 8.0, np.inf]))
    assert texts(ax) == ["20 Å", "8 Å"]
    assert texts(plot_class_averages(gradients(3), counts=[5, 0, 9], order="index")) == ["5", "0", "9"]


def test_tiles_stand_where_the_order_says():
    averages = gradients(6)
    averages[4] *= -1
    ax = plot_class_averages(averages, counts=[1, 1, 1, 1, 9, 1], n_columns=3)
    picture = ax.images[0].get_array()
    assert picture[4, 0] > picture[4, 7]  # the first tile is class 5, which falls along x
    step = 8 + 1
    assert picture[4, step] < picture[4, step + 7]  # the second rises


@pytest.mark.parametrize("n_tiles", [1, 2, 7, 10, 40, 97, 300, 1000])
def test_pictures_are_compact(n_tiles):
    columns = balanced_columns(n_tiles)
    rows = -(-n_tiles // columns)
    assert columns >= rows
    assert rows * columns - n_tiles < columns
    assert n_tiles < 4 or columns / rows < 4


def test_scale_bar_has_its_length_in_pixels():
    ax = plot_class_averages(gradients(2, box=64), pixel_size=3.54)
    assert texts(ax) == ["100 Å"]
    x = ax.lines[0].get_xdata()
    assert np.ptp(x) * 3.54 == pytest.approx(100)


def test_the_given_axes_are_used_and_pyplot_is_not():
    def shown():
        pyplot = sys.modules.get("matplotlib.pyplot")  # there only if somebody else has imported it
        return [] if pyplot is None else pyplot.get_fignums()

    before = shown()
    figure = Figure()
    ax = figure.add_subplot()
    assert plot_class_averages(gradients(3), ax=ax) is ax
    assert shown() == before


def test_a_notebook_can_show_the_figure_and_a_file_can_hold_it(tmp_path):
    figure = plot_class_averages(
        gradients(3), counts=[3, 2, 1], resolutions=[9, 10, 11.5], pixel_size=2.0
    ).figure
    assert figure._repr_png_().startswith(b"\x89PNG")
    figure.savefig(tmp_path / "gallery.png")
    assert (tmp_path / "gallery.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ({"classification": np.zeros((4, 8))}, "reshape vectors to square images"),
        ({"classification": np.zeros((0, 8, 8))}, "class_averages_"),
        ({"classification": [0, 1, 1]}, "not labels, which hold no images"),
        ({"counts": [1, 2]}, "same fit"),
        ({"resolutions": np.ones((3, 1))}, "same fit"),
        ({"counts": [0, 0, 0]}, "belongs to this fit"),
    ],
)
def test_arrays_that_do_not_fit_are_named(arguments, remedy):
    with pytest.raises(ParticleDataError, match=remedy):
        plot_class_averages(**{"classification": gradients(3), **arguments})


def test_mosaic_puts_each_tile_into_its_cell():
    tiles = 2 + np.arange(3, dtype=np.float32)[:, None, None] * np.ones((3, 2, 2), np.float32)
    picture = mosaic(tiles, np.array([0, 1, 1]), np.array([1, 0, 1]), (2, 2), gap=(1, 1))
    assert picture.shape == (6, 6)
    assert (picture[:2, 3:5] == 2).all() and (picture[3:5, :2] == 3).all() and (picture[3:5, 3:5] == 4).all()
    assert (picture == 1).sum() == 36 - 12


@pytest.mark.parametrize(
    ("limit", "length"), [(1.0, 1), (101.9, 100), (49.9, 20), (0.7, 0.5), (2000, 2000), (199, 100)]
)
def test_scale_bars_have_round_lengths(limit, length):
    assert round_length(limit) == pytest.approx(length)
