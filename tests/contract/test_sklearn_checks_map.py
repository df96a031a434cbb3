"""The estimators of unaligned images keep scikit-learn's contract as far as a 3-D input lets it be tested.

`parametrize_with_checks` runs no check at all on an estimator whose tags refuse 2-D input, and both
refuse it: rows of pixels have no centre, no angle and no box, and to guess D from n_features would
align spectra without a word. The checks that make sense on images are therefore run here by hand.
"""

import copy
import inspect
import pickle

import numpy as np
import pytest
from sklearn.base import clone, is_clusterer
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags

from sklearn_cryoem import MAPAligner, ProjectionClusterer, SMLClusterer
from sklearn_cryoem.datasets import make_particles


def quick(kind=MAPAligner, **options):
    if kind is ProjectionClusterer:
        options = {"max_resolution": 60.0, **options}
    return kind(**{"n_clusters": 3, "n_batches": 3, "max_iter": 2, "tol": 10.0, "random_state": 0, **options})


@pytest.fixture(scope="module")
def stack():
    return make_particles("ribosome", 90, box=24, snr=1.0, n_views=3, max_shift=12.0, random_state=0)


@pytest.fixture(scope="module", params=[MAPAligner, ProjectionClusterer])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def fitted(kind, stack):
    return quick(kind).fit(stack)


def test_tags_say_images_in_and_clusters_out(kind):
    tags = get_tags(kind())
    assert tags.input_tags.three_d_array
    assert not tags.input_tags.two_d_array
    assert is_clusterer(kind())
    assert tags.transformer_tags is not None


def test_init_only_stores_its_parameters(kind):
    parameters = inspect.signature(kind).parameters
    aligner = kind()
    assert aligner.get_params() == {name: value.default for name, value in parameters.items()}
    assert set(vars(aligner)) == set(parameters)


def test_clone_copies_parameters_and_nothing_fitted(fitted):
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params()
    assert not hasattr(copied, "poses_")


def test_fit_changes_no_parameter_and_returns_self_and_a_second_one_gives_the_same(stack, fitted):
    again = copy.deepcopy(fitted)
    before = copy.deepcopy(again.get_params())
    assert again.fit(stack) is again
    assert again.get_params() == before
    np.testing.assert_array_equal(again.labels_, fitted.labels_)
    np.testing.assert_array_equal(again.poses_.angle_rad, fitted.poses_.angle_rad)


@pytest.mark.parametrize("method", ["transform", "predict", "score", "score_samples"])
def test_every_method_says_when_nothing_was_fitted(kind, stack, method):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(kind(), method)(stack)


def test_a_pickled_aligner_works_alike(stack, fitted):
    other = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(other.predict(stack), fitted.predict(stack))


def test_methods_do_not_depend_on_what_else_is_in_the_batch(stack, fitted):
    whole = fitted.score_samples(stack)
    parts = np.concatenate([fitted.score_samples(stack[:31]), fitted.score_samples(stack[31:])])
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    np.testing.assert_array_equal(fitted.predict(stack[10:20]), fitted.predict(stack)[10:20])


def test_methods_leave_the_fitted_state_alone(stack, fitted):
    before = {name: id(value) for name, value in vars(fitted).items()}
    fitted.transform(stack), fitted.predict(stack), fitted.score(stack)
    assert {name: id(value) for name, value in vars(fitted).items()} == before


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_clusters": 0}, "'n_clusters'.*an int in"),
        ({"max_iter": 0}, "'max_iter'"),
        ({"tau_fudge": 0.0}, "'tau_fudge'"),
        ({"class_prior": "flat"}, "must be one of 'uniform', 'estimated', 'balanced'"),
        ({"max_shift": -1.0}, "'max_shift'"),
    ],
)
def test_parameters_are_checked_in_fit_not_before(stack, parameters, message):
    aligner = quick(**parameters)
    with pytest.raises(ValueError, match=message):
        aligner.fit(stack)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((5, 24)), np.zeros((5, 24, 20)), np.full((5, 24, 24), np.nan)],
    ids=["2-D", "oblong", "nan"],
)
def test_what_is_not_a_stack_of_square_images_is_refused(wrong):
    with pytest.raises(ValueError, match=r"expected|NaN"):
        quick().fit(wrong)


def test_fewer_images_than_classes_is_an_error(stack):
    with pytest.raises(ValueError, match="Ask for fewer classes"):
        quick(n_clusters=10).fit(stack[:5])


def test_other_boxes_and_pixel_sizes_are_refused_after_the_fit(stack, fitted):
    with pytest.raises(ValueError, match="same box"):
        fitted.predict(stack.downsample(20))
    other = make_particles("ribosome", 5, box=24, pixel_size=stack.pixel_size * 1.1, snr=1.0, random_state=0)
    with pytest.raises(ValueError, match="same pixel size"):
        fitted.predict(other)


def test_a_pixel_size_rounded_in_a_header_is_accepted(stack, fitted):
    rounded = make_particles(
        "ribosome", 5, box=24, pixel_size=stack.pixel_size * 1.002, snr=1.0, random_state=0
    )
    assert fitted.predict(rounded).shape == (5,)


def test_a_fit_that_is_still_in_motion_warns_and_says_what_to_raise(stack):
    with pytest.warns(ConvergenceWarning, match="Raise max_iter, or n_batches"):
        quick(n_batches=0, max_iter=1).fit(stack)


def test_a_pipeline_predicts_new_particles_and_caches_the_alignment(stack, tmp_path):
    pipeline = make_pipeline(quick(), SMLClusterer((2, 2), max_iter=60), memory=str(tmp_path))
    first = pipeline.fit(stack[:70])[-1].labels_
    assert pipeline.predict(stack[70:]).shape == (20,)
    assert pipeline.transform(stack[70:]).shape == (20, 2)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert files
    stamps = [path.stat().st_mtime_ns for path in files if path.name == "output.pkl"]
    second = clone(pipeline).fit(stack[:70])[-1].labels_
    assert [path.stat().st_mtime_ns for path in files if path.name == "output.pkl"] == stamps
    np.testing.assert_array_equal(first, second)
