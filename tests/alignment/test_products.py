"""References and images made ready for the search."""

import numpy as np
import pytest

from sklearn_cryoem.alignment.products import (
    coarser_references,
    reference_bank,
    ring_power,
)
from sklearn_cryoem.physics.polar import angular_orders, even_orders, polar_transform


@pytest.fixture
def space(make_settings):
    return make_settings().space(32, 13.0)


def test_bank_holds_every_reference_displaced_against_every_shift(space, blob_image, references):
    bank = reference_bank(polar_transform(references, space.grid), space, 3)
    n, area = space.n_rings, 2 * np.pi * space.grid.radius
    columns = bank.columns(slice(0, 3))
    table = (columns[:, :n] + 1j * columns[:, n:]).reshape(space.n_orders, n, 3, space.n_shifts)
    # content displaced by -u: adding the shift u centres it
    moved = np.stack([[blob_image(z, 0.0, -u) for u in space.shifts_px] for z in range(3)])
    values = polar_transform(moved.reshape(-1, 32, 32), space.grid)
    orders = angular_orders(values, space.n_orders)[..., space.order] * area[:, None]
    expected = orders.reshape(3, space.n_shifts, n, -1).transpose(3, 2, 0, 1)
    np.testing.assert_allclose(table, expected, atol=2e-3 * np.abs(expected).max())


def test_bank_holds_half_the_power_of_every_reference_by_even_orders(space, references):
    values = polar_transform(references, space.grid)
    bank = reference_bank(values, space, 3)
    expected = even_orders(np.abs(values) ** 2, 3) * (np.pi * space.grid.radius)[:, None]
    np.testing.assert_allclose(bank.power, expected.transpose(2, 1, 0), rtol=1e-4, atol=1e-4)
    assert reference_bank(values, space, 999).power.shape[0] == space.n_even  # all that there are


def test_ring_power_is_the_mean_of_the_squared_modulus(rng):
    values = (rng.standard_normal((2, 4, 6)) + 1j * rng.standard_normal((2, 4, 6))).astype(np.complex64)
    np.testing.assert_allclose(ring_power(values), (np.abs(values) ** 2).mean(axis=-1), rtol=1e-5)


def test_references_on_a_coarser_grid_are_their_transform_there(make_settings, space, references):
    coarse = make_settings().space(32, 7.0)
    expected = polar_transform(references, coarse.grid)
    found = coarser_references(polar_transform(references, space.grid), coarse)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
