"""DeepClusterer: classes, sub-classes by population, one flat numbering with the tree above it."""

import json

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline

from sklearn_cryoem import DeepClusterer, MAPAligner, SMLClusterer, load_model, save_model
from sklearn_cryoem._core.validation import ParticleDataWarning
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators import EigenImages
from sklearn_cryoem.estimators.deep_clusterer import (
    default_first,
    n_first_classes,
    n_subclasses,
    subclasses_of_nodes,
    united,
)

QUICK = SMLClusterer(max_resolution=40.0, max_iter=150)


def quick_aligner(**options):
    return MAPAligner(3, n_batches=5, max_iter=2, tol=10.0, random_state=0, **options)


@pytest.fixture(scope="module")
def stack():
    return make_particles("ribosome", 200, box=24, snr=1.0, n_views=3, max_shift=12.0, random_state=0)


@pytest.fixture(scope="module")
def fitted(stack):
    return DeepClusterer(quick_aligner(), QUICK, images_per_subclass=20, random_state=0).fit(stack)


# ---------------------------------------------------------------- the rule
@pytest.mark.parametrize(
    ("size", "count"), [(0, 1), (1, 1), (59, 1), (60, 2), (89, 2), (90, 3), (281, 9), (3961, 132)]
)
def test_a_class_gets_a_subclass_for_every_so_many_images_and_small_ones_stay_whole(size, count):
    assert n_subclasses(size, 30, None, None) == count


def test_the_smallest_class_and_the_most_subclasses_can_be_set():
    assert n_subclasses(40, 30, 40, None) == 2  # divided at all means two at least
    assert n_subclasses(39, 30, 40, None) == 1
    assert n_subclasses(1000, 10, None, 25) == 25
    assert n_subclasses(2, 1, None, None) == 2
    assert n_subclasses(1, 1, None, None) == 1  # one image has no manifold


def test_the_rule_is_what_fit_goes_by(fitted):
    sizes = np.bincount(fitted.first_labels_, minlength=3)
    for k, clusterer in enumerate(fitted.clusterers_):
        if sizes[k] < 40:
            assert clusterer is None and len(fitted.children_[k]) == 1
        else:
            assert clusterer.n_clusters == sizes[k] // 20
            assert len(fitted.children_[k]) == np.count_nonzero(clusterer.class_sizes_)


@pytest.mark.parametrize(
    ("n_samples", "n_first"),
    [(2, 1), (5, 2), (600, 2), (899, 2), (900, 3), (4000, 13), (15_000, 50), (10**6, 50)],
)
def test_there_is_a_first_class_for_every_ten_subclasses(n_samples, n_first):
    assert n_first_classes(n_samples, 30) == n_first


# ---------------------------------------------------------------- labels and tree
def test_labels_parents_and_children_are_one_tree(fitted, stack):
    n_classes = len(fitted.class_averages_)
    np.testing.assert_array_equal(np.concatenate(fitted.children_), np.arange(n_classes))
    np.testing.assert_array_equal(fitted.parent_label_[fitted.labels_], fitted.first_labels_)
    np.testing.assert_array_equal(np.bincount(fitted.labels_, minlength=n_classes), fitted.class_sizes_)
    tree = json.loads(json.dumps(fitted.tree_))
    assert tree["n_images"] == len(stack) and tree["n_classes"] == n_classes
    for k, entry in enumerate(tree["classes"]):
        assert entry["n_images"] == np.sum(fitted.first_labels_ == k)
        assert entry["n_images"] == sum(leaf["n_images"] for leaf in entry["subclasses"])
        assert [leaf["label"] for leaf in entry["subclasses"]] == fitted.children_[k].tolist()


def test_each_class_is_divided_as_a_clusterer_of_it_alone_would(fitted, stack):
    aligned = stack.with_poses(fitted.first_.poses_)
    for k, clusterer in enumerate(fitted.clusterers_):
        if clusterer is None:
            continue
        rows = np.flatnonzero(fitted.first_labels_ == k)
        alone = clone(clusterer).fit(aligned[rows])
        place = np.unique(alone.labels_, return_inverse=True)[1]
        np.testing.assert_array_equal(fitted.labels_[rows], fitted.children_[k][place])
        np.testing.assert_array_equal(fitted.class_averages_[fitted.children_[k]], alone.class_averages_)


def test_nodes_without_images_are_no_subclasses_and_their_newcomers_go_to_the_nearest():
    X = np.repeat([[0.0, 0.0], [9.0, 9.0]], 60, axis=0) + np.random.default_rng(0).normal(0, 0.1, (120, 2))
    second = SMLClusterer(n_components=1, max_iter=200)
    deep = DeepClusterer(SMLClusterer(1), second, images_per_subclass=5, random_state=0).fit(X)
    inner = deep.clusterers_[0]
    occupied = np.flatnonzero(inner.class_sizes_)
    assert len(inner.class_sizes_) == 24 and 2 <= len(occupied) < 24, "some nodes must lie between the clumps"
    assert len(deep.class_averages_) == len(occupied) and (deep.class_sizes_ > 0).all()
    np.testing.assert_array_equal(deep.class_averages_, inner.class_averages_[occupied])
    np.testing.assert_array_equal(deep.predict(X), deep.labels_)
    between = np.linspace(0, 9, 50)[:, None].repeat(2, axis=1)
    empty = ~np.isin(inner.predict(between), occupied)
    assert empty.any()
    distance = np.abs(inner.predict(between)[:, None] - occupied)
    np.testing.assert_array_equal(deep.predict(between), distance.argmin(axis=1))
    np.testing.assert_allclose(deep.predict_proba(between).sum(axis=1), 1.0, rtol=1e-5)
    leaves = deep.tree_["classes"][0]["subclasses"]
    nodes = inner.latent_nodes_[occupied]
    np.testing.assert_allclose([leaf["latent_position"] for leaf in leaves], nodes)


def test_the_nearest_node_of_a_ring_may_lie_across_its_seam():
    ring = SMLClusterer(8, topology="ring")
    ring.labels_, ring.latent_nodes_ = np.array([2, 3, 7]), np.linspace(-1.0, 1.0, 8, endpoint=False)[:, None]
    nearest, occupied = subclasses_of_nodes(ring)
    assert occupied.tolist() == [2, 3, 7]
    assert occupied[nearest[[0, 1, 2, 3, 4, 6, 7]]].tolist() == [7, 2, 2, 3, 3, 7, 7]  # 5 is halfway


def test_the_tree_knows_the_shape_of_its_manifolds():
    X = np.random.default_rng(0).normal(size=(60, 3))
    second = SMLClusterer(topology="ring", max_iter=10, tol=100.0)
    deep = DeepClusterer(SMLClusterer(1), second, images_per_subclass=10, random_state=0).fit(X)
    assert [entry["topology"] for entry in deep.tree_["classes"]] == ["ring"]


def test_classes_can_be_divided_along_their_own_eigen_images(fitted, stack, tmp_path):
    second = make_pipeline(EigenImages(3, max_resolution=40.0), SMLClusterer())
    deep = DeepClusterer(fitted.first_, second, images_per_subclass=20, random_state=0).fit(stack)
    np.testing.assert_array_equal(deep.first_labels_, fitted.first_labels_)
    k = int(np.argmax(np.bincount(deep.first_labels_)))
    eigen, inner = deep.clusterers_[k]
    assert eigen.eigen_images_.shape == (3, 24, 24) and inner.n_features_in_ == 3
    assert deep.class_averages_.shape == (len(deep.class_sizes_), 24, 24)
    np.testing.assert_array_equal(deep.predict(stack), deep.labels_)
    assert deep.transform(stack[:5]).shape == (5, 2)
    assert not hasattr(second[-1], "labels_"), "the estimator given is a pattern"
    # an average of coordinates is the average of the phase-flipped images as far as eigen-images tell
    alone = clone(deep.clusterers_[k]).fit(stack.with_poses(deep.poses_)[deep.first_labels_ == k])
    np.testing.assert_array_equal(alone[-1].labels_, inner.labels_)
    save_model(deep, tmp_path / "deep.npz")
    np.testing.assert_array_equal(load_model(tmp_path / "deep.npz").predict(stack), deep.labels_)


def test_it_separates_views_that_the_first_classification_mixes():
    stack = aligned_to_truth(
        make_particles("ribosome", 300, box=24, snr=1.0, n_views=2, max_shift=12.0, random_state=1)
    )
    mixed = SMLClusterer(1, max_resolution=40.0, max_iter=150)
    deep = DeepClusterer(mixed, QUICK, images_per_subclass=75, random_state=0).fit(stack)
    assert np.all(deep.first_labels_ == 0)
    views = stack.truth["view"].to_numpy()
    mostly = [np.bincount(views[deep.labels_ == k]).max() for k in np.unique(deep.labels_)]
    assert np.sum(mostly) / len(stack) > 0.97


def test_classes_kept_whole_show_the_average_of_the_first_classification(stack):
    deep = DeepClusterer(quick_aligner(), QUICK, min_class_size=1000, random_state=0).fit(stack)
    assert deep.clusterers_ == [None, None, None]
    np.testing.assert_array_equal(deep.labels_, deep.first_.labels_)
    np.testing.assert_array_equal(deep.class_averages_, deep.first_.class_averages_)
    np.testing.assert_array_equal(deep.predict_proba(stack[:7]).sum(axis=1), 1.0)
    np.testing.assert_array_equal(deep.transform(stack[:7]), 0.0)


def test_an_empty_first_class_is_a_class_without_images():
    vectors = np.concatenate([np.zeros((30, 3)), np.full((30, 3), 9.0)]) + np.eye(3)[np.arange(60) % 3]
    first = SMLClusterer(6, n_components=1).fit(vectors)
    assert np.any(first.class_sizes_ == 0)
    deep = DeepClusterer(first, images_per_subclass=10).fit(vectors)
    assert np.all(np.bincount(deep.parent_label_, minlength=6) >= 1)
    np.testing.assert_array_equal(deep.predict(vectors), deep.labels_)


# ---------------------------------------------------------------- use
def test_training_particles_come_back_with_their_labels(fitted, stack):
    np.testing.assert_array_equal(fitted.predict(stack), fitted.labels_)
    posterior = fitted.predict_proba(stack)
    assert np.mean(posterior.argmax(axis=1) == fitted.labels_) > 0.85  # others alone say so, Eq. (3.17)
    np.testing.assert_allclose(posterior.sum(axis=1), 1.0, rtol=1e-5)
    own = fitted.parent_label_ == fitted.first_labels_[:, None]
    assert np.all(posterior[~own] == 0)
    assert fitted.transform(stack).shape == (len(stack), 2)
    assert fitted.get_feature_names_out().tolist() == ["deepclusterer0", "deepclusterer1"]


def test_particles_do_not_depend_on_what_else_is_in_the_batch(fitted, stack):
    np.testing.assert_array_equal(fitted.predict(stack[10:20]), fitted.labels_[10:20])
    backwards = np.arange(len(stack))[::-1]
    np.testing.assert_array_equal(fitted.predict(stack[backwards]), fitted.labels_[backwards])


def test_a_fitted_first_is_used_as_it_is_and_an_unfitted_one_is_left_alone(stack, fitted):
    template = quick_aligner()
    DeepClusterer(template, QUICK, min_class_size=1000).fit(stack)
    assert not hasattr(template, "poses_")
    known = fitted.first_
    for first, whole in ((known, {"min_class_size": 1000}), (clone(FrozenEstimator(known)), {})):
        deep = DeepClusterer(first, QUICK, images_per_subclass=20, random_state=0, **whole).fit(stack)
        assert deep.first_ is known
        np.testing.assert_array_equal(deep.first_labels_, known.labels_)
    np.testing.assert_array_equal(deep.labels_, fitted.labels_)


def test_a_pipeline_can_be_the_first_classification(stack):
    first = make_pipeline(quick_aligner(), SMLClusterer((2, 1), max_resolution=40.0, max_iter=150))
    deep = DeepClusterer(first, QUICK, images_per_subclass=40, random_state=0).fit(stack)
    np.testing.assert_array_equal(deep.poses_.angle_rad, deep.first_[0].poses_.angle_rad)
    np.testing.assert_array_equal(deep.first_labels_, deep.first_[-1].labels_)
    assert deep.predict(stack[:10]).shape == (10,)
    turn = np.angle(np.exp(1j * (deep.align(stack[:9]).poses.angle_rad - deep.poses_.angle_rad[:9])))
    np.testing.assert_allclose(turn, 0.0, atol=1e-5)  # among nine, not among all: last digits differ


def test_it_is_a_step_of_a_pipeline_after_the_aligner(stack):
    pipeline = make_pipeline(
        quick_aligner(), DeepClusterer(SMLClusterer((2, 1), max_resolution=40.0, max_iter=150), QUICK)
    )
    labels = pipeline.fit_predict(stack)
    np.testing.assert_array_equal(pipeline.predict(stack), labels)
    assert pipeline[-1].poses_ is not None
    with pytest.raises(ValueError, match="Align the particles before"):
        pipeline[-1].align(stack)


def test_by_default_particles_without_poses_are_aligned_and_others_are_not(stack):
    unaligned = default_first(stack, 10, QUICK, n_jobs=1, random_state=0, verbose=0)
    assert isinstance(unaligned, MAPAligner) and unaligned.n_clusters == 2
    aligned = aligned_to_truth(stack)
    deep = DeepClusterer(second=QUICK).fit(aligned)
    assert isinstance(deep.first_, SMLClusterer) and deep.first_.max_iter == QUICK.max_iter
    assert deep.poses_ is aligned.poses


def test_nodes_are_united_by_what_the_likelihood_loses():
    templates, sizes = np.array([[0.0], [1.0], [5.0], [6.5], [1.2]]), np.array([50, 1, 40, 40, 0])
    np.testing.assert_array_equal(united(templates, sizes, 3), [0, 0, 1, 2, 0])  # 1 image moves by 1
    np.testing.assert_array_equal(united(templates, sizes, 2), [0, 0, 1, 1, 0])
    np.testing.assert_array_equal(united(templates, sizes, 9), [0, 1, 2, 3, 1])  # an empty one joins


def test_nodes_of_the_default_map_are_united_to_first_classes(stack):
    aligned = aligned_to_truth(stack)
    deep = DeepClusterer(second=QUICK, images_per_subclass=10, random_state=0).fit(aligned)
    n_first = n_first_classes(len(stack), 10)
    assert len(deep.clusterers_) == n_first < len(deep.first_.class_sizes_)
    np.testing.assert_array_equal(deep.parent_label_[deep.labels_], deep.first_labels_)
    assert len(np.unique(deep.first_labels_)) == n_first
    assert set(deep.parent_label_[deep.predict(aligned[:20])]) <= set(range(n_first))


def test_particles_without_poses_are_questioned_where_nobody_aligns_them(stack):
    first = SMLClusterer((1, 2), max_resolution=40.0, random_state=0)
    with pytest.warns(ParticleDataWarning, match=r"needs aligned particles.*no-poses") as caught:
        DeepClusterer(first, QUICK, images_per_subclass=10, random_state=0).fit(stack[:60].with_poses(None))
    assert sum("no-poses" in str(warning.message) for warning in caught) == 1


def test_images_stay_in_their_file(tmp_path):
    stack = make_particles(
        "ribosome", 60, box=24, snr=1.0, n_views=2, path=tmp_path / "p.mrcs", random_state=0
    )
    second = SMLClusterer(max_resolution=40.0, max_iter=20, tol=1.0)
    deep = DeepClusterer(quick_aligner(), second, images_per_subclass=10, random_state=0)
    in_file = deep.fit(stack).labels_
    assert not deep.align(stack).is_in_memory
    inside = stack._replace(images=stack.read())
    np.testing.assert_array_equal(clone(deep).fit(inside).labels_, in_file)


def test_a_saved_model_predicts_the_same(fitted, stack, tmp_path):
    save_model(fitted, tmp_path / "deep.npz")
    loaded = load_model(tmp_path / "deep.npz")
    np.testing.assert_array_equal(loaded.predict(stack), fitted.labels_)
    assert loaded.tree_ == fitted.tree_
    frozen = DeepClusterer(FrozenEstimator(fitted.first_), QUICK)
    save_model(frozen, tmp_path / "frozen.npz")
    first = load_model(tmp_path / "frozen.npz").first
    assert isinstance(first, FrozenEstimator)
    np.testing.assert_array_equal(first.estimator.labels_, fitted.first_.labels_)


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"first": SMLClusterer}, "the class SMLClusterer, expected an estimator that finds classes"),
        ({"first": "map"}, "is a str, expected an estimator"),
        ({"second": MAPAligner()}, "is a MAPAligner, expected an SMLClusterer"),
        ({"images_per_subclass": 0}, "'images_per_subclass'"),
        ({"min_class_size": 1}, "'min_class_size'"),
        ({"max_subclasses": 1}, "'max_subclasses'"),
    ],
)
def test_parameters_are_checked_in_fit(stack, parameters, message):
    with pytest.raises((TypeError, ValueError), match=message):
        DeepClusterer(**parameters).fit(stack)


def test_a_first_without_class_averages_is_refused(rng):
    from sklearn.cluster import KMeans

    with pytest.raises(TypeError, match="KMeans has no class_averages_"):
        DeepClusterer(KMeans(2)).fit(rng.normal(size=(50, 4)))


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((5, 24)), np.zeros((5, 24, 20)), np.full((5, 24, 24), np.nan)],
    ids=["2-D", "oblong", "nan"],
)
def test_what_is_not_a_stack_of_square_images_is_refused(wrong):
    with pytest.raises(ValueError, match=r"expected|NaN"):
        DeepClusterer(quick_aligner()).fit(wrong)


def test_vectors_are_refused_by_a_model_of_images_and_the_other_way_round(fitted, stack):
    with pytest.raises(ValueError, match=r"was fitted on images. Give a ParticleStack"):
        fitted.predict(np.zeros((5, 24)))
    vectors = np.random.default_rng(0).normal(size=(80, 3))
    with pytest.raises(ValueError, match=r"was fitted on vectors. Give an array"):
        DeepClusterer(SMLClusterer(2), images_per_subclass=20).fit(vectors).predict(stack)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "transform", "align"])
def test_every_method_says_when_nothing_was_fitted(stack, method):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(DeepClusterer(), method)(stack)


def test_manifolds_that_did_not_converge_are_told_of_once(stack, fitted):
    with pytest.warns(ConvergenceWarning, match="of . manifolds stopped at max_iter=2 .*second=") as told:
        deep = DeepClusterer(fitted.first_, SMLClusterer(max_iter=2), images_per_subclass=20).fit(stack)
    assert len(told) == 1 and not deep.converged_


@pytest.mark.parametrize(
    "late",
    [
        {"first": make_pipeline(MAPAligner(2), SMLClusterer(3, alpha="none"))},
        {"second": SMLClusterer(alpha="none")},
        {"second": make_pipeline(EigenImages(3), SMLClusterer(alpha="none"))},
    ],
    ids=["first", "second", "pipeline"],
)
def test_what_later_steps_would_refuse_is_refused_before_the_first_is_fitted(late, monkeypatch):
    for kind in (MAPAligner, EigenImages):
        monkeypatch.setattr(kind, "fit", lambda self, X, y=None: pytest.fail("a fit began"))
    stack = make_particles("ribosome", 20, box=16, snr=1.0, random_state=0)
    with pytest.raises(ValueError, match="'alpha'"):
        DeepClusterer(**{"first": MAPAligner(2), **late}).fit(stack)


def test_classes_on_a_sphere_may_be_fewer_than_the_sphere_of_the_template():
    DeepClusterer(second=SMLClusterer(2, topology="sphere"))._check_parameters()
