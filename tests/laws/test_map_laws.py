"""What must hold of every alignment, whatever the data."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from sklearn_cryoem import MAPAligner, ParticleStack
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.metrics import pose_errors


def full_batch(**options):
    """Plain EM: no mini-batches, so that the order of the images plays no part after the start."""
    return MAPAligner(
        **{"n_clusters": 3, "n_batches": 0, "max_iter": 8, "tol": 0.0, "random_state": 0, **options}
    )


@pytest.fixture(scope="module")
def stack():
    """Three views of a ribosome at a signal-to-noise ratio where nothing should go wrong."""
    return make_particles(
        "ribosome", 150, box=32, snr=1.0, n_views=3, max_shift=16.0, astigmatism=4000.0, random_state=1
    )


@pytest.fixture(scope="module")
def aligner(stack):
    return MAPAligner(6, max_shift=24.0, n_batches=15, max_iter=6, random_state=0).fit(stack)


def test_views_are_told_apart_and_poses_found(stack, aligner):
    truth = stack.truth
    assert normalized_mutual_info_score(truth["view"], aligner.labels_) > 0.6
    pure = (
        np.array([view_share(truth["view"].to_numpy()[aligner.labels_ == z]) for z in aligner.labels_]) > 0.9
    )
    errors = pose_errors(aligner.poses_[pure], truth[pure], aligner.labels_[pure])
    assert pure.mean() > 0.5
    assert np.degrees(errors.median_angle_rad) < 4.0
    assert errors.median_shift < stack.pixel_size


def view_share(views):
    """Share of the commonest view."""
    return np.bincount(views).max() / len(views)


def test_transform_of_the_training_particles_gives_their_fitted_poses(stack, aligner):
    aligned = aligner.transform(stack)
    np.testing.assert_allclose(np.cos(aligned.poses.angle_rad - aligner.poses_.angle_rad), 1.0, atol=1e-5)
    np.testing.assert_allclose(aligned.poses.shift, aligner.poses_.shift, atol=1e-2)
    np.testing.assert_array_equal(aligner.predict(stack), aligner.labels_)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_turning_the_particles_turns_their_poses_and_nothing_else(stack, aligner, quarter_turns):
    turned = quarter_turned(stack, quarter_turns)
    found = aligner.transform(turned).poses
    expected = aligner.poses_.angle_rad - quarter_turns * np.pi / 2
    error = np.abs(np.angle(np.exp(1j * (found.angle_rad - expected))))
    assert np.mean(np.degrees(error) < 1.0) > 0.97, f"median {np.degrees(np.median(error)):.2f} degrees"
    np.testing.assert_array_equal(aligner.predict(turned) == aligner.labels_, np.ones(len(stack), bool))


def quarter_turned(stack, quarter_turns):
    """The stack with every image turned about its centre pixel, x towards y, and its CTF with it."""
    images = stack.read()
    for _ in range(quarter_turns):
        # content at (x, y) about the centre pixel goes to (-y, x): flip the rows, then swap the axes;
        # row 0 of an even box has no opposite and stays
        images = np.roll(images[:, ::-1, :], 1, axis=1).transpose(0, 2, 1)
    table = {name: getattr(stack.ctf, name) for name in stack.ctf.__dataclass_fields__}
    table["astigmatism_angle_rad"] = table["astigmatism_angle_rad"] + quarter_turns * np.pi / 2
    return ParticleStack(
        np.ascontiguousarray(images), pixel_size=stack.pixel_size, ctf=type(stack.ctf)(**table)
    )


def test_permuted_particles_have_permuted_labels(stack, aligner):
    order = np.random.default_rng(3).permutation(len(stack))
    np.testing.assert_array_equal(aligner.predict(stack[order]), aligner.labels_[order])


def test_the_seed_decides_and_only_the_seed_and_fit_transform_is_fit_then_transform(stack):
    fits = [MAPAligner(4, n_batches=4, max_iter=2, tol=10.0, random_state=seed) for seed in (0, 0, 1)]
    poses = fits[0].fit_transform(stack).poses
    np.testing.assert_array_equal(poses.angle_rad, fits[1].fit(stack).poses_.angle_rad)
    np.testing.assert_array_equal(poses.shift, fits[1].poses_.shift)
    fits[2].fit(stack)
    np.testing.assert_array_equal(fits[0].class_averages_, fits[1].class_averages_)
    assert np.abs(fits[0].class_averages_ - fits[2].class_averages_).max() > 1e-3


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("seed", [0, 1])
def test_passes_at_one_resolution_do_not_lower_the_evidence(stack, seed):
    limit = stack.box * stack.pixel_size / 6.0  # the first resolution is also the last
    fit = full_batch(max_resolution=limit, random_state=seed, max_shift=16.0).fit(stack)
    # References are masked and centred, and priors re-estimated, between passes: not exact EM, so a
    # hundredth of the final value is allowed where exact EM allows nothing.
    steps = np.diff(fit.log_posterior_) / abs(fit.log_posterior_[-1])
    assert len(steps) >= 3
    assert steps.min() >= -1e-2, f"fell by {-steps.min():.3g} of the final value"
    assert fit.log_posterior_[-1] > fit.log_posterior_[0]


def test_a_class_without_particles_leaves_no_nan(stack):
    fit = MAPAligner(30, n_batches=2, max_iter=2, tol=10.0, random_state=0).fit(stack[:40])
    assert np.isfinite(fit.class_averages_).all()
    assert np.isfinite(fit.log_evidence_).all()
    assert np.isfinite(fit.cluster_weights_).all()


def test_pixel_size_only_changes_the_unit(stack):
    images = stack.read()
    options = {"n_batches": 4, "max_iter": 2, "tol": 10.0, "random_state": 0}
    pixels = MAPAligner(3, max_shift=4.0, **options).fit(images)
    scaled = ParticleStack(images, pixel_size=2.5)
    angstrom = MAPAligner(3, max_shift=10.0, **options).fit(scaled)
    np.testing.assert_array_equal(pixels.labels_, angstrom.labels_)
    np.testing.assert_allclose(angstrom.poses_.shift, 2.5 * pixels.poses_.shift, rtol=1e-9)
    assert angstrom.resolution_ == pytest.approx(2.5 * pixels.resolution_)


def test_white_and_inverted_particles_are_not_the_same_to_it(stack, aligner):
    scores = [aligner.score(part) for part in (stack, stack.invert_contrast())]
    assert scores[0] > scores[1]
    assert adjusted_rand_score(aligner.labels_, aligner.predict(stack.invert_contrast())) < 0.5
