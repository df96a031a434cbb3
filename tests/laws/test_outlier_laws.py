"""An outlier takes part in no statistic and gets a label; the unit of grey values is of no account."""

from functools import cache

import numpy as np
import pytest

from sklearn_cryoem import DeepClusterer, MAPAligner, ParticleStack, SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators import EigenImages, RealigningClusterer, load_model, save_model

N = 240
pytestmark = pytest.mark.filterwarnings(
    r"ignore:(?s).*\[outliers\]$", "ignore::sklearn.exceptions.ConvergenceWarning"
)


@pytest.fixture(scope="module")
def simulated():
    return aligned_to_truth(make_particles("ribosome", N, box=24, snr=0.3, random_state=0))


@pytest.fixture(scope="module")
def bad():
    return np.isin(np.arange(N), [3, 50, 51, 120, 239])


@pytest.fixture(scope="module")
def dirty(simulated, bad):
    images = simulated.read().copy()
    images[bad] *= np.array([10.0, 100.0, 1000.0, 0.01, -30.0], np.float32)[:, None, None]
    return ParticleStack(
        images, pixel_size=simulated.pixel_size, ctf=simulated.ctf, poses=simulated.poses,
        noise_group=np.arange(N) // 60,
    )  # fmt: skip


QUICK = SMLClusterer(max_iter=10)
MODELS = {
    "map": lambda: MAPAligner(3, n_batches=4, max_iter=2, random_state=0),
    "sml": lambda: SMLClusterer(9, max_iter=20),
    "sml-image": lambda: SMLClusterer(9, max_iter=20, noise="image"),
    "sml-group": lambda: SMLClusterer(9, max_iter=20, noise="group"),
    "deep": lambda: DeepClusterer(SMLClusterer((2, 1)), QUICK, images_per_subclass=40, random_state=0),
    "realigning": lambda: RealigningClusterer(SMLClusterer((2, 2), max_iter=10), n_rounds=1),
}
LEARNED = (
    "class_averages_", "class_resolution_", "class_sizes_", "noise_variance_", "half_averages_",
    "references_",
)  # fmt: skip


@pytest.fixture(scope="module")
def learned(dirty):
    """What a model learns from all images, of its name."""
    return cache(lambda name: MODELS[name]().fit(dirty))


def sound_alone(dirty, bad):
    """The sound images of a stack, to be taken as they are."""
    return dirty[~bad].with_outliers(np.zeros(np.count_nonzero(~bad), dtype=bool))


@pytest.mark.parametrize("name", MODELS)
def test_a_fit_learns_from_the_sound_images_alone(name, learned, dirty, bad):
    whole, sound = learned(name), MODELS[name]().fit(sound_alone(dirty, bad))
    if name == "realigning":
        # marked images share batches of the search with sound ones: equal but for rounding
        np.testing.assert_allclose(whole.class_averages_, sound.class_averages_, atol=1e-3)
        assert np.mean(whole.labels_[~bad] == sound.labels_) > 0.99
    else:
        for attribute in LEARNED:
            if hasattr(sound, attribute):
                np.testing.assert_array_equal(getattr(whole, attribute), getattr(sound, attribute), attribute)
        np.testing.assert_array_equal(whole.labels_[~bad], sound.labels_)
        np.testing.assert_array_equal(whole.labels_[bad], whole.predict(dirty[bad]))
    assert whole.labels_.shape == (N,) and whole.labels_[bad].min() >= 0
    assert whole.class_sizes_.sum() == N - 5 if hasattr(whole, "class_sizes_") else True


def test_poses_and_scales_of_all_images_are_there(learned, dirty, bad):
    model = learned("map")
    np.testing.assert_array_equal(model.outlier_, bad)
    assert len(model.poses_) == len(model.log_evidence_) == N
    aligned = model.transform(dirty[bad])
    np.testing.assert_allclose(aligned.poses.angle_rad, model.poses_.angle_rad[bad], atol=1e-4)


def test_noise_of_each_image_is_there(learned):
    model = learned("sml-image")
    assert model.relative_noise_.shape == (N,) and (model.relative_noise_ > 0).all()
    assert model.relative_noise_[51] > 9 * np.median(model.relative_noise_)  # 10 at most


def test_eigen_images_are_those_of_the_sound_images(dirty, bad):
    whole, sound = (
        EigenImages(3).fit(dirty),
        EigenImages(3).fit(sound_alone(dirty, bad)),
    )
    np.testing.assert_array_equal(whole.eigen_images_, sound.eigen_images_)
    assert whole.transform(dirty).shape == (N, 3)


def test_a_stream_leaves_out_what_is_far_out_in_any_chunk(dirty, bad):
    """The measure is that of the first chunk, so one image alone can be judged."""
    model, sound = SMLClusterer(9, max_iter=20), SMLClusterer(9, max_iter=20)
    for rows in (slice(0, 150), slice(150, 239), slice(239, 240)):
        model.partial_fit(dirty[rows])
        np.testing.assert_array_equal(model.outlier_, bad[rows])
        assert len(model.labels_) == len(bad[rows])
        kept = dirty[rows][~bad[rows]]
        if len(kept):
            sound.partial_fit(kept.with_outliers(np.zeros(len(kept), dtype=bool)))
    np.testing.assert_array_equal(model.weights_, sound.weights_)
    assert model.n_images_seen_ == N - 5


def test_a_stack_of_nothing_but_outliers_is_an_error(dirty):
    with pytest.raises(ValueError, match=r"all of which are outliers.*with_outliers"):
        SMLClusterer(4).fit(dirty[:30].with_outliers(np.ones(30, bool)))


def test_one_warning_for_a_whole_pipeline(dirty):
    from sklearn.pipeline import make_pipeline

    steps = make_pipeline(MODELS["map"](), SMLClusterer(4, max_iter=5))
    with pytest.warns(UserWarning) as said:
        steps.fit(dirty)
    assert sum("[outliers]" in str(warning.message) for warning in said) == 1


@pytest.mark.parametrize("name", ["map", "realigning"])
def test_what_fit_transform_returns_has_been_looked_at_and_the_caller_is_told(name, dirty, bad):
    with pytest.warns(UserWarning, match=r"\[outliers\]$") as said:
        aligned = MODELS[name]().fit_transform(dirty)
    np.testing.assert_array_equal(aligned.outlier, bad)  # what follows in a Pipeline need not look again
    assert [w.filename for w in said if "[outliers]" in str(w.message)] == [__file__]


@pytest.mark.parametrize("name", ["map", "sml"])
def test_a_score_is_that_of_the_sound_images(name, learned, dirty, bad):
    model = learned(name)
    assert model.score(dirty.with_outliers(bad)) == pytest.approx(model.score_samples(dirty)[~bad].mean())


# ---------------------------------------------------------------- grey values
@pytest.fixture(scope="module")
def uneven(simulated):
    scale = np.exp(np.random.default_rng(0).normal(size=N)).astype(np.float32)
    return ParticleStack(
        simulated.read() * scale[:, None, None], pixel_size=simulated.pixel_size, ctf=simulated.ctf,
        poses=simulated.poses,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["map", "sml", "deep", "realigning"])
def test_images_that_are_not_normalised_are_and_new_ones_with_them(name, uneven, tmp_path):
    with pytest.warns(UserWarning, match="not normalised"):
        model = MODELS[name]().fit(uneven)
    evened = MODELS[name]().fit(uneven.normalise().with_outliers(np.zeros(N, bool)))
    np.testing.assert_array_equal(model.labels_, evened.labels_)
    np.testing.assert_array_equal(model.class_averages_, evened.class_averages_)
    np.testing.assert_array_equal(model.predict(uneven), model.predict(uneven.normalise()))
    save_model(model, tmp_path / "model.npz")
    np.testing.assert_array_equal(load_model(tmp_path / "model.npz").predict(uneven), model.predict(uneven))


@pytest.mark.parametrize("name", MODELS)
def test_the_unit_of_grey_values_is_of_no_account(name, simulated):
    def fitted(factor):
        stack = ParticleStack(
            (simulated.read() * factor).astype(np.float32), pixel_size=simulated.pixel_size,
            ctf=simulated.ctf, poses=simulated.poses, noise_group=np.arange(N) // 60,
        )  # fmt: skip
        model = MODELS[name]().fit(stack)
        return model.labels_, model.class_averages_ / np.float32(factor)

    labels, averages = fitted(1.0)
    power_of_two = fitted(2.0**-33)
    np.testing.assert_array_equal(power_of_two[0], labels)
    np.testing.assert_array_equal(power_of_two[1], averages)
    other = fitted((1e-10, 1e7)[list(MODELS).index(name) % 2])
    assert np.mean(other[0] == labels) > 0.99
    np.testing.assert_allclose(other[1], averages, atol=3e-3 * np.abs(averages).max())
