import numpy as np
import pytest

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.plotting import plot_convergence
from sklearn_cryoem.plotting.convergence import CROSS_FITTED, FITTED, joined


def test_the_line_is_broken_where_the_objective_changes():
    ax = plot_convergence([1.0, 2.0, 0.0, 1.0, 1.5], stage=[0, 0, 1, 1, 1])
    solid = [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "o"]
    assert solid == [[1, 2], [3, 4, 5]]


def test_pieces_are_joined_and_the_last_keeps_its_values(rng):
    trace, breaks = rng.normal(size=12), np.array([3, 4, 9])
    whole = joined(trace, breaks)
    np.testing.assert_allclose(whole[9:], trace[9:])
    for first, last in ((0, 3), (4, 9), (9, 12)):
        np.testing.assert_allclose(np.diff(whole[first:last]), np.diff(trace[first:last]))
    np.testing.assert_allclose(whole[breaks], whole[breaks - 1])
    np.testing.assert_array_equal(joined(trace, np.array([], dtype=int)), trace)


def test_finer_resolution_is_drawn_higher_and_breaks_the_line(tmp_path):
    ax = plot_convergence([1, 2, 5, 6], resolution=[40, 40, 10, 10])
    twin = next(other for other in ax.figure.axes if other is not ax)
    (coarse, fine) = twin.transData.transform([(1, 40), (1, 10)])[:, 1]
    assert fine > coarse
    assert twin.get_ylabel() == "resolution limit (Å)"
    named = plot_convergence([1, 2], resolution=[4, 3], resolution_label="best reference (px)")
    assert "best reference (px)" in [other.get_ylabel() for other in named.figure.axes]
    assert sum(line.get_marker() == "o" for line in ax.lines) == 2
    ax.figure.savefig(tmp_path / "convergence.png", dpi=40)


def test_a_resolution_that_hardly_changes_is_named_itself():
    ax = plot_convergence([1, 2, 3], resolution=[25.714, 25.714, 25.714])
    twin = next(other for other in ax.figure.axes if other is not ax)
    np.testing.assert_allclose(twin.get_yticks(), [25.7])


def test_one_iteration_is_enough(tmp_path):
    ax = plot_convergence([np.float32(-3.0)], resolution=[np.inf])
    ax.figure.savefig(tmp_path / "one.png", dpi=40)
    assert [tick for tick in ax.get_xticks() if 0.5 <= tick <= 1.5] == [1]


def cross_fitted(n_marching=6, n_settled=4, n_em=5):
    """A fit in which detail comes in, then settles, then EM begins."""
    n_held_out = n_marching + n_settled
    n_iter = n_held_out + n_em
    return {
        "resolution": np.r_[np.linspace(40.0, 15.0, n_marching), np.full(n_iter - n_marching, 10.0)],
        "held_out": np.arange(n_iter) < n_held_out,
        "stage": np.r_[np.arange(n_held_out), np.full(n_em, n_held_out)],
    }


def test_cross_fitted_iterations_are_shaded_named_and_drawn_where_they_compare():
    given = cross_fitted()
    objective = np.r_[
        -900.0, -500, -400, -390, -380, -370, -100, -99, -98.5, -98.4, -102, -101, -100, -99, -98
    ]
    ax = plot_convergence(objective, **given)
    lines = [line for line in ax.lines if line.get_marker() == "o"]
    assert [line.get_xdata().tolist() for line in lines] == [[7, 8, 9, 10], [11, 12, 13, 14, 15]]
    assert [line.get_linestyle() for line in lines] == ["--", "-"]
    gain = np.diff(lines[0].get_ydata())
    np.testing.assert_allclose(gain, [1, 0.5, 0.1])  # of held-out images, as measured
    np.testing.assert_array_equal(lines[1].get_ydata(), objective[10:])
    assert [text.get_text() for text in ax.texts] == [CROSS_FITTED, FITTED]
    (band,) = ax.patches
    extent = band.get_extents().transformed(ax.transData.inverted())  # a polygon in matplotlib before 3.9
    np.testing.assert_allclose([extent.x0, extent.x1], [0.5, 10.5])
    low, high = ax.get_ylim()
    assert -110 < low < high < -95, "what is not drawn takes no room"


def test_a_fit_that_was_interrupted_while_cross_fitted_is_drawn_too():
    given = {name: values[:2] for name, values in cross_fitted().items()}
    ax = plot_convergence([-9.0, -5.0], **given)
    assert [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "o"] == [[2]]
    assert [text.get_text() for text in ax.texts] == [CROSS_FITTED]


@pytest.mark.parametrize("name", ["resolution", "stage", "held_out"])
def test_arrays_that_do_not_fit_are_named(name):
    with pytest.raises(ParticleDataError, match="one value for each iteration"):
        plot_convergence([1, 2, 3], **{name: [1, 2]})
    with pytest.raises(ParticleDataError, match="at least one iteration"):
        plot_convergence([])


@pytest.mark.parametrize("resolution", [[46.0, 20.0, 6.6], [500.0, 2.0], [46.0, 45.0], [8.0, 8.0]])
def test_ticks_of_resolution_lie_evenly_between_its_ends(resolution):
    ax = plot_convergence(np.arange(len(resolution)), resolution=resolution)
    ticks = ax.figure.axes[1].get_yticks()
    assert ticks.min() == min(resolution) and ticks.max() == max(resolution) and len(ticks) <= 6
