"""Slices of volumes and their adjoint, and the volume that follows from sums."""

import numpy as np
import pytest

from sklearn_cryoem.datasets import make_ribosome_phantom
from sklearn_cryoem.datasets.forward import project
from sklearn_cryoem.physics.polar import polar_grid, polar_transform
from sklearn_cryoem.projections.views import symmetry_group, view_angles, view_rotations
from sklearn_cryoem.projections.volumes import (
    convolve,
    gridded,
    lattice_size,
    normal_kernel,
    prior_variance,
    resized,
    shell_correlation,
    slices,
    soft_ball,
    solve_volume,
)

GRID = polar_grid(32, 7, 12)
N = lattice_size(7)


@pytest.fixture
def rotations():
    return view_rotations(view_angles(60, "C1"))


@pytest.fixture
def volume():
    return soft_ball(N, 0.3, 0.1) * np.random.default_rng(0).standard_normal((N, N, N))


def values_like(samples):
    rng = np.random.default_rng(1)
    return rng.standard_normal(samples.shape) + 1j * rng.standard_normal(samples.shape)


def test_gridding_is_the_adjoint_of_slicing(rotations, volume):
    seen = slices(volume, rotations, GRID)
    values = values_like(seen)
    there, back = np.vdot(values, seen).real, np.vdot(gridded(values, rotations, GRID, N), volume)
    assert back == pytest.approx(there, rel=1e-6)


def test_slices_are_the_sum_over_all_voxels(rotations, volume):
    x = np.arange(N) - N // 2
    z, y, x = np.meshgrid(x, x, x, indexing="ij")
    view, ring, angle = 17, 4, 5
    k = GRID.kx[ring, angle] * rotations[view, 0] + GRID.ky[ring, angle] * rotations[view, 1]
    wave = np.exp(-2j * np.pi / N * (k[0] * x + k[1] * y + k[2] * z))
    expected = (volume * wave).sum() / N**1.5
    assert slices(volume, rotations, GRID)[view, ring, angle] == pytest.approx(expected, abs=1e-3)


def test_slices_of_a_phantom_are_its_projections():
    phantom = make_ribosome_phantom(32, 10.0)
    angles = view_angles(9, "C1")
    images = project(phantom, *angles.T)
    images += phantom.array.sum() * phantom.pixel_size / 32**2  # projections lack their mean
    grid = polar_grid(32, 9, 14)
    seen = slices(phantom.array.astype(np.float64), view_rotations(angles), grid) * 32**0.5
    expected = polar_transform(images, grid) / phantom.pixel_size  # a projection is an integral in Angstrom
    error = np.linalg.norm(seen - expected) / np.linalg.norm(expected)
    assert error < 0.01


def test_slicing_weighting_and_gridding_is_a_convolution(rotations, volume):
    seen = slices(volume, rotations, GRID)
    weight = np.random.default_rng(2).uniform(0.0, 1.0, seen.shape)
    expected = gridded(weight * seen, rotations, GRID, N)
    found = convolve(normal_kernel(weight, rotations, GRID, N), volume)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_a_volume_keeps_its_slices_on_another_lattice(rotations, volume):
    smooth = resized(resized(volume, 20), N)  # without the corners of the lattice
    smooth = soft_ball(N, 0.3, 0.1) * smooth
    near = resized(smooth, N + 8)
    np.testing.assert_allclose(
        slices(near, rotations, GRID), slices(smooth, rotations, GRID), atol=0.03 * np.abs(smooth).max()
    )
    coarse = resized(resized(smooth, 14), N)
    np.testing.assert_allclose(resized(resized(coarse, N + 8), N), coarse, atol=1e-9)


def log_posterior(volume, gradient, kernel, variance, mask):
    masked = mask * volume
    prior = np.abs(np.fft.fftn(volume, norm="ortho")) ** 2
    half = np.concatenate([variance, variance[:, :, -2:0:-1]], axis=2)  # its radii are those of the mirror
    return (
        np.vdot(gradient, masked)
        - 0.5 * np.vdot(masked, convolve(kernel, masked))
        - 0.5 * (prior / half).sum()
    )


def test_a_volume_comes_back_from_its_slices_and_no_step_loses_posterior(rotations, volume):
    mask = soft_ball(N, 0.3, 0.1)
    truth = resized(resized(volume, 14), N) * mask
    seen = slices(truth, rotations, GRID)
    weight = np.full(seen.shape, 100.0)
    gradient, kernel = gridded(weight * seen, rotations, GRID, N), normal_kernel(weight, rotations, GRID, N)
    variance = prior_variance(np.full(7, 0.1), N)
    trace, found = [], np.zeros_like(volume)
    for _ in range(4):
        trace.append(log_posterior(found, gradient, kernel, variance, mask))
        found = solve_volume(gradient, kernel, variance, mask, found)
    assert np.diff(trace).min() >= -1e-9 * abs(trace[-1])
    assert shell_correlation(mask * found, truth, 6).min() > 0.98


@pytest.mark.parametrize(("name", "n_operations"), [("C1", 1), ("C4", 4), ("D2", 4), ("d7", 14)])
def test_symmetric_views_together_cover_the_sphere_evenly(name, n_operations):
    group = symmetry_group(name)
    assert len(group) == n_operations
    np.testing.assert_allclose(np.linalg.det(group), 1.0)
    directions = view_rotations(view_angles(400 // n_operations, name))[:, 2]
    everywhere = np.concatenate([directions @ operation.T for operation in group])
    nearest = np.sort(everywhere @ everywhere.T, axis=1)[:, -2]
    spacing = np.degrees(np.arccos(nearest.min()))
    assert spacing < 12.0  # a square of 400 on the sphere has a side of 10 degrees
    np.testing.assert_allclose(everywhere.mean(axis=0), 0.0, atol=0.02)


@pytest.mark.parametrize("name", ["T", "C0", "D", "4", None])
def test_other_symmetries_are_refused(name):
    with pytest.raises(ValueError, match="Other groups hold one of these"):
        symmetry_group(name)
