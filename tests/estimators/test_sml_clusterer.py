import logging
import warnings

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.stats import entropy
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV

from sklearn_cryoem import ParticleStack, Poses, SMLClusterer
from sklearn_cryoem._core.validation import ParticleDataWarning
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators import sml_clusterer
from sklearn_cryoem.metrics import effective_count, fraction_within


@pytest.fixture(scope="module")
def stack():
    return aligned_to_truth(
        make_particles("ribosome", 600, box=32, snr=0.2, n_views=12, max_shift=10.0, random_state=0)
    )


@pytest.fixture(scope="module")
def fitted(stack):
    return SMLClusterer((5, 5), random_state=0).fit(stack)


@pytest.fixture(scope="module")
def vectors():
    position = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    noise = 0.05 * np.random.default_rng(1).standard_normal((300, 3))
    return np.column_stack([position, np.sin(2 * position[:, 0])]) + noise + 10.0, position


def test_views_of_particles_are_found(stack, fitted):
    assert adjusted_rand_score(fitted.labels_, stack.truth["view"]) > 0.4
    directions = stack.truth[["view_x", "view_y", "view_z"]].to_numpy()
    assert fraction_within(fitted.labels_, directions) > 0.7


@pytest.mark.parametrize(("init", "n_components"), [("random", 1), ("random", 2), ("pca", 3)])
def test_both_starts_and_all_dimensions_find_them(stack, init, n_components):
    model = SMLClusterer(27, n_components=n_components, init=init, random_state=0).fit(stack)
    assert adjusted_rand_score(model.labels_, stack.truth["view"]) > 0.25
    assert model.latent_nodes_.shape[1] == n_components


def test_with_mirror_images_more_is_known_of_each_view():
    raw = make_particles("ribosome", 700, box=24, snr=0.1, max_shift=10.0, random_state=0)
    stack, directions = aligned_to_truth(raw), raw.truth[["view_x", "view_y", "view_z"]].to_numpy()
    plain, both = (SMLClusterer(49, mirror=way, random_state=0).fit(stack) for way in (False, True))
    found = [fraction_within(model.labels_, directions, 15.0) for model in (plain, both)]
    assert found[1] > 1.1 * found[0], found
    assert both.soft_class_sizes_.sum() == pytest.approx(700, rel=1e-4)
    np.testing.assert_array_equal(both.predict(stack), both.labels_)
    mirrored = Poses(-stack.poses.angle_rad, stack.poses.shift, True)  # of the same images: the same labels
    np.testing.assert_array_equal(both.predict(stack.with_poses(mirrored)), both.labels_)
    both.partial_fit(stack[:60])
    assert both.n_images_seen_ == 760 and both.soft_class_sizes_.sum() == pytest.approx(760, rel=1e-4)


def test_effective_classes_are_those_that_images_are_told_apart_into(stack, fitted):
    shares = fitted.predict_proba(stack).astype(float)
    information = entropy(shares.mean(axis=0)) - entropy(shares, axis=1).mean()
    assert fitted.n_effective_clusters_ == pytest.approx(np.exp(information), rel=1e-4)
    assert 5 < fitted.n_effective_clusters_ < 13  # of 12 views
    images = np.random.default_rng(0).standard_normal((400, 32, 32), dtype=np.float32)
    noise = ParticleStack(images, pixel_size=9.0, poses=Poses.identity(400))
    with pytest.warns(ConvergenceWarning, match="collapsed: its 25 classes tell images apart no better"):
        model = SMLClusterer((5, 5), max_iter=10, random_state=0).fit(noise)
    assert model.n_effective_clusters_ < 2 and effective_count(model.class_sizes_) > 5


def test_attributes_have_the_shapes_they_promise(stack, fitted):
    n, box, nodes = len(stack), stack.box, 25
    shapes = {
        "labels_": (n,), "class_averages_": (nodes, box, box), "half_averages_": (2, nodes, box, box),
        "class_resolution_": (nodes,), "cluster_centers_": (nodes, box, box), "latent_nodes_": (nodes, 2),
        "class_sizes_": (nodes,), "soft_class_sizes_": (nodes,), "log_posterior_": (fitted.n_iter_,),
        "stage_": (fitted.n_iter_,), "iteration_resolution_": (fitted.n_iter_,),
        "held_out_": (fitted.n_iter_,),
    }  # fmt: skip
    for name, shape in shapes.items():
        assert getattr(fitted, name).shape == shape, name
    assert fitted.grid_shape_ == (5, 5) and fitted.n_features_in_ == box**2
    assert fitted.noise_variance_.shape == fitted.alpha_.shape == (15,)
    assert fitted.class_sizes_.sum() == n and fitted.soft_class_sizes_.sum() == pytest.approx(n, rel=1e-4)
    assert 1 < fitted.n_effective_clusters_ <= nodes


def test_cross_fitted_iterations_come_first_and_are_told(fitted):
    n_held_out = int(fitted.held_out_.sum())
    assert 0 < n_held_out < fitted.n_iter_ and fitted.held_out_[:n_held_out].all()
    assert (np.diff(fitted.stage_[:n_held_out]) == 1).all(), "each is a stage of its own"


def test_predictions_agree_with_the_fit_and_with_each_other(stack, fitted):
    np.testing.assert_array_equal(fitted.predict(stack), fitted.labels_)
    posterior = fitted.predict_proba(stack)
    np.testing.assert_array_equal(posterior.argmax(axis=1), fitted.labels_)
    np.testing.assert_allclose(posterior.sum(axis=1), 1.0, rtol=1e-4)
    np.testing.assert_allclose(fitted.transform(stack), posterior @ fitted.latent_nodes_, atol=1e-4)
    labels, certainty, positions = fitted.assign(stack)
    np.testing.assert_array_equal(labels, fitted.labels_)
    np.testing.assert_allclose(certainty, posterior.max(axis=1))
    np.testing.assert_array_equal(positions, fitted.transform(stack))
    assert fitted.score(stack) == pytest.approx(fitted.score_samples(stack).mean())


def test_noise_variance_is_that_of_the_masked_noise(stack, fitted):
    # white noise of variance 1; the default mask, 0.9 of the box, leaves its area's share of it
    share = fitted._space.blocks(stack).layout.information
    np.testing.assert_allclose(fitted.noise_variance_[4:], share, rtol=0.1)


@pytest.mark.filterwarnings("ignore:.*no-poses")
def test_images_without_ctf_have_noise_and_prior_of_each_shell(stack):
    bare = ParticleStack(np.random.default_rng(0).standard_normal((300, 24, 24)))
    model = SMLClusterer((3, 3), alpha=1e6, max_iter=30).fit(bare)
    share = model._space.blocks(bare).layout.information
    np.testing.assert_allclose(model.noise_variance_, share, rtol=0.15)
    trace = SMLClusterer((3, 3)).fit(stack.with_ctf(None))
    steps = np.diff(trace.log_posterior_)[np.diff(trace.stage_) == 0]
    assert len(steps) and steps.min() > -1e-4 * abs(trace.log_posterior_[-1])


def test_centres_lie_on_the_manifold_and_between_them_are_images_too(fitted):
    images = fitted.inverse_transform(fitted.latent_nodes_)
    np.testing.assert_allclose(images, fitted.cluster_centers_, atol=1e-5)
    step = fitted.inverse_transform([[0.0, 0.0], [0.01, 0.0], [1.0, 0.0]])
    assert np.linalg.norm(step[1] - step[0]) < 0.1 * np.linalg.norm(step[2] - step[0])
    with pytest.raises(ValueError, match=r"expected .n, 2.: .*one column for each latent dimension"):
        fitted.inverse_transform([[0.0]])


def test_averages_of_a_view_look_like_its_projection(stack, fitted):
    clean = make_particles("ribosome", 600, box=32, snr=None, n_views=12, max_shift=10.0, random_state=0)
    biggest = fitted.class_sizes_.argmax()
    views = stack.truth["view"][fitted.labels_ == biggest]
    same = np.flatnonzero(stack.truth["view"] == views.mode()[0])
    reference = SMLClusterer((1, 1), alpha=1e-3).fit(aligned_to_truth(clean)[same]).class_averages_[0]
    correlation = np.corrcoef(fitted.class_averages_[biggest].ravel(), reference.ravel())[0, 1]
    assert correlation > 0.9
    assert fitted.class_resolution_[biggest] < 15 * stack.pixel_size


def test_samples_come_from_the_nodes_with_the_noise_of_the_model(fitted):
    images, labels = fitted.sample(200, random_state=0)
    again, _ = fitted.sample(200, random_state=0)
    np.testing.assert_array_equal(images, again)
    assert images.shape == (200, 32, 32) and set(labels) <= set(range(25))
    residual = images - fitted.cluster_centers_[labels]
    kept = 2 * len(fitted._space.plane.kx) / 32**2  # share of the frequencies that have noise
    assert residual.var() == pytest.approx(kept * fitted.noise_variance_[5:].mean(), rel=0.1)
    with pytest.raises(ValueError, match=r"'n_samples' of SMLClusterer.sample must be an int in \[1"):
        fitted.sample(0)


def test_the_objective_rises_within_every_stage_and_the_march_ends_at_full_resolution(fitted, stack):
    same = np.diff(fitted.stage_) == 0
    assert (np.diff(fitted.log_posterior_)[same] > -1e-4).all()
    limits = fitted.iteration_resolution_
    assert fitted.resolution_ == limits[-1] == pytest.approx(32 * stack.pixel_size / 15)
    assert limits[0] > limits[-1] and fitted.converged_


def test_max_resolution_limits_the_frequencies(stack):
    model = SMLClusterer(9, max_resolution=4 * stack.pixel_size).fit(stack)
    assert model.noise_variance_.shape == (8,)
    spectrum = np.abs(np.fft.rfft2(model.class_averages_[0]))
    assert spectrum[0, 9:].max() < 1e-4 * spectrum.max()


def test_plain_images_and_a_stack_of_them_are_the_same_but_the_stack_is_asked_for_poses(stack):
    """An array has no place for poses: who gives one has aligned it. A stack says it by poses of zeros."""
    images = stack.read()[:100]
    from_array, bare = SMLClusterer(4).fit(images), ParticleStack(images)
    remedy = r"SMLClusterer needs aligned .*Align them with a MAPAligner .*Poses\.identity"
    with pytest.warns(ParticleDataWarning, match=remedy) as caught:
        from_stack = SMLClusterer(4).fit(bare)
    assert caught[0].filename == __file__ and caught[0].message.name == "no-poses"
    np.testing.assert_array_equal(from_array.class_averages_, from_stack.class_averages_)
    told = SMLClusterer(4).fit(bare.with_poses(Poses.identity(len(bare))))
    for use in (told.predict, told.predict_proba, told.transform, told.score_samples, told.partial_fit):
        with pytest.warns(ParticleDataWarning, match="no-poses") as caught:
            use(bare)
        assert caught[0].filename == __file__


def test_a_list_of_images_is_an_array_of_them(fitted, stack):
    images = stack.with_poses(None).read(slice(0, 60))
    model = SMLClusterer((2, 2)).fit(images)
    np.testing.assert_array_equal(SMLClusterer((2, 2)).fit(list(images)).labels_, model.labels_)
    np.testing.assert_array_equal(model.predict(list(images[:9])), model.predict(images[:9]))
    with pytest.raises(ValueError, match=r"inhomogeneous|sequence"):
        model.predict([[1.0, 2.0], [3.0]])


def test_file_backed_particles_give_the_same_classes(tmp_path):
    options = {"box": 32, "snr": 0.3, "random_state": 1}
    in_memory = aligned_to_truth(make_particles("ribosome", 150, **options))
    on_disk = aligned_to_truth(make_particles("ribosome", 150, path=tmp_path / "a.mrcs", **options))
    first, second = (SMLClusterer(9).fit(X) for X in (in_memory, on_disk))
    np.testing.assert_array_equal(first.labels_, second.labels_)


def test_grid_search_over_the_shape_of_the_manifold(stack):
    search = GridSearchCV(
        SMLClusterer(n_clusters=9, max_resolution=40.0, max_iter=30, tol=1.0),
        {"n_components": [1, 2], "n_basis": [4, 9]},
        cv=2,
        error_score="raise",
    )
    search.fit(stack[:160])
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all() and len(set(scores)) == 4
    assert search.best_score_ > SMLClusterer((1, 1), max_resolution=40.0).fit(stack[:80]).score(stack[80:160])


def test_vectors_on_a_surface_are_laid_out_as_it_is(vectors):
    X, position = vectors
    model = SMLClusterer(64).fit(X)
    latent = model.transform(X)
    turn = np.linalg.lstsq(np.c_[latent, np.ones(300)], position, rcond=None)
    explained = 1 - turn[1].sum() / ((position - position.mean(0)) ** 2).sum()
    assert explained > 0.9
    assert model.noise_variance_[0] < 0.05
    np.testing.assert_allclose(model.cluster_centers_.mean(axis=0), X.mean(axis=0), atol=0.5)
    assert model.sample(5)[0].shape == (5, 3) and np.isnan(model.class_resolution_).all()
    assert list(model.get_feature_names_out()) == ["smlclusterer0", "smlclusterer1"]


@pytest.mark.parametrize("seed", range(5))
def test_three_blobs_come_back(seed):
    X, y = make_blobs(150, centers=3, cluster_std=0.5, random_state=seed)
    assert adjusted_rand_score(SMLClusterer(3).fit_predict(X), y) > 0.5


def test_default_settings_do_not_warn_and_a_short_run_says_what_to_do(stack):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SMLClusterer(16).fit(stack)
    with pytest.warns(
        ConvergenceWarning, match=r"max_iter=10 .*gained .* nats per image, .*Raise max_iter or tol"
    ):
        model = SMLClusterer(16, max_iter=10, tol=1e-9).fit(stack)
    with pytest.warns(ConvergenceWarning, match=r"max_iter=1 .*let finer detail in.*Raise max_iter"):
        SMLClusterer(16, max_iter=1).fit(stack)
    assert model.n_iter_ == 10 == len(model.log_posterior_) and not model.converged_


def test_a_collapsed_map_has_not_converged(stack, monkeypatch):
    monkeypatch.setattr(sml_clusterer, "MIN_EFFECTIVE_CLASSES", 1e9)  # every map counts as collapsed
    with pytest.warns(ConvergenceWarning, match=r"collapsed: its 25 classes tell .*or fewer n_clusters"):
        model = SMLClusterer(25).fit(stack)
    assert not model.converged_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SMLClusterer(9).fit(stack).converged_  # few nodes may all be alike


@pytest.mark.parametrize("max_iter", [1, 2, 3, 5])
def test_few_iterations_still_reach_the_full_resolution_where_they_can(stack, max_iter):
    with pytest.warns(ConvergenceWarning):
        model = SMLClusterer((3, 3), max_iter=max_iter, tol=0.0).fit(stack)
    assert model.n_iter_ == max_iter and np.isfinite(model.class_averages_).all()


def test_the_grid_and_the_memory_are_stated_before_the_work(stack, caplog):
    with caplog.at_level(logging.INFO, logger="sklearn_cryoem"):
        SMLClusterer(10).fit(stack[:100])
    text = caplog.text
    assert "a grid of" in text and "needs about" in text


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"n_clusters": 0}, ValueError, r"'n_clusters' of SMLClusterer must be an int in \[1"),
        ({"n_clusters": 2.5}, TypeError, "'n_clusters' of SMLClusterer must be an int"),
        ({"n_clusters": (3, 3, 3)}, ValueError, "expected 2 sides for topology='grid'"),
        ({"n_basis": "many"}, ValueError, "'n_basis' of SMLClusterer must be one of 'auto'"),
        ({"n_components": 4}, ValueError, r"'n_components' of SMLClusterer must be an int in \[1, 3\]"),
        ({"alpha": -1.0}, ValueError, "'alpha' of SMLClusterer must be a finite number"),
        ({"alpha": "evidence"}, ValueError, "'alpha' of SMLClusterer must be one of 'auto'"),
        ({"noise": "pink"}, ValueError, "'noise' of SMLClusterer must be one of 'shell', 'white'"),
        ({"init": "zeros"}, ValueError, "'init' of SMLClusterer must be one of"),
        ({"max_resolution": 1e4}, ValueError, "expected at least 2. Ask for a finer resolution"),
        ({"mask_diameter": 1e4}, ValueError, "Give a little more than the particle's diameter"),
        ({"max_iter": 0}, ValueError, r"'max_iter' of SMLClusterer must be an int in \[1"),
        ({"tol": -1}, ValueError, "'tol' of SMLClusterer must be"),
    ],
    ids=str,
)
def test_bad_parameters_are_named(stack, parameters, error, message):
    with pytest.raises(error, match=message):
        SMLClusterer(**parameters).fit(stack[:10])


def test_input_of_another_kind_is_refused(stack, fitted, vectors):
    with pytest.raises(NotFittedError):
        clone(fitted).predict(stack)
    with pytest.raises(
        ValueError, match=r"fitted on images. Give a ParticleStack or an array \(n_images, 32, 32\)"
    ):
        fitted.predict(np.zeros((3, 1024)))
    with pytest.raises(ValueError, match=r"fitted on vectors. Give an array \(n_samples, 3\)"):
        SMLClusterer(4).fit(vectors[0]).predict(stack)
    with pytest.raises(ValueError, match=r"fitted to have pixel_size=.* the same pixel size"):
        fitted.predict(ParticleStack(stack.read(slice(0, 3)), pixel_size=1.0))
    with pytest.raises(ValueError, match=r"Use stack\.downsample"):
        fitted.predict(make_particles("ribosome", 3, box=24, pixel_size=stack.pixel_size, random_state=0))
    with pytest.raises(ValueError, match="got 1 sample, expected at least 2"):
        SMLClusterer(4).fit(stack[:1])
    with pytest.raises(ValueError, match="got 0 particles, expected at least 1"):
        fitted.predict(stack[:0])


@pytest.mark.parametrize("snr", [0.3, 0.07, 0.0])
def test_posteriors_of_views_are_as_sure_as_they_are_right(snr):
    """Of training images and of new ones alike, and where there is nothing but noise."""
    n = 500 if snr else 2000  # noise is told from signal by many images alone
    stack = aligned_to_truth(
        make_particles("ribosome", n + 300, box=32, snr=snr or 1.0, n_views=9, random_state=0)
    )
    if snr == 0.0:
        noise = np.random.default_rng(0).normal(size=(n + 300, 32, 32)).astype(np.float32)
        stack = ParticleStack(noise, ctf=stack.ctf, poses=stack.poses, pixel_size=stack.pixel_size)
    truth = np.arange(n + 300) % 9 if stack.truth is None else stack.truth["view"].to_numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = SMLClusterer((3, 3), max_iter=30, random_state=0).fit(stack[:n])
    counts = np.zeros((9, 9))
    np.add.at(counts, (model.labels_, truth[:n]), 1)
    view = np.empty(9, dtype=int)
    node, view_of_node = linear_sum_assignment(-counts)
    view[node] = view_of_node
    np.testing.assert_array_equal(model.predict(stack[:n]), model.labels_)
    for rows in (slice(n), slice(n, None))[snr == 0.0 :]:  # matching finds 0.17 of noise it has seen
        posterior = model.predict_proba(stack[rows])
        accuracy, certainty = (
            np.mean(view[posterior.argmax(axis=1)] == truth[rows]),
            posterior.max(axis=1).mean(),
        )
        assert abs(certainty - accuracy) < 0.05, f"sure to {certainty:.3f}, right in {accuracy:.3f}"
