"""Cross and norm terms under strong astigmatism, against sums over Cartesian frequencies."""

import numpy as np
import pytest

from sklearn_cryoem.alignment.expectation import LogPrior, Posterior, expect
from sklearn_cryoem.alignment.maximisation import accumulate
from sklearn_cryoem.alignment.model import polar_statistics
from sklearn_cryoem.alignment.products import reference_bank
from sklearn_cryoem.physics.fourier import fourier_features, half_plane
from sklearn_cryoem.physics.polar import polar_transform
from sklearn_cryoem.physics.rotation import aligned_features

BOX, PIXEL_SIZE, RINGS = 32, 4.0, 13.0
QUADRATURE = 4e-3  # of the range: rings against Cartesian frequencies, see test_expectation.py


def cartesian_terms(particles, images, references, space):
    """Cross and norm terms of every cell by Eq. (1.3); (n_images, n_references, n_shifts, n_angles) each."""
    plane = half_plane(BOX)
    a = fourier_features(references, plane)  # (n_references, J)
    n, n_shifts = len(images), space.n_shifts
    cross = np.empty((n, len(references), n_shifts, space.n_angles))
    norm = np.empty((n, len(references), space.n_angles))
    for column, psi in enumerate(space.angles_rad):
        cos, sin = np.cos(psi), np.sin(psi)
        shift = space.shifts_px @ np.array([[cos, -sin], [sin, cos]])  # R_-psi u
        y = aligned_features(
            np.repeat(images, n_shifts, axis=0), plane, np.full(n * n_shifts, psi), np.tile(shift, (n, 1))
        ).reshape(n, n_shifts, -1)
        c = particles.table.evaluate(plane.radius / (BOX * PIXEL_SIZE), plane.azimuth, np.full(n, psi))
        cross[..., column] = np.einsum("isj,ij,kj->iks", y.conj(), c, a).real
        norm[..., column] = (c**2) @ (np.abs(a) ** 2).T
    return cross, norm


def log_of_cells(posterior, shape):
    """Log joint of every cell."""
    table = np.full((shape[0], shape[1] * shape[2], shape[3]), np.nan)
    log = np.log(posterior.weight.astype(np.float64)) + posterior.log_evidence[posterior.image]
    table[posterior.image, posterior.row, posterior.angle] = log
    return table.reshape(shape)


@pytest.fixture
def setting(rng, make_particles, make_settings, references):
    def build(split_angstrom, n_images=3):
        particles = make_particles(rng, n_images, split_angstrom=split_angstrom, noise=0.5)
        space = make_settings().space(BOX, RINGS)
        source = particles.source()
        features = source(np.arange(n_images), space.n_rings, space.n_orders)
        return particles, source, space, features, polar_transform(references, space.grid)

    return build


@pytest.mark.parametrize("split_angstrom", [5e3, 8e3, 10e3])
def test_cross_and_norm_terms_are_those_of_the_cartesian_model(setting, references, split_angstrom):
    particles, source, space, features, values = setting(split_angstrom)
    cross, norm = cartesian_terms(particles, source.masked(np.arange(3)), references, space)
    assert np.ptp(norm, axis=-1).max() > 0.02 * norm.max()  # astigmatism matters
    flat = LogPrior(np.zeros(3), np.zeros(space.n_shifts))
    # two scales of the references separate what is linear in them from what is quadratic
    logs = []
    for scale in (1.0, -1.0):
        bank = reference_bank((scale * values).astype(np.complex64), space, source.n_even)
        precision = np.full(space.n_rings, 1e-2, np.float32)
        posterior = expect(features, precision, bank, space, flat, floor=1e-30)
        logs.append((log_of_cells(posterior, cross.shape) + np.log(space.n_angles)) / 1e-2)
    assert np.isfinite(logs).all()
    for found, naive in (
        (0.5 * (logs[0] - logs[1]), cross),
        (-(logs[0] + logs[1]), np.broadcast_to(norm[:, :, None], cross.shape)),
    ):
        error = np.abs(found - naive).max() / np.abs(naive).max()
        assert error < QUADRATURE, f"off by {error:.2g} of the largest term"


@pytest.mark.parametrize("split_angstrom", [5e3, 10e3])
def test_sums_of_the_squared_ctf_turn_with_the_images(setting, split_angstrom):
    particles, source, space, features, _ = setting(split_angstrom, n_images=5)
    angle, one = np.array([0, 7, 20, 33, 50]) % space.n_angles, np.ones(5)
    row = np.zeros(5, dtype=np.int64)
    posterior = Posterior(np.arange(5), row, angle, one.astype(np.float32), one, row, angle, one)
    stats = accumulate(features, posterior, space, 3, source.n_even)
    polar = polar_statistics(stats, space.grid)
    radius = np.broadcast_to(space.grid.radius[:, None], space.grid.kx.shape).ravel()
    azimuth = np.broadcast_to(space.grid.azimuth, space.grid.kx.shape).ravel()
    c = particles.table.evaluate(radius / (BOX * PIXEL_SIZE), azimuth, space.angles_rad[angle])
    naive = (c.astype(np.float64) ** 2).sum(axis=0).reshape(space.grid.kx.shape)
    np.testing.assert_allclose(polar.denominator[0], naive, atol=6e-3 * naive.max())
    assert np.ptp(naive, axis=-1).max() > 0.1 * naive.max()
