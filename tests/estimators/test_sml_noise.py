"""Noise of groups and of images, Eq. (3.14)."""

import copy

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from sklearn_cryoem import ParticleStack, SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators import load_model, save_model
from sklearn_cryoem.metrics import fraction_within

RATIO = 3.0

pytestmark = pytest.mark.filterwarnings("ignore:.*no-poses")  # images that are laid out as they should be


def particles(n, snr, *, noise=None, group=None, seed=0):
    """Particles whose noise variance is `noise` (n,) times that of the simulation."""
    stack = aligned_to_truth(
        make_particles("ribosome", n, box=32, snr=snr, max_shift=10.0, random_state=seed)
    )
    images = stack.read()
    if noise is not None:
        extra = np.random.default_rng(seed + 1).standard_normal(images.shape)
        images = images + np.sqrt(noise - 1.0)[:, None, None] * extra
    return ParticleStack(
        images.astype(np.float32), pixel_size=stack.pixel_size, ctf=stack.ctf, poses=stack.poses,
        noise_group=group, truth=stack.truth, outlier=np.zeros(n, bool),  # fits take them as they are
    )  # fmt: skip


@pytest.fixture(scope="module")
def group():
    return 7 + np.arange(1000) % 10  # numbers need not begin at 0


@pytest.fixture(scope="module")
def mixed(group):
    """Five groups of the ten have three times the noise."""
    return particles(1000, 0.08, noise=np.where(group >= 12, RATIO, 1.0), group=group)


@pytest.fixture(scope="module")
def fitted(mixed):
    return {
        noise: SMLClusterer((7, 7), noise=noise, random_state=0).fit(mixed)
        for noise in ("shell", "group", "image")
    }


def test_one_group_is_the_noise_of_shells():
    stack = particles(300, 0.2)
    plain, grouped = (SMLClusterer(16, noise=noise).fit(stack) for noise in ("shell", "group"))
    np.testing.assert_allclose(grouped.relative_noise_, 1.0, rtol=1e-9)
    np.testing.assert_array_equal(grouped.labels_, plain.labels_)
    assert grouped.score(stack) == pytest.approx(plain.score(stack), rel=1e-5)
    np.testing.assert_allclose(grouped.log_posterior_, plain.log_posterior_, rtol=1e-5)


def test_groups_and_images_with_the_same_noise_are_found_to_have_it():
    stack = particles(500, 0.05, group=np.arange(500) % 3)
    plain, grouped, single = (
        SMLClusterer(9, noise=noise).fit(stack) for noise in ("shell", "group", "image")
    )
    np.testing.assert_allclose(grouped.relative_noise_[:, 3:], 1.0, atol=0.12)
    assert single.relative_noise_.std() < 0.15 and single.relative_noise_.mean() == pytest.approx(1, abs=0.05)
    assert grouped.score(stack) == pytest.approx(plain.score(stack), rel=5e-3)


def test_a_known_ratio_of_noise_is_found(mixed, group):
    two = particles(1000, 0.08, noise=np.where(group >= 12, RATIO, 1.0), group=group >= 12)
    model = SMLClusterer(9, noise="group").fit(two)
    ratio = model.relative_noise_[1] / model.relative_noise_[0]
    np.testing.assert_allclose(ratio[3:], RATIO, rtol=0.1)  # below, signal is the most of it
    level = SMLClusterer(9, noise="image").fit(mixed).relative_noise_
    assert level[group >= 12].mean() / level[group < 12].mean() == pytest.approx(RATIO, rel=0.1)


def test_noisy_images_count_less_and_more_pairs_are_right(mixed, fitted):
    directions = mixed.truth[["view_x", "view_y", "view_z"]].to_numpy()
    found = {name: fraction_within(model.labels_, directions) for name, model in fitted.items()}
    assert found["group"] > 1.15 * found["shell"] and found["image"] > 1.15 * found["shell"], found


def test_held_out_likelihoods_can_be_compared_and_say_which_noise_is_right(mixed):
    search = GridSearchCV(
        SMLClusterer(9, tol=1.0, random_state=0), {"noise": ["white", "shell", "group"]}, cv=2
    )
    search.fit(mixed[:500])
    assert search.best_params_ == {"noise": "group"}
    scores = search.cv_results_["mean_test_score"]
    assert scores[2] - scores[1] > 5.0


def test_the_objective_holds_the_determinant_and_never_falls(mixed, fitted):
    for model in fitted.values():
        last = model.stage_ == model.stage_[-1]
        assert (np.diff(model.log_posterior_[last]) > -1e-4).all()
    # the objective is the mean of score_samples, by templates of all images, less the prior of the weights
    model = copy.copy(fitted["group"])
    model._held_out = None
    prior = (
        0.5 * np.repeat(model.alpha_, np.bincount(model._layout.shell)) @ (model.weights_[:-1] ** 2).sum(0)
    )
    assert model.log_posterior_[-1] == pytest.approx(model.score(mixed) - prior / len(mixed), rel=1e-4)


def test_a_group_never_seen_has_average_noise(mixed, fitted):
    model = fitted["group"]
    known, images = mixed[:40], mixed[:40].read()
    new = ParticleStack(
        images, pixel_size=known.pixel_size, ctf=known.ctf, poses=known.poses, noise_group=np.full(40, 99)
    )
    blocks = model._space.blocks(new)
    np.testing.assert_array_equal(blocks.noise.of(slice(0, 40), 15), 1.0)
    assert np.isfinite(model.score_samples(new)).all()
    assert not np.allclose(model.score_samples(new), model.score_samples(known))
    # an image alone is measured by itself, wherever it comes from
    single = fitted["image"]
    np.testing.assert_allclose(single.score_samples(new), single.score_samples(known), rtol=1e-6)


@pytest.mark.parametrize("noise", ["group", "image"])
def test_models_are_copied_saved_and_streamed(mixed, fitted, noise, tmp_path):
    model = fitted[noise]
    assert clone(model).noise == noise
    np.testing.assert_array_equal(model.predict(mixed), model.labels_)
    save_model(model, tmp_path / "model.npz")
    loaded = load_model(tmp_path / "model.npz")
    np.testing.assert_array_equal(loaded.score_samples(mixed), model.score_samples(mixed))
    np.testing.assert_array_equal(loaded.relative_noise_, model.relative_noise_)
    rows = mixed.noise_group < 16
    stream = SMLClusterer(16, noise=noise, random_state=0).partial_fit(mixed[rows]).partial_fit(mixed[~rows])
    assert np.isfinite(stream.log_posterior_).all()
    if noise == "group":
        np.testing.assert_array_equal(stream.noise_groups_, np.arange(7, 17))
        assert stream.relative_noise_[9:, 3:].mean() > 1.2 > stream.relative_noise_[:5, 3:].mean()


def test_results_do_not_depend_on_workers(mixed):
    one, two = (
        SMLClusterer(16, noise="image", max_iter=6, tol=1e9, n_jobs=n_jobs).fit(mixed[:300])
        for n_jobs in (1, 2)
    )
    np.testing.assert_array_equal(one.relative_noise_, two.relative_noise_)
    np.testing.assert_array_equal(one.class_averages_, two.class_averages_)


def test_images_without_a_ctf_have_noise_of_groups_too(group):
    rng = np.random.default_rng(0)
    disc = np.hypot(*np.mgrid[-8:8, -8:8]) < 5
    turned = rng.uniform(0.5, 1.5, (400, 1, 1)) * disc
    deviation = np.where(group[:400] >= 12, np.sqrt(RATIO), 1.0)[:, None, None]
    images = (0.3 * turned + deviation * rng.standard_normal((400, 16, 16))).astype(np.float32)
    model = SMLClusterer(9, noise="group").fit(ParticleStack(images, noise_group=group[:400] >= 12))
    np.testing.assert_allclose(model.relative_noise_[1] / model.relative_noise_[0], RATIO, rtol=0.25)


@pytest.mark.parametrize("noise", ["group", "image"])
def test_the_smallest_images_have_one_shell(noise):
    images = np.random.default_rng(0).normal(size=(20, 4, 4)).astype(np.float32)
    model = SMLClusterer(4, noise=noise).fit(ParticleStack(images))
    np.testing.assert_allclose(model.relative_noise_, 1.0, rtol=0.75)


def test_errors_say_what_to_do(mixed):
    vectors = np.random.default_rng(0).normal(size=(50, 4))
    with pytest.raises(ValueError, match="use noise='shell'"):
        SMLClusterer(4, noise="group").fit(vectors)
    with pytest.raises(ValueError, match="'group'"):
        SMLClusterer(4, noise="micrograph").fit(mixed)


@pytest.mark.parametrize(("noise", "ratio"), [("group", 1.0), ("group", 4.0), ("image", 4.0)])
def test_where_there_is_nothing_but_noise_of_groups_no_class_is_likelier(noise, ratio):
    groups, rng = np.arange(400) % 2, np.random.default_rng(0)
    images = np.sqrt(np.where(groups, ratio, 1.0))[:, None, None] * rng.standard_normal((400, 24, 24))
    stack = ParticleStack(images.astype(np.float32), pixel_size=8.0, noise_group=groups)
    model = SMLClusterer((3, 3), noise=noise, max_iter=10, tol=1.0).fit(stack)
    np.testing.assert_allclose(model.predict_proba(stack), 1 / 9, atol=1e-3)
