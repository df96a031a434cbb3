import numpy as np
import pytest


def test_balance_tilts_the_class_prior(make_model, make_settings, references):
    space = make_settings().space(32, 8.0)
    weight, balance = np.array([0.5, 0.3, 0.2]), np.array([0.4, -0.9, 0.5])
    model = make_model(references, weight=weight, balance=balance, shift_sigma_px=0.8)
    prior = model.log_prior(space)
    np.testing.assert_allclose(prior.reference, np.log(weight) + balance)
    np.testing.assert_allclose(prior.shift, space.log_shift_prior(0.8))


def test_a_class_of_weight_zero_has_a_finite_log_prior(make_model, make_settings, references):
    model = make_model(references, weight=np.array([1.0, 0.0, 0.0]))
    prior = model.log_prior(make_settings().space(32, 8.0))
    assert np.isfinite(prior.reference).all() and prior.reference[1] < -500


def test_the_search_space_is_that_of_the_settings(make_settings):
    space = make_settings(max_shift_px=3.0).space(32, 11.0)
    assert space.n_rings == 11 and space.shift_step_px == 1.0
    assert np.hypot(*space.shifts_px.T).max() == pytest.approx(3.0)
    small, large = (make_settings(mask_radius_px=r).space(32, 7.0) for r in (6.0, 12.0))
    assert small.n_orders < large.n_orders  # the orders follow the radius of the references
