"""Central slices against the exact Fourier transform of Gaussian blobs, and the geometry of the angles."""

import numpy as np
import pytest

from sklearn_cryoem.datasets import project, volume_of_blobs
from sklearn_cryoem.datasets.forward import slice_features, slice_plane
from sklearn_cryoem.physics.rotation import aligned_images, euler_matrices

BLOBS = np.array(
    [(0, 0, 0, 9.0, 1.0), (26, 8, 4, 7.0, 1.5), (-8, -20, 12, 6.5, 2.0), (-18, 16, -14, 6.5, 1.0)],
    dtype=float,
)


def exact_features(plane, pixel_size, matrices):
    """Eq. (1.1)-(1.3) of the blobs' projections, from the transform of a Gaussian."""
    s = (matrices[:, None, 0] * plane.kx[:, None] + matrices[:, None, 1] * plane.ky[:, None]) / (
        plane.box * pixel_size
    )  # (n, J, 3), 1/Angstrom
    total = 0
    for *centre, sd, height in BLOBS:
        weight = height * (2 * np.pi * sd**2) ** 1.5
        total = total + weight * np.exp(
            -2 * np.pi**2 * sd**2 * (s**2).sum(-1) - 2j * np.pi * s @ np.array(centre)
        )
    return np.sqrt(2.0) / (plane.box * pixel_size**2) * total


@pytest.mark.parametrize(("volume_box", "volume_pixel"), [(48, 3.0), (49, 3.0), (40, 3.5)])
@pytest.mark.parametrize(("box", "pixel_size"), [(32, 4.0), (33, 4.0), (64, 2.5)])
def test_slices_are_the_exact_transform(volume_box, volume_pixel, box, pixel_size, rng):
    volume = volume_of_blobs(BLOBS, volume_box, volume_pixel)
    plane = slice_plane(volume, box, pixel_size)
    matrices = euler_matrices(*rng.uniform(-np.pi, np.pi, (3, 4)))
    features = slice_features(volume, plane, pixel_size, matrices)
    expected = exact_features(plane, pixel_size, matrices)
    error = np.linalg.norm(features - expected) / np.linalg.norm(expected)
    assert error < 1e-3, f"relative error {error:.2g}"


def test_no_coefficient_beyond_the_nyquist_frequency_of_the_volume():
    volume = volume_of_blobs(BLOBS, 32, 4.0)
    assert slice_plane(volume, 64, 2.0).radius.max() < 64 * 2.0 / (2 * 4.0)
    assert slice_plane(volume, 20, 6.0).radius.max() == 9  # the image's own limit


def test_euler_matrices_are_rotations_whose_last_row_is_the_view(rng):
    rot, tilt, psi = rng.uniform(-np.pi, np.pi, (3, 5))
    matrices = euler_matrices(rot, tilt, psi)
    np.testing.assert_allclose(
        matrices @ matrices.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(matrices), 1.0)
    view = np.stack([np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)], axis=1)
    np.testing.assert_allclose(matrices[:, 2], view, atol=1e-12)


def test_looking_along_z_adds_the_sections_up():
    volume = volume_of_blobs(BLOBS, 40, 4.0)
    image = project(volume, 0.0, 0.0)[0]
    expected = volume.array.sum(axis=0) * 4.0  # the integral, in density times Angstrom
    np.testing.assert_allclose(image, expected - expected.mean(), atol=2e-3 * expected.max())


def test_opposite_views_are_mirror_images():
    volume = volume_of_blobs(BLOBS, 41, 4.0)
    # looking from behind: the image's x axis is kept, its y axis reversed, for tilt -> tilt + 180 degrees
    front, back = project(volume, 0.4, [0.7, 0.7 + np.pi])
    np.testing.assert_allclose(back, front[:, ::-1], atol=2e-3 * front.max())


def test_alignment_undoes_angle_and_shift(rng):
    volume = volume_of_blobs(BLOBS, 48, 4.0)
    psi, shift = rng.uniform(-np.pi, np.pi, 4), rng.uniform(-4, 4, (4, 2))
    images = project(volume, 0.3, 1.1, psi, shift)
    average = project(volume, 0.3, 1.1)[0]
    background = average[0, 0]  # the mean is left out: without this, turned corners would show
    aligned = aligned_images(images - background, psi, shift)
    np.testing.assert_allclose(aligned, np.broadcast_to(average, images.shape), atol=0.005 * np.ptp(average))
