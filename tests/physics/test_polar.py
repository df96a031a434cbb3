"""The polar grid against direct sums, and the laws its angular orders obey."""

import numpy as np
import pytest

from sklearn_cryoem.physics.masks import soft_disc
from sklearn_cryoem.physics.polar import (
    PolarGrid,
    angular_orders,
    even_orders,
    from_angular_orders,
    images_from_polar,
    n_angular_orders,
    order_shares,
    polar_grid,
    polar_transform,
    translation_phase,
)


@pytest.mark.parametrize("box", [16, 17])
def test_values_are_the_direct_sum_at_the_grid_points(box, rng, direct_transform):
    images = rng.standard_normal((2, box, box)).astype(np.float32)
    grid = polar_grid(box, 5.5, 6.0)
    assert (grid.n_rings, grid.radius[0], grid.radius[-1]) == (5, 1.0, 5.0)
    assert grid.azimuth[0] == 0 and grid.azimuth[-1] < np.pi and grid.n_angles == 2 * len(grid.azimuth)
    kx, ky = (np.broadcast_to(k.ravel(), (2, k.size)) for k in (grid.kx, grid.ky))
    expected = direct_transform(images, kx, ky).reshape(2, 5, -1)
    values = polar_transform(images, grid)
    error = np.linalg.norm(values - expected) / np.linalg.norm(expected)
    assert values.dtype == np.complex64 and error < 1e-3, f"relative error {error:.2g}"
    assert polar_transform(images[:0], grid).shape == (0, *values.shape[1:])


@pytest.mark.parametrize("n_orders", [None, 12])
def test_turning_the_image_multiplies_each_order_by_a_phase(n_orders, rng, blob_image):
    box = 48
    grid = polar_grid(box, 14, 20.0)
    kept = n_orders or grid.n_angles // 2
    psi = rng.uniform(-np.pi, np.pi)
    # F'(theta) = F(theta + psi): the content is turned by -psi
    images = np.stack([blob_image(box), blob_image(box, -psi)])
    orders = angular_orders(polar_transform(images, grid), kept)
    expected = orders[0] * np.exp(1j * psi * np.arange(kept))
    assert np.abs(orders[1] - expected).max() < 2e-3 * np.abs(orders[0]).max()


def test_orders_do_not_depend_on_the_number_of_angles(blob_image):
    images = blob_image(48)[None]
    fine, coarse = PolarGrid(48, 10, 160), PolarGrid(48, 10, 96)
    one, other = (angular_orders(polar_transform(images, grid), 20) for grid in (fine, coarse))
    np.testing.assert_allclose(one, other, atol=1e-3 * np.abs(one).max())


def test_orders_and_values_are_inverse(rng):
    values = (rng.standard_normal((3, 4, 10)) + 1j * rng.standard_normal((3, 4, 10))).astype(np.complex64)
    orders = angular_orders(values, 10)  # of 20 angles: all but the last order
    again = angular_orders(from_angular_orders(orders, 20), 10)
    np.testing.assert_allclose(again, orders, atol=1e-6)
    with pytest.raises(ValueError, match="Use at least 20"):
        from_angular_orders(orders, 18)


def test_the_correlation_over_rotations_is_that_of_the_whole_plane(rng):
    # sum over the full circle of F conj(G) = n_angles * sum over all m of a_m conj(b_m)
    shape = (2, 1, 16)
    values = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    a, b = angular_orders(values, 17)  # order 16 is the last that 32 angles know
    weight = np.where(np.isin(np.arange(a.shape[-1]), [0, 16]), 1.0, 2.0)
    over_half = (values[0] * values[1].conj()).real.sum()
    assert 32 * (weight * (a * b.conj()).real).sum() == pytest.approx(2 * over_half, rel=1e-4)


def test_energy_of_an_image_lies_in_the_orders_that_its_radius_allows(rng):
    box, radius, k_max = 64, 14.0, 20
    images = rng.standard_normal((3, box, box)).astype(np.float32) * soft_disc(box, radius - 3, 3.0)
    grid = PolarGrid(box, k_max, 256)
    power = np.abs(angular_orders(polar_transform(images, grid), 128)) ** 2
    n_orders = n_angular_orders(box, k_max, radius)
    assert n_orders < 70
    assert power[..., n_orders:].sum() < 1e-4 * power.sum()


@pytest.mark.parametrize("box", [48, 49])
def test_images_come_back_from_their_polar_transform(box, blob_image):
    image = blob_image(box, width=1.6)
    grid = polar_grid(box, (box - 1) // 2, 0.4 * box)
    back = images_from_polar(polar_transform(image[None], grid), grid)[0]
    inside = soft_disc(box, 0.3 * box, 0.0) > 0
    assert np.corrcoef(back[inside], image[inside])[0, 1] > 0.999
    slope = np.polyfit(image[inside], back[inside], 1)[0]
    assert slope == pytest.approx(1.0, abs=0.02)


def test_translation_phase_moves_the_content(blob_image):
    grid = polar_grid(48, 14, 20.0)
    moves = np.array([[3.0, -4.0], [-1.5, 0.5]])
    phase = translation_phase(grid, moves)
    still = polar_transform(blob_image(48)[None], grid)
    moved = polar_transform(np.stack([blob_image(48, 0.0, move) for move in moves]), grid)
    np.testing.assert_allclose(still * phase, moved, atol=2e-3 * np.abs(still).max())


def test_even_orders_of_a_cosine():
    azimuth = np.arange(24) * np.pi / 24
    values = 3.0 + 2.0 * np.cos(4 * (azimuth - 0.3))
    orders = even_orders(values[None].astype(np.float32), 5)[0]
    np.testing.assert_allclose(orders, [3.0, 0, np.exp(-1.2j), 0, 0], atol=1e-6)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"Use polar_grid\(box, k_max, radius_px\)"):
        PolarGrid(32, 16, 64)
    with pytest.raises(ValueError, match="even n_angles"):
        PolarGrid(32, 8, 63)


def test_order_shares_are_those_of_white_noise_in_a_disc(rng):
    box, radius_px = 32, 10.0
    grid = polar_grid(box, 9.0, 1.5 * radius_px)
    axis = np.arange(box) - box // 2
    disc = np.hypot(axis, axis[:, None]) < radius_px
    noise = (rng.standard_normal((1600, box, box)) * disc).astype(np.float32)
    power = np.mean(np.abs(angular_orders(polar_transform(noise, grid), grid.n_angles // 2)) ** 2, axis=0).T
    power[1:] *= 2.0
    share = order_shares(grid, radius_px, len(power))
    np.testing.assert_allclose(share.sum(axis=0), 1.0, atol=1e-6)
    np.testing.assert_allclose(power / power.sum(axis=0), share, atol=0.05)
