from dataclasses import replace

import numpy as np
import pytest

from sklearn_cryoem.alignment.features import FeatureCache, ImageFeatures
from sklearn_cryoem.physics.masks import mask_background, soft_disc
from sklearn_cryoem.physics.polar import angular_orders, even_orders, polar_grid, polar_transform

N_RINGS, N_ORDERS = 10, 20


def assert_same(one, other, rtol):
    for name in ("orders", "ctf_power", "power"):
        a, b = getattr(one, name), getattr(other, name)
        np.testing.assert_allclose(a, b, atol=rtol * np.abs(b).max(), rtol=0, err_msg=name)


def test_features_are_angular_orders_of_the_masked_image_times_its_ctf(rng, make_particles):
    particles = make_particles(rng, 3)
    source = particles.source()
    features = source(np.arange(3), N_RINGS, N_ORDERS)
    grid = polar_grid(32, N_RINGS, 15.0)
    masked = mask_background(particles.images, 13.0, 2.0)
    values = polar_transform(masked, grid)
    radius = np.broadcast_to(grid.radius[:, None], grid.kx.shape).ravel()
    azimuth = np.broadcast_to(grid.azimuth, grid.kx.shape).ravel()
    ctf = particles.ctf(np.arange(3), radius, azimuth).reshape(values.shape)
    expected = ImageFeatures(
        angular_orders(ctf * values, N_ORDERS).transpose(0, 2, 1),
        even_orders(ctf**2, features.ctf_power.shape[1]).transpose(0, 2, 1),
        np.mean(np.abs(values) ** 2, axis=-1),
    )
    assert features.orders.shape == (3, N_ORDERS, N_RINGS) and len(features) == 3
    assert_same(features, expected, rtol=2e-3)  # another number of angles: what aliases differs


def test_power_is_that_of_the_image_and_not_of_the_ctf(rng, make_particles):
    particles = make_particles(rng, 4)
    with_ctf = particles.source()(np.arange(4), N_RINGS, N_ORDERS)
    particles.table = None
    without = particles.source()(np.arange(4), N_RINGS, N_ORDERS)
    np.testing.assert_array_equal(with_ctf.power, without.power)
    assert np.abs(with_ctf.orders).max() < np.abs(without.orders).max()
    np.testing.assert_array_equal(without.ctf_power, np.ones((4, 1, N_RINGS)))


def test_kept_features_equal_those_computed_again(one_rng, make_particles):
    particles = make_particles(one_rng, 9)
    kept, streamed = particles.source(), particles.source(cache_bytes=0.0)
    assert kept.n_bytes > 0 and streamed.n_bytes == 0
    for rows in (np.array([2, 5]), np.arange(1, 9)):  # some rows are new, some are not
        assert_same(kept(rows, 13, 42), streamed(rows, 13, 42), rtol=1e-6)
        assert_same(kept(rows, N_RINGS, N_ORDERS), streamed(rows, N_RINGS, N_ORDERS), rtol=2e-3)


def test_kept_features_are_read_once(one_rng, make_particles):
    particles, reads = make_particles(one_rng, 6), []
    images = particles.source().images
    images = replace(images, read=lambda rows: reads.append(rows) or particles.read(rows))
    cache, shift = FeatureCache(images, 1e9), np.zeros((6, 2))
    for rows, n_rings, n_orders in (([0, 3], N_RINGS, N_ORDERS), ([0, 3, 4], 13, 42), (range(5), 5, 8)):
        cache(np.array(rows), shift[rows], n_rings, n_orders)
    assert [list(rows) for rows in reads] == [[0, 3], [4], [1, 2]]


def test_even_orders_grow_with_astigmatism(one_rng, make_particles):
    counts = [
        make_particles(np.random.default_rng(0), 20, split_angstrom=split).source().n_even
        for split in (None, 0.0, 300.0, 3000.0, 6000.0)
    ]
    assert counts[:2] == [1, 1]
    assert counts == sorted(counts) and len(set(counts[1:])) == 4, counts


def test_even_orders_left_out_are_small(one_rng, make_particles):
    particles = make_particles(one_rng, 5)
    source = particles.source()
    grid = polar_grid(32, 13, 15.0)
    azimuth, radius = (
        np.broadcast_to(grid.azimuth, grid.kx.shape),
        np.broadcast_to(grid.radius[:, None], grid.kx.shape),
    )
    squared = particles.ctf(np.arange(5), radius.ravel(), azimuth.ravel()).reshape(5, *grid.kx.shape) ** 2
    strength = np.abs(even_orders(squared, grid.n_angles // 4)).max(axis=(0, 1))
    assert strength[source.n_even :].max() < 2e-3 * strength[0]
    assert strength[source.n_even - 1] > 1e-4 * strength[0]


def test_noise_fraction_is_the_power_of_white_noise_that_is_left(rng, make_particles):
    particles = make_particles(rng, 400, noise=1.0, split_angstrom=None)
    particles.images = rng.standard_normal(particles.images.shape).astype(np.float32)
    source = particles.source()
    assert source.noise_fraction == pytest.approx(np.mean(soft_disc(32, 13.0, 2.0) ** 2), rel=1e-6)
    power = source(np.arange(400), 13, 20).power.mean(axis=0)  # (n_rings,)
    # the three innermost rings are correlated, and lose what the subtracted background takes
    np.testing.assert_allclose(power[3:], source.noise_fraction, rtol=0.1)


def test_rings_never_exceed_those_of_the_limit(one_rng, make_particles):
    source = make_particles(one_rng, 2).source(k_limit=9.0)
    assert [source.images.n_rings(k) for k in (4.0, 6.7, 9.0, 14.0)] == [4, 6, 9, 9]


def test_taking_and_concatenating_are_inverse(one_rng, make_particles):
    features = make_particles(one_rng, 7).source()(np.arange(7), 13, 42)
    parts = [features.take(rows, 13, 42) for rows in (slice(0, 3), np.array([3, 4]), slice(5, 7))]
    joined = ImageFeatures.concatenate(parts)
    assert_same(joined, features, rtol=0.0)
    assert features.take(slice(None), 6, 5).ctf_power.shape[1:] == (3, 6)  # no more even orders than orders
    assert ImageFeatures.concatenate(parts[:1]) is parts[0]
