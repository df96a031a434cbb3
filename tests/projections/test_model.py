"""The EM whose references are slices."""

from types import SimpleNamespace

import numpy as np

from sklearn_cryoem._core.parallel import task_pool
from sklearn_cryoem.alignment.em import PassState, full_passes
from sklearn_cryoem.alignment.expectation import Posterior
from sklearn_cryoem.alignment.features import SharedFeatures
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.estimators.map_aligner import alignment_images, search_settings
from sklearn_cryoem.projections.model import SLICES, SliceSettings, _moved_on, starting_volumes
from sklearn_cryoem.projections.volumes import prior_variance, soft_ball


def test_full_passes_never_lower_the_posterior():
    """At one resolution, with no shift to search: the grid of shifts would cut their prior."""
    stack = make_particles("ribosome", 60, box=24, snr=1.0, max_shift=0.0, random_state=0)
    found = search_settings(stack, mask_diameter=None, max_shift=0.0, angle_range=None, max_resolution=None)
    settings = SliceSettings(
        **{**vars(found), "n_references": 20, "k_start": 5.0, "k_limit": 5.0, "max_iter": 6, "tol": 0.0},
        n_views=20,
        fine=True,
    )
    with task_pool(1) as pool:
        features = SharedFeatures(alignment_images(stack, settings), pool)
        start = PassState(
            starting_volumes(features, settings, np.random.RandomState(0)),
            features.images.known.shift_px,
        )
        trace, before = [], start
        for state in full_passes(features, settings, start, SLICES):
            volume, n = before.model.references[0], before.model.references.shape[-1]
            share = np.mean(soft_ball(n, *before.model.ball) ** 2)
            variance = settings.tau_fudge / share * prior_variance(before.model.signal[:5], n)
            power = np.abs(np.fft.fftn(volume, norm="ortho")) ** 2
            variance = np.concatenate([variance, variance[:, :, -2:0:-1]], axis=2)
            trace.append(60 * state.log_likelihood[-1] - 0.5 * (power / variance).sum())
            before = state
    steps = np.diff(trace)
    assert len(steps) == 5
    assert steps.min() > -1e-3 * np.ptp(trace), f"fell by {-steps.min():.3g} at pass {steps.argmin() + 2}"


def test_the_label_is_the_cell_near_which_most_of_the_posterior_lies():
    """Five views of two volumes: single poses of 0.4 and 0.3 do not win against neighbours that agree."""
    near = np.zeros((5, 4))  # two cells of each volume
    near[:3, :2], near[3:, 2:] = [[1.0, 0.2], [0.2, 1.0], [0.1, 0.9]], np.eye(2)
    weight = np.array([0.4, 0.3, 0.3, 0.1, 0.45, 0.45], dtype=np.float32)
    image, view = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 4, 1, 0])
    angle, none = np.arange(6), np.zeros(2, dtype=int)
    posterior = Posterior(image, 3 * view + 1, angle, weight, np.zeros(2), none, none, none)
    row, best_angle, label = posterior.near(near, 3)
    np.testing.assert_array_equal(label, [1, 0])
    np.testing.assert_array_equal(row, [4, 1])  # view 1 at shift 1, and view 0
    np.testing.assert_array_equal(best_angle, [1, 5])


def test_a_start_moves_on_along_its_last_step_until_it_turns_back(rng):
    last, step = rng.standard_normal((2, 1, 8, 8, 8)).astype(np.float32)
    ahead = SimpleNamespace(references=last + 0.5 * step, found=last)  # what the pass saw, and found before
    np.testing.assert_allclose(_moved_on(last + step, ahead), last + 1.9 * step, atol=1e-5)
    beyond = SimpleNamespace(references=last + 1.5 * step, found=last)
    np.testing.assert_array_equal(_moved_on(last + step, beyond), last + step)
