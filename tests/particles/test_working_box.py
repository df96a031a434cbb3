"""Fits work in the box that the signal needs, and everything they return is in the units of the images."""

import joblib
import numpy as np
import pytest

from sklearn_cryoem import DeepClusterer, MAPAligner, RealigningClusterer, SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators import EigenImages, assign_particles
from sklearn_cryoem.particles import ParticleStack, to_working_box
from sklearn_cryoem.particles.preprocess import as_made
from sklearn_cryoem.physics.fourier import fourier_features, fourier_resize, half_plane, images_from_features
from sklearn_cryoem.quality import average_classes, class_quality

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
N_IMAGES, BOX, SMALL = 40, 96, 64
RESOLUTION = 14.0  # Angstrom; 27 shells


@pytest.fixture(scope="module")
def stack():
    found = make_particles("ribosome", N_IMAGES, box=BOX, snr=0.2, n_views=2, max_shift=10.0, random_state=1)
    return aligned_to_truth(found).with_outliers(np.arange(N_IMAGES) == 3)


def images_with_signal_up_to(n_shells, n=200, box=128):
    """White signal behind CTFs, up to a shell, in as much noise."""
    ctf = make_particles("ribosome", n, box=16, random_state=0).ctf
    rng, plane = np.random.default_rng(0), half_plane(box)
    signal = fourier_features(rng.normal(size=(n, box, box)).astype(np.float32), plane)
    signal *= ctf.evaluate(plane.radius / (box * 2.0), plane.azimuth) * (plane.radius <= n_shells)
    images = images_from_features(signal, plane) + rng.normal(size=(n, box, box))
    return ParticleStack(images, pixel_size=2.0, ctf=ctf)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_the_box_has_twice_the_shells_with_signal_for_any_number_of_workers(n_jobs):
    found = to_working_box(images_with_signal_up_to(20), n_jobs=n_jobs)
    assert found.box == 84  # the next that is good for an FFT beyond 2 (2 * 20 + 1)
    assert found.pixel_size == pytest.approx(2.0 * 128 / 84)


@pytest.mark.parametrize(("n_shells", "box"), [(0, SMALL), (63, 128)], ids=["noise", "all"])
def test_noise_alone_needs_the_smallest_box_and_signal_up_to_nyquist_all_of_it(n_shells, box):
    assert to_working_box(images_with_signal_up_to(n_shells)).box == box


def test_the_box_stays_where_nothing_can_be_told_or_saved_or_was_chosen():
    faint = images_with_signal_up_to(20, n=30)
    for kept in (faint.with_ctf(None), faint.downsample(128), faint.downsample(60)):
        assert to_working_box(kept) is kept


def test_outliers_stay_marked_and_images_are_kept_where_there_is_room(stack, monkeypatch):
    kept = to_working_box(stack, RESOLUTION)
    monkeypatch.setattr("sklearn_cryoem.particles.feature_space.cache_bytes", lambda: 0.0)
    made = to_working_box(stack, RESOLUTION)
    assert kept.outlier.tolist() == stack.outlier.tolist()
    assert kept.images._images is not None
    assert made.images._images is None
    for rows in (None, slice(3, 7), np.array([5, 2])):
        np.testing.assert_array_equal(kept.read(rows), made.read(rows))
    np.testing.assert_array_equal(kept[[7, 1]].read(), made[[7, 1]].read())
    assert joblib.hash(as_made(kept.images)) == joblib.hash(made.images)


def test_an_alignment_works_in_the_small_box_and_gives_poses_of_the_images(stack):
    how = {"n_batches": 2, "max_iter": 1, "max_resolution": RESOLUTION, "random_state": 0}
    whole = MAPAligner(2, **how).fit(stack)
    small = MAPAligner(2, **how).fit(to_working_box(stack, RESOLUTION))
    assert whole.class_averages_.shape == (2, SMALL, SMALL)
    assert whole.n_features_in_ == BOX**2
    np.testing.assert_array_equal(whole.poses_.shift, small.poses_.shift)
    np.testing.assert_array_equal(whole.labels_, small.labels_)
    assert whole.transform(stack).box == BOX
    np.testing.assert_array_equal(whole.predict(stack), small.predict(to_working_box(stack, RESOLUTION)))
    assigned, found = assign_particles(whole, stack)
    assert found.box == BOX
    np.testing.assert_array_equal(assigned.labels_, whole.predict(stack))
    again = whole.set_params(warm_start=True).fit(stack)
    assert again.class_averages_.shape == (2, SMALL, SMALL)
    begun = [
        MAPAligner(2, init=fourier_resize(again.class_averages_, box), **how).fit(stack)
        for box in (SMALL, BOX)
    ]
    np.testing.assert_array_equal(begun[0].labels_, begun[1].labels_)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SMLClusterer(2, n_components=1, max_resolution=RESOLUTION, max_iter=8),
        lambda: DeepClusterer(
            SMLClusterer(2, n_components=1, max_resolution=RESOLUTION, max_iter=5),
            SMLClusterer(n_components=1, max_iter=5),
            images_per_subclass=8,
        ),
        lambda: RealigningClusterer(SMLClusterer(2, max_resolution=RESOLUTION, max_iter=5), n_rounds=1),
    ],
    ids=["sml", "deep", "realigning"],
)
def test_classes_of_the_whole_box_are_those_of_the_small_one(stack, make):
    whole, small = make().fit(stack), make().fit(to_working_box(stack, RESOLUTION))
    np.testing.assert_array_equal(whole.labels_, small.labels_)
    np.testing.assert_array_equal(whole.class_averages_, small.class_averages_)
    assert whole.class_averages_.shape[1:] == (SMALL, SMALL)
    assert whole.n_features_in_ == BOX**2
    np.testing.assert_array_equal(whole.predict(stack), small.predict(to_working_box(stack, RESOLUTION)))
    measured, expected = class_quality(whole, stack), class_quality(small, to_working_box(stack, RESOLUTION))
    np.testing.assert_array_equal(measured["resolution"], expected["resolution"])


def test_averages_in_the_whole_box_are_those_of_the_particles(stack):
    labels = stack.truth["view"].to_numpy()
    whole, small = average_classes(labels, stack), average_classes(labels, to_working_box(stack, RESOLUTION))
    assert whole.shape == (2, BOX, BOX)
    for one, other in zip(fourier_resize(whole, SMALL), small, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.98


def test_eigen_images_have_the_small_box(stack):
    model = EigenImages(2, max_resolution=RESOLUTION).fit(stack)
    assert model.eigen_images_.shape == (2, SMALL, SMALL)
    assert model.transform(stack).shape == (N_IMAGES, 2)
