"""RealigningClusterer: poses get better by the class averages, and classes by the poses."""

import numpy as np
import pytest
from sklearn.base import clone, is_clusterer
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from sklearn_cryoem import (
    DeepClusterer,
    MAPAligner,
    ParticleStack,
    Poses,
    RealigningClusterer,
    SMLClusterer,
    load_model,
    save_model,
)
from sklearn_cryoem._core.validation import ParticleDataWarning
from sklearn_cryoem.datasets import make_particles, true_poses
from sklearn_cryoem.estimators.realigning_clusterer import is_likelier, posed_for, references_of_other_half
from sklearn_cryoem.metrics import pose_errors

QUICK = SMLClusterer((2, 2), max_iter=150)
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def stack():
    """Four views, with poses off by 5 degrees and a pixel."""
    clean = make_particles("ribosome", 240, box=32, snr=0.5, n_views=4, max_shift=20.0, random_state=0)
    rng = np.random.default_rng(1)
    true = true_poses(clean)
    angle = true.angle_rad + rng.normal(0.0, np.radians(5.0), len(clean))
    return clean.with_poses(Poses(angle, true.shift + rng.normal(0.0, clean.pixel_size, (len(clean), 2))))


@pytest.fixture(scope="module")
def fitted(stack):
    return RealigningClusterer(QUICK, n_rounds=3).fit(stack)


def test_particles_without_poses_are_questioned_once(stack):
    few = stack[:40].with_poses(None)
    model = RealigningClusterer(SMLClusterer(2, max_iter=5), n_rounds=1)
    remedy = r"RealigningClusterer needs aligned .*Align them with a MAPAligner .*Poses\.identity"
    for use in (model.fit, model.transform, model.fit_transform):
        with pytest.warns(ParticleDataWarning, match=remedy) as caught:
            use(few)
        assert sum("no-poses" in str(warning.message) for warning in caught) == 1
    np.testing.assert_array_equal(model.fit(few.read()).labels_, model.labels_)  # arrays are, in silence


def test_errors_of_poses_fall_by_half(stack, fitted):
    view = stack.truth["view"]
    before = pose_errors(stack.poses, stack.truth, view)
    after = pose_errors(fitted.poses_, stack.truth, view)
    assert after.median_angle_rad < before.median_angle_rad / 2
    assert after.median_shift < before.median_shift / 2


def test_the_last_fit_sees_the_last_poses(stack, fitted):
    alone = clone(QUICK).fit(stack.with_poses(fitted.poses_))
    np.testing.assert_array_equal(fitted.labels_, alone.labels_)
    np.testing.assert_array_equal(fitted.class_averages_, alone.class_averages_)
    assert fitted.angle_change_.shape == fitted.shift_change_.shape
    assert 1 <= len(fitted.angle_change_) <= 3
    assert (fitted.angle_change_[1:] < fitted.angle_change_[0]).all()


def test_the_errors_of_the_poses_are_estimated(stack, fitted):
    assert np.radians(2.5) <= fitted.angle_sigma_ <= np.radians(10.0)  # 5 degrees, from steps of 2
    assert 0.5 <= fitted.shift_sigma_ / stack.pixel_length <= 2.0


def test_true_poses_stand_still(stack):
    model = RealigningClusterer(QUICK, n_rounds=2).fit(stack.with_poses(true_poses(stack)))
    after = pose_errors(model.poses_, stack.truth, stack.truth["view"])
    assert after.median_angle_rad < np.radians(0.5)
    assert after.median_shift < 0.1 * stack.pixel_length


def test_a_round_that_loses_in_one_half_is_not_taken():
    before = np.array([1.0, 1.0, np.nan, 1.0, 1.0])
    assert is_likelier(before + 0.1, before)
    assert not is_likelier(before + np.array([0.5, -0.1, 0.5, -0.1, 0.5]), before)


def test_no_pose_moves_further_than_asked(stack):
    model = RealigningClusterer(QUICK, n_rounds=1, angle_range=0.05, max_shift=5.0).fit(stack)
    turn = np.angle(np.exp(1j * (model.poses_.angle_rad - stack.poses.angle_rad)))
    assert np.abs(turn).max() <= 0.05 + 1e-9
    moved = np.hypot(*(model.poses_.shift - stack.poses.shift).T)
    assert moved.max() <= 5.0 + 2.0 * stack.pixel_size  # and what refinement adds


def test_particles_meet_the_average_of_the_other_half(fitted):
    references, labels = references_of_other_half(fitted.clusterer_)
    even, odd = fitted.clusterer_.half_averages_
    np.testing.assert_array_equal(references[labels[0]], odd[fitted.labels_[0]])
    np.testing.assert_array_equal(references[labels[1]], even[fitted.labels_[1]])


def test_a_class_without_a_reference_leaves_its_particles_alone(stack, fitted):
    references = fitted.class_averages_.copy()
    references[fitted.labels_[0]] = 0.0
    moved = fitted._realigned(fitted.clusterer_, stack, references, fitted.labels_)
    same = fitted.labels_ == fitted.labels_[0]
    np.testing.assert_allclose(
        moved.poses.angle_rad[same], stack.poses.angle_rad[same] % (2 * np.pi), rtol=1e-12
    )
    np.testing.assert_allclose(moved.poses.shift[same], stack.poses.shift[same], rtol=1e-12)
    assert np.mean(moved.poses.angle_rad[~same] == stack.poses.angle_rad[~same]) < 0.05


def test_new_particles_are_realigned_and_classified(stack, fitted):
    aligned = fitted.transform(stack[:40])
    view = stack.truth["view"][:40]
    before = pose_errors(stack.poses[:40], stack.truth[:40], view)
    after = pose_errors(aligned.poses, stack.truth[:40], view)
    assert after.median_angle_rad < before.median_angle_rad / 2
    np.testing.assert_array_equal(fitted.predict(stack[:40]), fitted.clusterer_.predict(aligned))
    np.testing.assert_array_equal(fitted.predict_proba(stack[:40]).argmax(1), fitted.predict(stack[:40]))
    np.testing.assert_array_equal(fitted.predict(stack[10:20]), fitted.predict(stack[:40])[10:20])


def test_it_follows_an_aligner_in_a_pipeline_and_comes_before_deep_classes(stack):
    pipeline = make_pipeline(
        MAPAligner(4, n_batches=5, max_iter=2, tol=10.0, random_state=0),
        RealigningClusterer(QUICK, n_rounds=1),
        SMLClusterer((2, 2), max_iter=150),
    )
    labels = pipeline.fit(stack.with_poses(None)).predict(stack[:30].with_poses(None))
    assert labels.shape == (30,)
    first = RealigningClusterer(QUICK, n_rounds=1)
    deep = DeepClusterer(first, SMLClusterer(max_iter=150), images_per_subclass=40).fit(stack)
    np.testing.assert_array_equal(deep.poses_.angle_rad, deep.first_.poses_.angle_rad)


def test_images_without_poses_are_taken_as_aligned(stack):
    model = RealigningClusterer(SMLClusterer(2, max_iter=5), n_rounds=1)
    images = stack.read()[:40]
    assert model.fit_transform(images).poses is not None
    assert not model.poses_.mirrored.any()


def test_a_saved_model_predicts_the_same(stack, fitted, tmp_path):
    save_model(fitted, tmp_path / "model.npz")
    loaded = load_model(tmp_path / "model.npz")
    np.testing.assert_array_equal(loaded.predict(stack[:30]), fitted.predict(stack[:30]))
    np.testing.assert_array_equal(loaded.poses_.angle_rad, fitted.poses_.angle_rad)


def test_it_is_a_clusterer_whose_init_only_stores(fitted):
    assert is_clusterer(fitted)
    assert set(vars(RealigningClusterer())) == set(RealigningClusterer().get_params(deep=False))
    assert not hasattr(clone(fitted), "poses_")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"clusterer": MAPAligner()}, "is a MAPAligner, expected an SMLClusterer"),
        ({"n_rounds": 0}, "'n_rounds'"),
        ({"angle_range": 4.0}, "'angle_range'"),
        ({"max_shift": 0.0}, "'max_shift'"),
    ],
)
def test_parameters_are_checked_in_fit(stack, parameters, message):
    with pytest.raises((TypeError, ValueError), match=message):
        RealigningClusterer(**parameters).fit(stack)


def test_vectors_are_refused(stack):
    with pytest.raises(ValueError, match="expected a ParticleStack or"):
        RealigningClusterer().fit(np.zeros((5, 24)))
    with pytest.raises(NotFittedError, match="not fitted yet"):
        RealigningClusterer().predict(stack)


@pytest.mark.parametrize(("mirror", "angle", "mirrored"), [(False, 0.3, True), (True, -0.3, False)])
def test_particles_are_realigned_in_the_frames_of_the_clusterer(mirror, angle, mirrored):
    stack = ParticleStack(np.zeros((2, 16, 16), np.float32))
    clusterer = SMLClusterer(mirror=mirror)
    poses = posed_for(clusterer, stack.with_poses(Poses([0.3, 0.3], np.ones((2, 2)), True))).poses
    assert poses.angle_rad.tolist() == [angle, angle] and poses.mirrored.tolist() == [mirrored] * 2
    assert not posed_for(clusterer, stack).poses.angle_rad.any()
