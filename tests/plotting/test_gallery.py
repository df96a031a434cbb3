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


def drawn(*given, **how):
    return plot_class_averages(*given, **how).axes[0]


def texts(ax):
    return [text.get_text() for text in ax.texts if text.get_text()]


def test_largest_class_first_and_empty_classes_left_out():
    counts = np.array([5, 0, 12, 7])
    assert class_order(counts).tolist() == [2, 3, 0]
    ax = drawn(gradients(4), counts=counts, numbers=True)
    assert texts(ax) == ["12", "7", "5", "3", "4", "1"]  # sizes, then numbers counted from 1
    assert ax.get_title() == "24 particles in 3 of 4 classes"


def test_classes_to_leave_out_come_last_with_a_cross_and_those_of_two_particles_are_not_drawn():
    quality = {"size": [9, 2, 40, 12, 0], "keep": [True, True, False, True, False], "resolution": [9.0] * 5}
    ax = drawn(gradients(5), quality=quality)
    assert [text for text in texts(ax) if text != "9 Å"] == ["12", "9", "40", "✕"]
    cross, last = ax.texts[-1].get_position(), ax.images[0].get_extent()[1]
    assert cross[0] > last / 2, "in the tile of the last class"
    assert ax.get_title() == (
        "63 particles in 3 of 5 classes, 1 of one or two particles not shown; ✕: 1 suggested to leave out"
    )
    assert texts(drawn(gradients(2), counts=[2, 1])) == ["2"], "unless there is none other"


def test_equal_sizes_keep_their_order():
    assert class_order(np.full(5, 3.0)).tolist() == [0, 1, 2, 3, 4]


def test_without_sizes_classes_stand_as_they_come_and_unknown_resolutions_are_blank():
    ax = drawn(gradients(4), quality={"resolution": [20.0, np.nan, 8.0, np.inf]})
    assert texts(ax) == ["20 Å", "8 Å"]
    assert texts(drawn(gradients(3), counts=[5, 0, 9], order="index")) == ["5", "0", "9"]


def test_tiles_stand_where_the_order_says():
    averages = gradients(6)
    averages[4] *= -1
    ax = drawn(averages, counts=[3, 3, 3, 3, 9, 3], n_columns=3)
    picture = ax.images[0].get_array()
    assert picture[4, 0] > picture[4, 7]  # the first tile is class 5, which falls along x
    step = 8 + 1
    assert picture[4, step] < picture[4, step + 7]  # the second rises


@pytest.mark.parametrize("n_tiles", [1, 2, 7, 10, 40, 97, 300, 1000])
def test_pictures_are_compact(n_tiles):
    columns = balanced_columns(n_tiles)
    rows = -(-n_tiles // columns)
    assert columns >= rows or columns == 12  # more would not be readable
    assert rows * columns - n_tiles < columns
    assert n_tiles < 4 or columns / rows < 4


def test_scale_bar_has_its_length_in_pixels():
    ax = drawn(gradients(2, box=64), pixel_size=3.54)
    assert texts(ax) == ["100 Å"]
    (bar,) = ax.lines
    assert np.ptp(bar.get_xdata()) * 3.54 == pytest.approx(100)
    assert min(bar.get_ydata()) > ax.images[0].get_extent()[2], "under the tiles"


def test_the_given_axes_are_used_and_pyplot_is_not():
    def shown():
        pyplot = sys.modules.get("matplotlib.pyplot")  # there only if somebody else has imported it
        return [] if pyplot is None else pyplot.get_fignums()

    before = shown()
    figure = Figure()
    ax = figure.add_subplot()
    assert plot_class_averages(gradients(3), ax=ax) is figure
    assert shown() == before


def test_a_notebook_can_show_the_figure_and_a_file_can_hold_it(tmp_path):
    figure = plot_class_averages(
        gradients(3), quality={"size": [3, 2, 1], "resolution": [9, 10, 11.5]}, pixel_size=2.0
    )
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
        ({"quality": {"resolution": np.ones((3, 1))}}, "same fit"),
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
