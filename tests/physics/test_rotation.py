"""Undoing poses: a slow twin, exact quarter turns, signs. Euler angles and turns that do not jump."""

import numpy as np
import pytest

from sklearn_cryoem.physics.ctf import contrast_transfer
from sklearn_cryoem.physics.fourier import fourier_features, half_plane, images_from_features
from sklearn_cryoem.physics.rotation import (
    aligned_features,
    aligned_images,
    euler_matrices,
    euler_of_rotation_vector,
    in_plane_turn,
    rotation_vector_of_euler,
)


def band_limited(images):
    """The same images without mean, Nyquist and corners, as every aligned image is."""
    plane = half_plane(images.shape[-1])
    return images_from_features(fourier_features(images, plane), plane)


@pytest.mark.parametrize("box", [12, 15])
def test_aligned_features_are_the_direct_sum_at_turned_and_mirrored_frequencies(box, rng, direct_transform):
    images = rng.standard_normal((4, box, box)).astype(np.float32)
    angle, shift, mirrored = rng.uniform(-4, 4, 4), rng.uniform(-3, 3, (4, 2)), np.array([1, 0, 1, 1], bool)
    plane = half_plane(box)
    # Eq. (2.1): Y(r, theta) = F_centred(r, theta - psi), or F_centred(r, psi - theta) where mirrored
    azimuth = np.where(mirrored[:, None], angle[:, None] - plane.azimuth, plane.azimuth - angle[:, None])
    kx, ky = plane.radius * np.cos(azimuth), plane.radius * np.sin(azimuth)
    centring = np.exp(-2j * np.pi * (kx * shift[:, :1] + ky * shift[:, 1:]) / box)
    expected = np.sqrt(2.0) * direct_transform(images, kx, ky) * centring
    features = aligned_features(images, plane, angle, shift, mirrored)
    assert features.dtype == np.complex64
    error = np.linalg.norm(features - expected) / np.linalg.norm(expected)
    assert error < 1e-4, f"relative error {error:.2g}"


@pytest.mark.parametrize("box", [16, 17])
def test_shift_comes_first_then_the_mirror_then_the_turn(box, rng):
    images = band_limited(rng.standard_normal((1, box, box)).astype(np.float32))
    aligned = aligned_images(images, [np.pi / 2], [[3.0, -5.0]], [True])
    axis = (np.arange(box) - box // 2)[:, None]
    moved = np.roll(images, (-5, 3), axis=(1, 2))
    mirrored = moved[:, (box // 2 - axis) % box, axis.T + box // 2]  # the new pixel (x, y) was (x, -y)
    turned = aligned_images(mirrored, [np.pi / 2], [[0.0, 0.0]])
    np.testing.assert_allclose(aligned, turned, atol=2e-3)
    np.testing.assert_allclose(aligned[0], moved[0].T, atol=2e-3)  # (x, y) -> (x, -y) -> (y, x)


@pytest.mark.parametrize("box", [16, 17])
def test_no_pose_changes_nothing(box, rng):
    images = rng.standard_normal((3, box, box)).astype(np.float32)
    plane = half_plane(box)
    features = aligned_features(images, plane, np.zeros(3), np.zeros((3, 2)))
    np.testing.assert_allclose(features, fourier_features(images, plane), atol=2e-3)


@pytest.mark.parametrize("box", [16, 17])
@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_a_quarter_turn_takes_x_to_y_about_the_centre_pixel(box, quarter, rng):
    images = band_limited(rng.standard_normal((2, box, box)).astype(np.float32))
    axis = np.arange(box) - box // 2
    x, y = axis[None, :], axis[:, None]
    for _ in range(quarter):  # the new pixel (x, y) holds what was at (y, -x)
        x, y = y, -x
    expected = images[:, (y + box // 2) % box, (x + box // 2) % box]
    expected = np.broadcast_to(expected, images.shape)
    turned = aligned_images(images, np.full(2, quarter * np.pi / 2), np.zeros((2, 2)))
    np.testing.assert_allclose(turned, expected, atol=2e-3)
    if box % 2:
        np.testing.assert_allclose(turned, np.rot90(images, -quarter, axes=(1, 2)), atol=2e-3)


@pytest.mark.parametrize("box", [16, 17])
def test_the_shift_is_added_to_the_content(box, rng):
    images = band_limited(rng.standard_normal((1, box, box)).astype(np.float32))
    moved = aligned_images(images, [0.0], [[3.0, -5.0]])
    np.testing.assert_allclose(moved, np.roll(images, (-5, 3), axis=(1, 2)), atol=2e-3)


@pytest.mark.parametrize("box", [48, 49])
def test_a_posed_image_returns_to_the_average(box, rng, blob_image):
    average = blob_image(box)
    angle, shift = rng.uniform(-np.pi, np.pi, 5), rng.uniform(-4, 4, (5, 2))
    # F_centred(theta) = F_average(theta + psi): the content of the image is the average turned by -psi,
    # and adding the shift to it centres it
    images = np.stack([blob_image(box, -a, -s) for a, s in zip(angle, shift, strict=True)])
    aligned = aligned_images(images, angle, shift)
    np.testing.assert_allclose(aligned, band_limited(np.broadcast_to(average, images.shape)), atol=2e-3)


def test_rotating_an_image_rotates_its_ctf(rng, blob_image):
    box, pixel_size, n_images = 64, 4.0, 6
    plane = half_plane(box)
    frequency = plane.radius / (box * pixel_size)
    microscope = {
        "defocus_u_angstrom": 9000.0,
        "defocus_v_angstrom": 3000.0,
        "voltage_volts": 300e3,
        "cs_angstrom": 2.7e7,
        "amplitude_contrast": 0.1,
    }
    average = fourier_features(blob_image(box)[None], plane)
    angle = rng.uniform(-np.pi, np.pi, n_images)
    astigmatism = rng.uniform(0, np.pi, n_images)
    unposed = fourier_features(np.stack([blob_image(box, -a) for a in angle]), plane)
    ctf = contrast_transfer(frequency, plane.azimuth, astigmatism_angle_rad=astigmatism, **microscope)
    mean = 0.1 * blob_image(box).mean()  # the CTF at zero frequency; without it the background is a step
    images = images_from_features((unposed * ctf).astype(np.complex64), plane) + np.float32(mean)
    aligned = aligned_features(images, plane, angle, np.zeros((n_images, 2)))

    def mismatch(sign):
        turned = astigmatism + sign * angle  # Eq. (1.6)
        predicted = average * contrast_transfer(
            frequency, plane.azimuth, astigmatism_angle_rad=turned, **microscope
        )
        return np.linalg.norm(aligned - predicted) / np.linalg.norm(predicted)

    assert mismatch(+1) < 0.02
    assert min(mismatch(-1), mismatch(0)) > 0.2, "the test would not notice a wrong sign"


def turn_about(axis, angle):
    i, j = {"z": (0, 1), "y": (2, 0)}[axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = np.sin(angle), -np.sin(angle)
    return matrix


def test_matrices_are_three_turns_in_order(rng):
    rot, tilt, psi = rng.uniform(-np.pi, np.pi, 3)
    expected = turn_about("z", psi) @ turn_about("y", tilt) @ turn_about("z", rot)
    np.testing.assert_allclose(euler_matrices([rot], [tilt], [psi])[0], expected, atol=1e-12)


def test_in_plane_turn_is_minus_the_difference_of_psi_for_one_view(rng):
    rot, tilt = rng.uniform(-np.pi, np.pi, 2)
    psi = rng.uniform(-1.5, 1.5, 8)
    frames = euler_matrices(rot, tilt, psi)
    np.testing.assert_allclose(in_plane_turn(frames, frames[0]), psi[0] - psi, atol=1e-12)


def test_in_plane_turn_does_not_jump_at_the_pole():
    # two views 2e-3 rad apart on either side of the pole: rot differs by pi, the images hardly
    frames = euler_matrices([0.0, np.pi], [1e-3, 1e-3], [0.0, -np.pi])
    assert abs(in_plane_turn(frames[1:], frames[0])[0]) < 1e-6


# ------------------------------------------------------------------------------------ cryoSPARC's 3-D poses
def matrix_of_pose(vector):
    """What csparc2star makes of a pose before it takes RELION's angles of it (`expmap` of pyem)."""
    angle = np.linalg.norm(vector)
    x, y, z = vector / angle
    cross = np.array([[0, z, -y], [-z, 0, x], [y, -x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def test_angles_of_a_pose_have_its_matrix(rng):
    vectors = rng.normal(size=(50, 3))
    expected = np.stack([matrix_of_pose(vector) for vector in vectors])
    np.testing.assert_allclose(euler_matrices(*euler_of_rotation_vector(vectors).T), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("vector", "rot", "tilt", "psi"),
    [
        ((0, 0, 0), 0, 0, 0),
        ((0, 0, 0.7), 0, 0, 0.7),  # about the viewing axis: a turn in the plane
        ((0, 0.7, 0), 0, 0.7, 0),
        ((0.7, 0, 0), -np.pi / 2, 0.7, np.pi / 2),  # x is y turned by -90 degrees about z
        ((0, np.pi, 0), 0, np.pi, 0),
    ],
)
def test_poses_about_the_axes(vector, rot, tilt, psi):
    np.testing.assert_allclose(euler_of_rotation_vector([vector])[0], (rot, tilt, psi), atol=1e-12)
    back = rotation_vector_of_euler([rot], [tilt], [psi])[0]
    np.testing.assert_allclose(back, vector, atol=1e-9)


@pytest.mark.parametrize("tilt", [0.0, 1e-8, 0.3, 2.0, np.pi])
def test_poses_come_back(rng, tilt):
    rot, psi = rng.uniform(-np.pi, np.pi, (2, 20))
    angles = euler_of_rotation_vector(rotation_vector_of_euler(rot, tilt, psi))
    np.testing.assert_allclose(euler_matrices(*angles.T), euler_matrices(rot, tilt, psi), atol=1e-7)
    if 0.1 < tilt < 3:
        np.testing.assert_allclose(angles, np.column_stack([rot, np.full(20, tilt), psi]), atol=1e-9)
