"""What must hold of every fit of the manifold, whatever the data."""

from functools import partial

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.manifold.blocks import ArrayBlocks, FeatureLayout
from sklearn_cryoem.manifold.em import MStep, Schedule, em
from sklearn_cryoem.manifold.expectation import sweep
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.prior import measure_power, prior_precision
from sklearn_cryoem.manifold.state import first_state, random_start


def curve_through_ctfs(rng, layout, n=150):
    position = rng.uniform(-1, 1, n)
    clean = np.sin(np.linspace(0.5, 3, layout.n_features) * position[:, None] * 2)
    ctf = rng.uniform(-1, 1, (n, layout.n_norms))
    values = ctf[:, layout.norm_index] * clean + 0.4 * rng.standard_normal(clean.shape)
    return ArrayBlocks(values, ctf=ctf, layout=layout, block_size=64)


def trace_of(rng, *, noise="shell", alpha=0.5, norms=2, first_shells=3, information=1.0):
    layout = FeatureLayout(np.repeat([0, 1, 2], [4, 4, 8]), np.arange(16) // norms, information)
    blocks, basis = curve_through_ctfs(rng, layout), LatentBasis((5, 4), (4, 3), 1.0)
    power = measure_power(blocks)
    start = random_start(basis, power, layout.truncate(first_shells), rng=rng)
    m_step = MStep(
        basis=basis, alpha=prior_precision(alpha, basis, power, layout), layout=layout, noise=noise,
        dtype=np.float64, n_jobs=None,
    )  # fmt: skip
    schedule = Schedule(first_shells, 3, 8 if first_shells < 3 else 0, 25, tol=0.0)
    *_, state = em(partial(sweep, blocks), m_step, schedule, first_state(start, basis, first_shells, 1))
    return state.trace


@pytest.mark.parametrize("noise", ["white", "shell"])
@pytest.mark.parametrize("alpha", [1e-3, 1.0, "auto"])
@pytest.mark.parametrize("norms", [1, 4])
def test_an_iteration_never_lowers_the_objective(rng, noise, alpha, norms):
    trace = trace_of(rng, noise=noise, alpha=alpha, norms=norms)
    steps = np.diff(trace.objective) / abs(trace.objective[-1])
    assert len(steps) > 5
    assert steps.min() >= -1e-9, f"fell by {-steps.min():.3g} at iteration {steps.argmin() + 1}"


@pytest.mark.parametrize("options", [{"first_shells": 1}, {"information": 0.6}])
def test_nor_while_marching_or_masked_within_a_stage(rng, options):
    trace = trace_of(rng, **options)
    objective, stage = np.array(trace.objective), trace.stage
    same = stage[1:] == stage[:-1]
    assert same.sum() > 5
    assert (np.diff(objective)[same] >= -1e-9 * abs(objective[-1])).all()


@pytest.fixture(scope="module")
def aligned():
    return aligned_to_truth(
        make_particles("ribosome", 400, box=32, snr=1.0, n_views=6, max_shift=8.0, random_state=0)
    )


@pytest.fixture(scope="module")
def fitted(aligned):
    return SMLClusterer((3, 3), random_state=0).fit(aligned)


def test_the_same_bits_for_any_number_of_workers(aligned, fitted):
    again = SMLClusterer((3, 3), random_state=0, n_jobs=2).fit(aligned)
    np.testing.assert_array_equal(again.labels_, fitted.labels_)
    np.testing.assert_array_equal(again.class_averages_, fitted.class_averages_)
    np.testing.assert_array_equal(again.log_posterior_, fitted.log_posterior_)


def test_permuted_images_permute_the_labels(aligned, fitted):
    order = np.random.default_rng(1).permutation(len(aligned))
    again = SMLClusterer((3, 3), random_state=0).fit(aligned[order])
    assert adjusted_rand_score(again.labels_, fitted.labels_[order]) > 0.95


def test_rotating_image_ctf_and_pose_together_changes_nothing(fitted):
    # the same particles, same seed, once turned in the plane and once not: Eq. (2.1) and Eq. (1.6) undo it
    common = {"box": 32, "snr": None, "n_views": 6, "astigmatism": 4000.0, "random_state": 3}
    turned, upright = (
        aligned_to_truth(make_particles("ribosome", 200, in_plane=turn, **common)) for turn in (True, False)
    )
    assert np.ptp(turned.truth["angle_rad"]) > 5 and np.ptp(upright.truth["angle_rad"]) == 0
    for stack in (turned, upright):
        model = SMLClusterer((4, 3), random_state=0).fit(stack)
        assert adjusted_rand_score(model.labels_, stack.truth["view"]) > 0.6


def test_scaling_plain_data_scales_the_model(rng):
    data = rng.standard_normal((100, 5)) @ rng.standard_normal((5, 5))
    small, large = (SMLClusterer(9, max_iter=300).fit(scale * data) for scale in (1.0, 1000.0))
    np.testing.assert_array_equal(small.labels_, large.labels_)
    np.testing.assert_allclose(large.cluster_centers_, 1000.0 * small.cluster_centers_, rtol=1e-5, atol=1e-5)
