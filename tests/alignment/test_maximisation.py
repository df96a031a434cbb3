"""The sums of the M-step against aligning every image at every cell and adding it up point by point."""

from dataclasses import fields, replace

import numpy as np
import pytest

from sklearn_cryoem.alignment.expectation import Posterior
from sklearn_cryoem.alignment.maximisation import Statistics, accumulate, blend
from sklearn_cryoem.alignment.model import polar_statistics

N_CLUSTERS = 3


def posterior_of(rng, n_images, space, n_cells):
    """A posterior over random distinct cells; class 2 has none."""
    size = (n_images, 2 * space.n_shifts, space.n_angles)
    cell = rng.choice(np.prod(size), n_cells, replace=False)
    image, row, angle = np.unravel_index(cell, size)
    weight = rng.uniform(0.1, 1.0, n_cells)
    weight /= np.bincount(image, weight, n_images)[image]
    nothing = np.zeros(n_images, dtype=np.int64)
    evidence = rng.standard_normal(n_images)
    return Posterior(image, row, angle, weight.astype(np.float32), evidence, nothing, nothing, evidence)


def direct_sums(particles, images, posterior, space):
    """Sum of w R^-1 S^-1 C X and of w C^2 at every point of the polar grid, Eq. (4.2)."""
    grid, box = space.grid, space.grid.box
    axis = np.arange(box) - box // 2
    numerator = np.zeros((N_CLUSTERS, grid.n_rings, grid.n_angles // 2), dtype=complex)
    denominator = np.zeros(numerator.shape)
    radius = np.broadcast_to(grid.radius[:, None], grid.kx.shape)
    for image, row, angle, weight in zip(
        posterior.image, posterior.row, posterior.angle, posterior.weight, strict=True
    ):
        cluster, shift = divmod(row, space.n_shifts)
        psi, u = space.angles_rad[angle], space.shifts_px[shift]
        azimuth = grid.azimuth - psi  # the centred image at theta - psi is the class at theta
        kx, ky = grid.radius[:, None] * np.cos(azimuth), grid.radius[:, None] * np.sin(azimuth)
        along_x = np.exp(-2j * np.pi * kx[..., None] * axis / box)
        along_y = np.exp(-2j * np.pi * ky[..., None] * axis / box)
        value = np.einsum("yx,rjx,rjy->rj", images[image], along_x, along_y, optimize=True) / box
        # shifted by u in the frame of the class, so at the class's own frequencies
        value = value * np.exp(-2j * np.pi * (grid.kx * u[0] + grid.ky * u[1]) / box)
        ctf = np.ones(value.shape)
        if particles.table is not None:
            where = (radius.ravel() / (box * 4.0), np.broadcast_to(grid.azimuth, radius.shape).ravel())
            ctf = particles.table[[image]].evaluate(*where, np.array([psi])).reshape(radius.shape)
        numerator[cluster] += weight * ctf * value
        denominator[cluster] += weight * ctf**2
    return numerator, denominator


@pytest.fixture
def setting(rng, make_particles, make_settings):
    def build(n_images=4, n_cells=60, split_angstrom=3000.0):
        particles = make_particles(rng, n_images, noise=0.0, split_angstrom=split_angstrom, max_shift=0.5)
        space = make_settings().space(32, 13.0)
        source = particles.source()
        features = source(np.arange(n_images), space.n_rings, space.n_orders)
        return particles, source, features, space, posterior_of(rng, n_images, space, n_cells)

    return build


@pytest.mark.parametrize("split_angstrom", [None, 3000.0])
def test_numerator_and_denominator_are_sums_over_cells(setting, split_angstrom):
    particles, source, features, space, posterior = setting(split_angstrom=split_angstrom)
    stats = accumulate(features, posterior, space, N_CLUSTERS, source.n_even)
    polar = polar_statistics(stats, space.grid)
    images = source.masked(np.arange(len(features)))
    numerator, denominator = direct_sums(particles, images, posterior, space)
    # NUFFTs are good to 1e-4; the even orders of C^2 that are left out, to 1e-3 each
    np.testing.assert_allclose(polar.numerator, numerator, atol=1e-3 * np.abs(numerator).max())
    np.testing.assert_allclose(polar.denominator, denominator, atol=5e-3 * denominator.max())
    assert not polar.numerator[2].any() and not polar.denominator[2].any()  # the class without an image
    if split_angstrom:
        spread = np.ptp(denominator[:2], axis=-1).max()
        assert spread > 0.1 * denominator.max(), "the CTF is too round for this test to see astigmatism"


def test_scalar_sums_are_those_of_the_cells(setting, references):
    _, source, features, space, posterior = setting()
    stats = accumulate(features, posterior, space, N_CLUSTERS, source.n_even)
    cluster, shift = np.divmod(posterior.row, space.n_shifts)
    mass = [posterior.weight[cluster == z].sum() for z in range(N_CLUSTERS)]
    np.testing.assert_allclose(stats.mass, mass, rtol=1e-6)
    assert stats.mass.sum() == pytest.approx(len(features), rel=1e-6)
    square = (posterior.weight * (space.shifts_px[shift] ** 2).sum(axis=1)).sum()
    assert stats.shift_square[0] == pytest.approx(square, rel=1e-6) and square > 0
    np.testing.assert_allclose(stats.power, features.power.sum(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(stats.n_images, np.full(space.n_rings, 4.0))
    assert stats.log_evidence[0] == pytest.approx(posterior.log_evidence.sum())


def test_sums_of_parts_add_up_to_the_sums_of_the_whole(setting):
    _, source, features, space, posterior = setting(n_images=6, n_cells=200)
    whole = accumulate(features, posterior, space, N_CLUSTERS, source.n_even)
    total = None
    for rows in (slice(0, 2), slice(2, 6)):
        own = (posterior.image >= rows.start) & (posterior.image < rows.stop)
        part = Posterior(
            posterior.image[own] - rows.start,
            *(getattr(posterior, name)[own] for name in ("row", "angle", "weight")),
            *(getattr(posterior, f.name)[rows] for f in fields(Posterior)[4:]),
        )
        block = features.take(rows, space.n_rings, space.n_orders)
        sums = accumulate(block, part, space, N_CLUSTERS, source.n_even)
        total = sums if total is None else total + sums
    for field in fields(Statistics):
        one, other = getattr(total, field.name), getattr(whole, field.name)
        np.testing.assert_allclose(
            one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max(initial=0), err_msg=field.name
        )


def random_statistics(rng, n_orders, n_rings, n_references=2, n_even=3):
    def draw(*shape):
        return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)

    return Statistics(
        draw(n_references, n_orders, n_rings),
        draw(n_references, n_even, n_rings),
        *(
            rng.uniform(1, 2, size)
            for size in (n_rings, n_rings, n_references, 1, 1, (n_references, 2), n_references)
        ),
    )


def test_scaling_and_adding_are_linear(one_rng):
    one, other = random_statistics(one_rng, 7, 4), random_statistics(one_rng, 7, 4)
    combined = one.scaled(2.0) + other.scaled(-0.5)
    for field in fields(Statistics):
        expected = 2.0 * getattr(one, field.name) - 0.5 * getattr(other, field.name)
        np.testing.assert_allclose(getattr(combined, field.name), expected, err_msg=field.name)


def test_resizing_keeps_what_both_sizes_have_and_pads_with_zeros(one_rng):
    small = random_statistics(one_rng, 7, 4)
    large = small.resized(9, 6)
    assert large.numerator.shape == (2, 9, 6) and large.denominator.shape == (2, 3, 6)
    np.testing.assert_array_equal(large.numerator[:, :7, :4], small.numerator)
    np.testing.assert_array_equal(large.power[:4], small.power)
    for added in (large.numerator[:, 7:], large.numerator[..., 4:], large.denominator[..., 4:]):
        assert added.size and not added.any()
    assert not large.n_images[4:].any()  # no image has been seen on the new rings
    back = large.resized(7, 4)
    for field in fields(Statistics):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(small, field.name))


@pytest.mark.parametrize("n_rings", [3, 4, 6])
def test_blending_is_a_weighted_mean_at_the_size_of_the_new_sums(rng, n_rings):
    old, new = random_statistics(rng, 7, 4), random_statistics(rng, 7, n_rings)
    mixed = blend(old, new, 0.3)
    resized = old.resized(7, n_rings)
    for field in fields(Statistics):
        expected = 0.7 * getattr(resized, field.name) + 0.3 * getattr(new, field.name)
        np.testing.assert_allclose(getattr(mixed, field.name), expected, err_msg=field.name)


def test_blending_with_nothing_forgets_the_past(one_rng):
    old, new = random_statistics(one_rng, 7, 4), random_statistics(one_rng, 7, 4)
    assert blend(None, new, 0.3) is new
    unchanged = blend(old, replace(new, mass=np.full(2, 1e9)), 0.0)
    np.testing.assert_array_equal(unchanged.mass, old.mass)
