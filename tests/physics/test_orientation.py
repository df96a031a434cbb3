"""Euler angles: RELION's matrices, and turns in the plane that do not jump at the poles."""

import numpy as np

from sklearn_cryoem.physics.orientation import euler_matrices, in_plane_turn


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
