import numpy as np
import pytest

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


@pytest.mark.parametrize("step", [None, 0.2, 0.05, 0.0491])
def test_angles_are_even_in_number_and_no_coarser_than_asked(step):
    space = space_at(6.0, angle_step_rad=step)
    assert space.n_angles % 4 == 0 and space.n_angles >= 2 * space.n_orders  # Nyquist of the orders
    if step is not None:
        assert 2 * np.pi / space.n_angles <= step * (1 + 1e-6)
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
    space = space_at(k_max, angle_step_rad=0.05)
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
