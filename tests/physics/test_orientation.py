"""Euler angles: RELION's matrices, and turns in the plane that do not jump at the poles."""

import numpy as np
import pytest

from sklearn_cryoem.physics.orientation import (
    euler_matrices,
    euler_of_rotation_vector,
    in_plane_turn,
    rotation_vector_of_euler,
)


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
