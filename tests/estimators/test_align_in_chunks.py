"""MAPAligner.partial_fit: particles that arrive in chunks, in frames that stay."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score

from sklearn_cryoem import MAPAligner, ProjectionClusterer, load_model, save_model
from sklearn_cryoem.alignment.stream import unexplained, usual_match
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.metrics import pose_errors

N_FIRST = 200


@pytest.fixture(scope="module")
def stack():
    """Four views; the last 100 particles show one that no other has."""
    made = make_particles("ribosome", 480, box=24, snr=0.5, n_views=4, max_shift=24.0, random_state=0)
    view = view_of(made)
    return made[np.concatenate([np.flatnonzero(view != 3)[:300], np.flatnonzero(view == 3)[:100]])]


def view_of(some):
    directions = some.truth[["view_x", "view_y", "view_z"]].to_numpy().round(6)
    return np.unique(directions, axis=0, return_inverse=True)[1].ravel()


@pytest.fixture(scope="module")
def begun(stack, tmp_path_factory):
    """A file with the fit to the first chunk."""
    path = tmp_path_factory.mktemp("begun") / "model.npz"
    save_model(MAPAligner(3, n_batches=20, random_state=0).partial_fit(stack[:N_FIRST]), path)
    return path


@pytest.fixture(scope="module")
def went_on(stack, begun):
    return load_model(begun).partial_fit(stack[N_FIRST:300])


def test_chunks_end_where_a_fit_to_all_does_and_frames_stay(stack, begun, went_on):
    known, aligner = stack[:300], load_model(begun)
    whole = MAPAligner(3, n_batches=20, random_state=0).fit(known)
    labels, poses = went_on.predict(known), went_on.transform(known).poses
    assert adjusted_mutual_info_score(labels, whole.labels_) > 0.95
    errors = [pose_errors(*found) for found in ((poses, known.truth, labels),
                                                (whole.poses_, known.truth, whole.labels_))]  # fmt: skip
    assert errors[0].median_angle_rad < 1.3 * errors[1].median_angle_rad
    assert errors[0].median_shift < 1.3 * errors[1].median_shift + 0.05 * stack.pixel_size
    turn = poses.angle_rad[:N_FIRST] - aligner.poses_.angle_rad
    moved = np.hypot(*(poses.shift[:N_FIRST] - aligner.poses_.shift).T)
    assert np.quantile(np.abs(np.angle(np.exp(1j * turn))), 0.95) < np.radians(4.0)
    assert np.quantile(moved, 0.95) < 0.5 * stack.pixel_size
    assert went_on.n_images_seen_ == 300 and len(went_on.labels_) == len(went_on.poses_) == 100
    assert len(went_on.class_averages_) == 3, "no view is new"
    assert went_on.n_iter_ == aligner.n_iter_ + 2 == len(went_on.log_posterior_)


def test_a_new_view_gets_a_class_and_the_others_keep_theirs(stack, begun, went_on):
    before = went_on.predict(stack[:300])
    aligner = load_model(begun).partial_fit(stack[N_FIRST:])
    assert len(aligner.class_averages_) == 4
    new, old = aligner.labels_[100:], aligner.predict(stack[:300])
    assert np.mean(new == 3) > 0.9
    assert np.mean(old == before) > 0.95


def test_a_saved_model_goes_on_with_the_same_bits_for_any_number_of_workers(stack, begun, tmp_path):
    one, two = load_model(begun), load_model(begun).set_params(n_jobs=2)
    one.partial_fit(stack[N_FIRST:300])
    save_model(one, tmp_path / "one.npz")
    two.partial_fit(stack[N_FIRST:300])
    one, two = (some.partial_fit(stack[260:]) for some in (load_model(tmp_path / "one.npz"), two))
    np.testing.assert_array_equal(two.class_averages_, one.class_averages_)
    np.testing.assert_array_equal(two.poses_.angle_rad, one.poses_.angle_rad)
    np.testing.assert_array_equal(two._stream.stats.numerator, one._stream.stats.numerator)


def test_images_are_unexplained_only_where_there_are_more_than_chance_makes(rng):
    match = rng.normal(-2.0, 1.3, 1000)
    usual = usual_match(match)
    np.testing.assert_allclose(usual, [-2.0, 1.3], atol=0.2)
    assert not len(unexplained(match, usual))
    match[:60] -= 10.0
    assert set(range(60)) <= set(unexplained(match, usual))
    assert not len(unexplained(match[:19] - 10.0, usual)), "too few"


def test_volumes_learn_from_all_particles_at_once():
    assert not hasattr(ProjectionClusterer(), "partial_fit")


def test_a_chunk_in_another_box_is_refused_in_words(stack, begun):
    with pytest.raises(ValueError, match="fitted to images of 24 pixels; these have 20"):
        load_model(begun).partial_fit(make_particles("ribosome", 5, box=20, random_state=0))
