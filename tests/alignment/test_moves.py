"""Small moves of known poses, Eq. (4.19)."""

import numpy as np
import pytest

from sklearn_cryoem.alignment.moves import WIDTHS, Moves, gaussians, move_space, moves_of, posterior_means
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.estimators.map_aligner import alignment_images, search_settings
from sklearn_cryoem.particles import Poses


def test_means_and_evidence_are_those_of_plain_sums():
    rng = np.random.default_rng(0)
    angle, shift = np.linspace(-0.3, 0.3, 5), np.linspace(-2.0, 2.0, 7)
    table = rng.normal(0.0, 3.0, (2, 5, 7, 7)).astype(np.float32)
    widths = (np.array([0.0, 0.2]), np.array([1.0, 0.0, 3.0]))
    priors = [gaussians(at, width) for at, width in zip((angle, shift), widths, strict=True)]
    found = posterior_means(table.copy(), priors, (angle, shift))
    for image in range(2):
        for a in range(2):
            for t in range(3):
                prior = priors[0][a][:, None, None] * priors[1][t][:, None] * priors[1][t]
                joint = prior * np.exp(table[image].astype(np.float64))
                total = joint.sum()
                np.testing.assert_allclose(found.log_evidence[image, a, t], np.log(total), rtol=1e-5)
                mean = (joint.sum(axis=(1, 2)) @ angle) / total
                np.testing.assert_allclose(found.angle_rad[image, a, t], mean, rtol=1e-4, atol=1e-6)
                mean = (joint.sum(axis=(0, 1)) @ shift, joint.sum(axis=(0, 2)) @ shift) / total
                np.testing.assert_allclose(found.shift_px[image, a, t], mean, rtol=1e-4, atol=1e-6)


def test_no_width_means_no_move():
    np.testing.assert_array_equal(gaussians(np.linspace(-1.0, 1.0, 5), [0.0]), [[0.0, 0.0, 1.0, 0.0, 0.0]])
    assert Moves.unknown(3, (np.zeros(2), np.zeros(4))).log_evidence.shape == (3, 2, 4)


@pytest.mark.parametrize("mirrored", [False, True])
def test_moves_below_the_steps_are_found(mirrored):
    """The same image in poses that are off by known moves: it is its own reference."""
    clean = make_particles(
        "ribosome", 12, box=32, snr=None, n_views=1, defocus=None, in_plane=False, random_state=0
    )
    rng, image = np.random.default_rng(1), clean.read()[0]
    turn, moved = rng.uniform(-0.15, 0.15, 12), rng.uniform(-1.2, 1.2, (12, 2))
    stack = clean.with_poses(Poses(-turn, -moved * clean.pixel_length, np.full(12, mirrored)))
    if mirrored:
        image = np.roll(image[::-1], 1, axis=0)  # y -> -y about the centre pixel
    settings = search_settings(
        stack, mask_diameter=None, max_shift=3.0 * clean.pixel_length, angle_range=0.3, max_resolution=None
    )
    widths = (WIDTHS * 0.3, WIDTHS * 3.0)
    found = moves_of(alignment_images(stack, settings), settings, image, np.full(15, 0.01), 12.0, widths)
    angle, shift = found.likeliest(np.ones(len(found.log_evidence), dtype=bool))
    step = move_space(settings, 32, 12.0).angle_step_rad
    assert WIDTHS[angle] > 0.0
    assert WIDTHS[shift] > 0.0
    np.testing.assert_allclose(found.angle_rad[:, angle, shift], turn, atol=step)
    length = np.hypot(*found.shift_px[:, angle, shift].T)
    np.testing.assert_allclose(length, np.hypot(*moved.T), atol=0.25)
