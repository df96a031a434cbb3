"""Further particles, of another box and pixel size, in the classes of a fitted model."""

import numpy as np
import pytest
from scipy.special import xlogy

from sklearn_cryoem import DeepClusterer, MAPAligner, SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators import EigenImages, as_fitted_by, assign_particles
from sklearn_cryoem.particles import rescale
from sklearn_cryoem.quality import class_quality

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def fine():
    """Aligned particles of three views in a box of 48."""
    stack = make_particles("ribosome", 150, box=48, snr=0.5, n_views=3, max_shift=10.0, random_state=0)
    return aligned_to_truth(stack)


@pytest.fixture(scope="module")
def model(fine):
    """Fitted to the first hundred, in pixels that are half as large again, whose noise is weaker for it."""
    return SMLClusterer((2, 2), max_iter=5, random_state=0).fit(fine[:100].downsample(32))


def test_particles_of_smaller_pixels_come_to_the_pixels_and_the_noise_of_the_fit(fine, model):
    new = fine[100:]
    as_before = new.downsample(32)
    brought = as_fitted_by(model, new)
    assert (brought.box, brought.pixel_size) == (32, pytest.approx(as_before.pixel_size))
    images, expected = brought.read(), as_before.read()
    slope = (images * expected).sum() / (expected**2).sum()
    assert slope == pytest.approx(1.0, abs=0.06)
    assigned, taken = assign_particles(model, new)
    assert (assigned.labels_ == model.predict(as_before)).mean() >= 0.95
    assert assigned.class_sizes_.sum() == 50 and len(model.labels_) == 100
    np.testing.assert_array_equal(assigned.class_averages_, model.class_averages_)
    assert class_quality(assigned, taken)["size"].tolist() == assigned.class_sizes_.tolist()


def test_classes_are_counted_by_what_tells_images_apart_as_in_a_fit(fine, model):
    trained = fine[:100].downsample(32)
    again, _ = assign_particles(model, trained)
    assert again.n_effective_clusters_ == pytest.approx(model.n_effective_clusters_, rel=1e-5)
    outlier = np.arange(100) < 30
    some, _ = assign_particles(model, trained.with_outliers(outlier))
    shares = model.predict_proba(trained[~outlier]).astype(float)
    information = np.mean(np.sum(xlogy(shares, shares / shares.mean(axis=0)), axis=1))
    assert some.n_effective_clusters_ == pytest.approx(np.exp(information), rel=1e-5)


def test_a_smaller_field_is_filled_up(fine, model):
    small = rescale(fine[100:], fine.pixel_size, 42)
    assigned, taken = assign_particles(model, small)
    assert taken.box == 32
    assert (assigned.labels_ == model.predict(fine[100:].downsample(32))).mean() >= 0.9


def test_particles_as_those_of_the_fit_are_left_as_they_are(fine, model):
    same = fine[100:].downsample(32)
    assert as_fitted_by(model, same) is same


def test_aligned_and_divided_classes_take_further_particles_too(fine):
    first, new = fine[:100].downsample(24).with_poses(None), fine[100:].with_poses(None)
    aligner = MAPAligner(2, n_batches=3, max_iter=2, random_state=0)
    model = DeepClusterer(aligner, images_per_subclass=20, random_state=0).fit(first)
    assigned, taken = assign_particles(model, new)
    as_before = new.downsample(24)
    assert (assigned.labels_ == model.predict(as_before)).mean() >= 0.8
    np.testing.assert_array_equal(assigned.poses_.angle_rad, taken.poses.angle_rad)
    assigned, taken = assign_particles(model.first_, new)
    assert len(assigned.labels_) == len(assigned.log_evidence_) == len(taken.poses) == 50


def test_what_cannot_be_assigned_is_refused(fine, model):
    with pytest.raises(ValueError, match="Fit the model to images that are downsampled"):
        as_fitted_by(model, fine.downsample(16))
    with pytest.raises(TypeError, match="Give a fitted MAPAligner"):
        assign_particles(EigenImages(2).fit(fine.downsample(32)), fine.downsample(32))
