import numpy as np
import pytest

from sklearn_cryoem.alignment.products import Workspace, cells_above, synthesise
from sklearn_cryoem.alignment.search import search_space, shift_grid


def space_at(k_max, **options):
    options = {"reference_radius_px": 13.0, "max_shift_px": 3.0, **options}
    return search_space(32, k_max, **options)


def test_shifts_fill_the_disc_from_the_origin_outwards():
    shifts = shift_grid(2.0, 1.0)
    assert len(shifts) == 13  # 1 + 4 + 4 + 4
    np.testing.assert_array_equal(shifts[0], [0, 0])
    length = np.hypot(*shifts.T)
    assert np.all(np.diff(length.round(9)) >= 0) and length.max() == 2.0
    assert len(np.unique(shifts, axis=0)) == 13
    np.testing.assert_allclose(shifts.sum(axis=0), 0.0)


def test_smaller_discs_are_the_beginning_of_larger_ones():
    large = shift_grid(5.0, 1.5)
    for radius in (0.0, 1.5, 2.2, 3.0, 4.9):
        small = shift_grid(radius, 1.5)
        np.testing.assert_array_equal(small, large[: len(small)])
    np.testing.assert_array_equal(shift_grid(0.0, 1.0), [[0.0, 0.0]])


def test_half_the_step_holds_all_shifts_of_the_whole_step():
    fine, coarse = shift_grid(3.0, 0.5), shift_grid(3.0, 1.0)
    assert {tuple(s) for s in coarse} < {tuple(s) for s in fine}


def test_everything_grows_with_the_resolution():
    spaces = [space_at(k) for k in (4.0, 6.0, 9.0, 12.0)]
    for name in ("n_rings", "n_orders", "n_angles", "n_shifts"):
        counts = [getattr(space, name) for space in spaces]
        assert counts == sorted(counts) and counts[0] < counts[-1], name
    assert [space.n_rings for space in spaces] == [4, 6, 9, 12]
    steps = [space.shift_step_px for space in spaces]
    assert steps == sorted(steps, reverse=True) and steps[-1] == 1.0  # never below a pixel


@pytest.mark.parametrize("k_max", [4.0, 6.0, 9.0])
def test_angles_are_even_in_number_and_as_many_as_the_orders_need(k_max):
    space = space_at(k_max)
    assert space.n_angles % 4 == 0 and space.n_angles >= 2 * space.n_orders  # Nyquist of the orders
    np.testing.assert_allclose(np.diff(space.angles_rad), 2 * np.pi / space.n_angles)
    assert len(space.angles_rad) == space.n_angles
    np.testing.assert_allclose(space.angles_rad[::-1], 2 * np.pi - space.angles_rad)  # they mirror each other


def test_shift_prior_is_a_normalised_gaussian():
    space = space_at(12.0)
    log_prior = space.log_shift_prior(1.7)
    assert np.exp(log_prior).sum() == pytest.approx(1.0)
    expected = -0.5 * (space.shifts_px**2).sum(axis=1) / 1.7**2
    np.testing.assert_allclose(log_prior - log_prior[0], expected)


@pytest.mark.parametrize("k_max", [6.0, 7.0, 9.0])
def test_order_lists_even_ones_first(k_max):
    space = space_at(k_max)
    assert sorted(space.order) == list(range(space.n_orders))
    even, odd = space.order[: space.n_even], space.order[space.n_even :]
    assert not np.any(even % 2) and np.all(odd % 2) and np.all(np.diff(even) > 0) and np.all(np.diff(odd) > 0)


@pytest.mark.parametrize("k_max", [6.0, 7.0])  # an odd and an even number of orders
def test_synthesis_is_the_fourier_series_over_four_quarters_of_a_turn(rng, k_max):
    space = space_at(k_max)
    c = rng.standard_normal(space.n_orders) + 1j * rng.standard_normal(space.n_orders)  # orders 0, 1, ..
    gain = np.where(np.arange(space.n_orders) == 0, 1.0, 2.0)
    turn = np.exp(1j * space.angles_rad[:, None] * np.arange(space.n_orders))
    expected = (turn * gain * c).real.sum(axis=1)  # (n_angles,)
    stored = np.full(2 * space.n_even, 1e3 + 1e3j)  # what pads the odd orders must not matter
    stored[: space.n_orders] = c[space.order]
    waves = np.empty((2, 2, space.n_angles // 4))  # cosines or sines, even or odd
    for part, values in enumerate((stored.real, stored.imag)):
        for parity in range(2):
            orders = values.reshape(2, -1)[parity]
            waves[part, parity] = space.synthesis[part, parity] @ orders
    cosines, sines = waves
    quarters = [sign * w[1] + w[0] for sign in (1, -1) for w in (cosines + sines, cosines - sines)]
    np.testing.assert_allclose(np.concatenate(quarters), expected[space.mirrored_angles], atol=1e-4)


def test_analysis_is_the_transform_of_a_posterior_over_angles(rng):
    space = space_at(6.0)
    weight = rng.uniform(size=space.n_angles)
    expected = weight @ np.exp(-1j * space.angles_rad[:, None] * space.order)
    result = (weight @ space.analysis.astype(float)).view(complex)
    np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize("half_window", [0.0, 0.01, 0.3, 1.7, 3.1])
def test_a_window_is_searched_to_its_ends_and_no_coarser_than_the_circle(half_window):
    circle, window = (space_at(6.0, angle_range_rad=r) for r in (None, half_window))
    assert window.angles_rad[[0, -1]] == pytest.approx([-half_window, half_window])
    assert window.angles_rad[window.n_angles // 2] == 0.0 and len(window.angles_rad) == window.n_angles
    assert window.angle_step_rad <= circle.angle_step_rad * (1 + 1e-6)
    np.testing.assert_allclose(np.diff(window.angles_rad), window.angle_step_rad, atol=1e-12)
    assert window.n_angles <= circle.n_angles + 3
    assert sorted(window.mirrored_angles) == list(range(window.n_angles))


def test_a_window_of_half_a_turn_to_each_side_is_the_circle():
    np.testing.assert_array_equal(space_at(6.0, angle_range_rad=np.pi).angles_rad, space_at(6.0).angles_rad)


def test_a_small_window_is_less_work():
    assert space_at(6.0, angle_range_rad=0.2).work < 0.7 * space_at(6.0).work


def test_the_coarse_search_keeps_to_the_window():
    options = {"coarsest_k": 6.0, "angle_range_rad": 0.3}
    space = search_space(64, 25.0, reference_radius_px=26.0, max_shift_px=5.0, **options)
    assert space.coarse.angle_range_rad == 0.3 and space.coarse.n_angles < space.n_angles


@pytest.mark.parametrize("k_max", [6.0, 7.0])  # an odd and an even number of orders
@pytest.mark.parametrize("half_window", [0.0, 0.4])
def test_the_products_of_a_window_are_the_fourier_series(rng, k_max, half_window):
    space = space_at(k_max, angle_range_rad=half_window)
    n_columns = 5
    c = rng.standard_normal((space.n_orders, n_columns)) + 1j * rng.standard_normal(
        (space.n_orders, n_columns)
    )
    gain = np.where(np.arange(space.n_orders) == 0, 1.0, 2.0)
    expected = (np.exp(1j * space.angles_rad[:, None] * np.arange(space.n_orders)) * gain @ c).real
    stored = np.full((2 * space.n_even, 2, n_columns), 1e3, dtype=np.float32)
    stored[: space.n_orders] = np.stack([c[space.order].real, c[space.order].imag], axis=1)
    same, mirrored, top = synthesise(stored.reshape(2, space.n_even, 2, -1), space, Workspace())
    np.testing.assert_allclose(top, expected.max(axis=0), atol=1e-4)
    threshold = np.array([0.0], dtype=np.float32)  # all columns belong to one image
    image, row, angle, log = cells_above(threshold, same, mirrored, top[None], space)
    found = np.full_like(expected, np.nan)
    found[angle, row] = log
    assert not image.any() and len(log) == np.sum(expected >= 0)  # each cell once
    np.testing.assert_allclose(found[expected >= 0], expected[expected >= 0], atol=1e-4)
