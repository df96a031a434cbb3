"""SMLClusterer.partial_fit: particles that arrive in chunks."""

import copy
import dataclasses

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from sklearn_cryoem import SMLClusterer, load_model, save_model
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators import assign_particles
from sklearn_cryoem.manifold.derived_blocks import ShellNorms
from sklearn_cryoem.manifold.expectation import sweep
from sklearn_cryoem.manifold.stream import N_SWEEPS
from sklearn_cryoem.metrics import fraction_within


@pytest.fixture(scope="module")
def particles():
    """2,000 to learn from and 500 to test, all views."""
    made = aligned_to_truth(make_particles("ribosome", 2500, box=32, snr=0.1, max_shift=8.0, random_state=0))
    return made[:2000], made[2000:]


def model(**changes):
    return SMLClusterer(**{"n_clusters": (6, 6), "max_resolution": 20.0, **changes})


def streamed(stack, size, **changes):
    learner = model(**changes)
    for first in range(0, len(stack), size):
        learner.partial_fit(stack[first : first + size])
    return learner


def accuracy(fitted, stack):
    directions = stack.truth[["view_x", "view_y", "view_z"]].to_numpy()
    return fraction_within(fitted.predict(stack), directions, 15)


@pytest.fixture(scope="module")
def in_chunks(particles):
    return streamed(particles[0], 400)


@pytest.fixture(scope="module")
def whole(particles):
    return model().fit(particles[0])


@pytest.fixture(scope="module")
def begun(particles):
    return model().fit(particles[0][:400])


def test_chunks_reach_nearly_the_accuracy_of_a_fit_to_all(particles, in_chunks, whole, begun):
    _, test = particles
    best, first, reached = (accuracy(m, test) for m in (whole, begun, in_chunks))
    assert best > 1.25 * first, "the first chunk alone must be worse for this to say anything"
    assert reached > 0.75 * best
    gain = (in_chunks.score(test) - begun.score(test)) / (whole.score(test) - begun.score(test))
    assert gain > 0.8, f"{gain:.2f} of the gain in likelihood"


def test_attributes_tell_of_all_chunks(particles, in_chunks, begun):
    n_chunks = 5
    assert in_chunks.n_images_seen_ == in_chunks.class_sizes_.sum() == 2000
    assert in_chunks.soft_class_sizes_.sum() == pytest.approx(2000, rel=1e-4)
    assert in_chunks.labels_.shape == (400,)
    np.testing.assert_array_equal(in_chunks.predict(particles[0][1600:]), in_chunks.labels_)
    assert len(in_chunks.log_posterior_) == len(in_chunks.stage_) == len(in_chunks.iteration_resolution_)
    assert len(in_chunks.held_out_) == in_chunks.n_iter_ == len(in_chunks.stage_)
    assert in_chunks.held_out_[-1] and len(in_chunks.above_noise_) == in_chunks.n_iter_
    assert in_chunks.stage_[-1] == begun.stage_[-1] + (n_chunks - 1) * N_SWEEPS
    assert in_chunks.class_averages_.shape == (36, 32, 32)
    # averages of five times as many images are better resolved
    assert np.median(in_chunks.class_resolution_) < np.median(begun.class_resolution_)


def test_noise_and_prior_follow_the_data(in_chunks, whole):
    # that of held-out images holds what their templates get wrong, most at the lowest frequencies
    np.testing.assert_allclose(in_chunks.noise_variance_, whole.noise_variance_, rtol=0.25)
    assert (in_chunks.noise_variance_ > 0.95 * whole.noise_variance_).all()
    np.testing.assert_allclose(in_chunks.alpha_, whole.alpha_, rtol=0.5)


def test_the_same_chunks_give_the_same_bits_with_any_number_of_workers(particles):
    few = {"n_clusters": (3, 3), "max_iter": 4, "tol": 10.0}
    once, again = (streamed(particles[0][:200], 100, n_jobs=n_jobs, **few) for n_jobs in (1, 2))
    np.testing.assert_array_equal(again.weights_, once.weights_)
    np.testing.assert_array_equal(again.half_averages_, once.half_averages_)


def test_a_saved_model_goes_on_where_it_stopped(particles, tmp_path):
    train = particles[0]
    learner = streamed(train[:120], 60, n_clusters=(3, 3))
    save_model(learner, tmp_path / "stream.npz")
    loaded = load_model(tmp_path / "stream.npz")
    for one in (learner, loaded):
        one.partial_fit(train[120:180])
    np.testing.assert_array_equal(loaded.weights_, learner.weights_)
    assert loaded.n_images_seen_ == 180


def test_the_first_chunk_is_fitted_as_by_fit_and_goes_on_like_it(particles):
    train, test = particles
    fitted = model().fit(train[:300])
    before = fitted.score(test)
    remembered = model().partial_fit(train[:300])
    np.testing.assert_array_equal(remembered.labels_, fitted.labels_)
    np.testing.assert_array_equal(remembered.class_averages_, fitted.class_averages_)
    assert remembered.n_images_seen_ == fitted.n_images_seen_ == 300
    for one in (fitted, remembered):
        one.partial_fit(train[300:450]).partial_fit(train[450:600])
        np.testing.assert_array_equal(one.predict_proba(test).argmax(axis=1), one.predict(test))  # Eq. (3.1)
    assert fitted.n_images_seen_ == 600
    assert fitted.score(test) > before
    assert fitted.score(test) == pytest.approx(remembered.score(test), abs=0.6)  # of several nats gained
    assert fitted.fit(train[:200]).n_images_seen_ == 200  # fit forgets


def test_a_stream_goes_on_from_a_fit_whatever_was_labelled_since(particles):
    train = particles[0]
    fitted = model(n_clusters=(3, 3), max_iter=8, tol=1.0).fit(train[:200])
    copied, _ = assign_particles(fitted, train[200:240])
    only = copy.copy(fitted).partial_fit(train[200:210].with_outliers(np.ones(10, bool)))
    assert only.n_images_seen_ == 200 and len(only.labels_) == 10
    for one in (copied, only, fitted):
        one.partial_fit(train[300:350])
        assert one.n_images_seen_ == one.class_sizes_.sum() == 250
    np.testing.assert_array_equal(copied.weights_, fitted.weights_)
    np.testing.assert_array_equal(only.weights_, fitted.weights_)


def test_mirror_images_of_the_fit_count_in_a_stream_that_goes_on(particles):
    fitted = model(n_clusters=(3, 3), max_iter=8, tol=1.0, mirror=True).fit(particles[0][:200])
    stream = fitted._resumed_stream()
    blocks = ShellNorms(fitted._space.blocks(particles[0][:200]))
    seen = sweep(blocks, [fitted._manifold.matcher(blocks.layout, dtype=np.float32)]).total()
    assert (stream.n_seen, stream.n_past, stream.past_sums.n_samples) == (200, 400, seen.n_samples)
    assert stream.past_sums.mass.sum() == pytest.approx(seen.mass.sum(), rel=1e-4)
    assert stream.past_sums.power.sum() == pytest.approx(seen.power.sum(), rel=0.05)
    difference = np.linalg.norm(stream.past_sums.numerator - seen.numerator)
    assert difference < 0.25 * np.linalg.norm(seen.numerator)


@pytest.mark.parametrize("topology", ["torus", "sphere"])
def test_every_shape_learns_in_chunks(particles, topology):
    learner = model(n_clusters=25, topology=topology).partial_fit(particles[0][:300])
    begun = learner.score(particles[1])
    assert learner.partial_fit(particles[0][300:600]).score(particles[1]) > begun


def test_chunks_may_differ_in_astigmatism_and_be_single_images(particles):
    train = particles[0]
    round_ctf = dataclasses.replace(train.ctf, defocus_v_angstrom=train.ctf.defocus_u_angstrom)
    learner = model().partial_fit(train.with_ctf(round_ctf)[:300])
    before = copy.deepcopy(learner.class_sizes_)
    learner.partial_fit(train[300:301])
    assert learner.class_sizes_.sum() == before.sum() + 1
    learner.partial_fit(train[301:500]).partial_fit(train.with_ctf(None)[500:600])
    assert learner.n_images_seen_ == 600 and np.isfinite(learner.class_averages_).all()


def test_vectors_in_chunks():
    rng = np.random.default_rng(0)
    position = rng.uniform(-1, 1, (1200, 2))
    X = np.column_stack([position, np.sin(2 * position[:, 0])]) + 0.05 * rng.standard_normal((1200, 3)) + 10
    learner = SMLClusterer(64)
    for first in range(0, 1000, 200):
        learner.partial_fit(X[first : first + 200])
    whole, begun = SMLClusterer(64).fit(X[:1000]), SMLClusterer(64).fit(X[:200])
    assert begun.score(X[1000:]) < learner.score(X[1000:]) < whole.score(X[1000:]) + 0.1
    assert whole.score(X[1000:]) - learner.score(X[1000:]) < 0.25
    assert learner.transform(X[1000:]).shape == (200, 2)


def test_chunks_that_do_not_fit_are_refused_and_change_nothing(particles):
    train, _ = particles
    with pytest.raises(
        ValueError, match=r"got 20 images in its first call, expected at least 37: .*Collect more"
    ):
        model().partial_fit(train[:20])
    learner = model().partial_fit(train[:200])
    weights = learner.weights_.copy()
    broken = train[:50].read().copy()
    broken[3, 2, 1] = np.nan
    other_box = make_particles("ribosome", 9, box=24, pixel_size=train.pixel_size, random_state=0)
    for chunk, message in [
        (other_box, r"Use stack\.downsample"),
        (np.zeros((9, 1024)), "fitted on images"),
        (train[:0], "got 0 particles"),
        (broken, "NaN|finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            learner.partial_fit(chunk)
    with pytest.raises(ValueError, match=r"\(6, 6\) nodes.* Set these parameters back"):
        copy.copy(learner).set_params(n_clusters=49).partial_fit(train[:50])
    np.testing.assert_array_equal(learner.weights_, weights)
    assert learner.n_images_seen_ == 200
    failed = model(alpha=-1.0)
    with pytest.raises(ValueError, match="'alpha' of SMLClusterer"):
        failed.partial_fit(train[:200])
    with pytest.raises(NotFittedError):
        failed.predict(train)
