"""Intensities of single images."""

from dataclasses import replace

import numpy as np
import pytest

from sklearn_cryoem._core.progress import progress
from sklearn_cryoem.alignment import passes
from sklearn_cryoem.alignment.em import full_passes, online_phase
from sklearn_cryoem.alignment.features import ImageFeatures
from sklearn_cryoem.alignment.passes import run_pass
from sklearn_cryoem.alignment.poses import find_scales
from sklearn_cryoem.alignment.residuals import ImageTerms, image_scale
from sklearn_cryoem.alignment.state import OnlineState, PassState

RINGS = 13


def begun(model):
    rng = np.random.RandomState(0)
    return OnlineState.before(model, rng), rng


@pytest.fixture
def uneven(rng, make_particles, make_model, blob_image):
    """Particles of which every other is 1.5 times as strong; their classes."""

    def build(n_images=200, noise=0.4):
        particles = make_particles(rng, n_images, noise=0.0, kinds=(3, 4, 5))
        strength = np.where(np.arange(n_images) % 2, 1.5, 1.0)
        particles.images *= strength[:, None, None].astype(np.float32)
        particles.images += noise * rng.standard_normal(particles.images.shape).astype(np.float32)
        model = make_model(np.stack([blob_image(z) for z in (3, 4, 5)]), noise=noise**2, k_max=10)
        return particles, strength, model

    return build


def test_scaled_features_are_those_of_stronger_images_with_a_stronger_ctf(uneven):
    particles, _, _ = uneven(8)
    scale = np.linspace(0.5, 2.0, 8)
    plain, scaled = particles.source(), particles.source(scale=scale)
    one, other = plain(np.arange(3, 8), 10, 20), scaled(np.arange(3, 8), 10, 20)
    np.testing.assert_allclose(other.orders, one.orders * scale[3:, None, None], rtol=1e-6)
    np.testing.assert_allclose(other.ctf_power, one.ctf_power * scale[3:, None, None] ** 2, rtol=1e-6)
    np.testing.assert_array_equal(other.power, one.power)


def test_learned_scales_have_the_mean_one_over_all_images(uneven):
    source = uneven(6)[0].source(scale=np.ones(6))
    source.learn_scale(np.array([1, 4]), np.array([3.0, 2.0]))
    np.testing.assert_allclose(source.scale, np.array([1, 3, 1, 1, 2, 1]) / 1.5)
    source.learn_scale(np.array([1, 4]), None)
    assert source.scale.mean() == pytest.approx(1.0)
    unscaled = uneven(6)[0].source()
    unscaled.learn_scale(np.arange(6), np.full(6, 2.0))
    assert unscaled.scale is None


def test_scale_is_the_least_squares_factor_drawn_to_one_where_there_is_no_signal(rng):
    power = rng.uniform(1.0, 2.0, (4, 5))
    used = np.array([1.0, 2.0, 0.5, 1.0])
    # images that are exactly 1.7 times their reference, seen with the scale in use
    terms = ImageTerms(1.7 * used[:, None] * power, used[:, None] ** 2 * power, power)
    np.testing.assert_allclose(image_scale(terms, np.full((4, 5), 1e6, np.float32), used), 1.7, rtol=1e-3)
    np.testing.assert_allclose(image_scale(terms, np.full((4, 5), 1e-9, np.float32), used), 1.0, rtol=1e-3)
    nothing = ImageTerms(-100.0 * power, power, power)
    assert np.all(image_scale(nothing, np.full((4, 5), 1e6, np.float32), used) == 0.2)  # clipped


def test_intensities_are_recovered_with_the_references(uneven, make_settings):
    particles, strength, model = uneven()
    settings = make_settings(k_start=10.0, k_limit=10.0, max_iter=4, tol=0.0)
    source = particles.source(scale=np.ones(200))
    with progress(4, "passes", verbose=0) as bar:
        fitted = full_passes(source, settings, PassState(model, scale=source.scale), bar=bar).model
    truth = strength / strength.mean()
    assert source.scale.mean() == pytest.approx(1.0)
    assert np.median(np.abs(source.scale / truth - 1.0)) < 0.1
    for level in (1.0, 1.5):
        own = strength == level
        assert source.scale[own].mean() == pytest.approx(level / 1.25, rel=0.08)
    again = particles.source()
    unit = find_scales(again, fitted, settings)
    assert np.corrcoef(again.scale, source.scale)[0, 1] > 0.98
    np.testing.assert_allclose(again.scale, source.scale, rtol=0.1)
    # new images get the scale that the same images had among those fitted
    new = replace(particles, images=particles.images[:50], table=particles.table[:50]).source()
    assert find_scales(new, fitted, settings, unit=unit) == unit
    np.testing.assert_allclose(new.scale, again.scale[:50], rtol=1e-4)


def test_known_intensities_raise_the_evidence(uneven, make_settings):
    particles, strength, model = uneven(60)
    space = make_settings().space(32, 10.0)
    without, with_scale = (
        run_pass(particles.source(scale=scale), np.arange(60), model, space) for scale in (None, strength)
    )
    assert without.scale is None and with_scale.scale.shape == (60,)
    strong = strength > 1.0
    gain = with_scale.log_evidence - without.log_evidence
    assert gain[strong].mean() > 1.0 and np.all(gain[~strong] == 0.0)


def test_scales_do_not_depend_on_workers_or_noise_groups_of_equal_noise(
    uneven, make_settings, by_one_and_two, monkeypatch
):
    monkeypatch.setattr(passes, "IMAGES_PER_TASK", (20, 1024))
    particles, _, model = uneven(70)
    space = make_settings().space(32, 8.0)
    one, two = by_one_and_two(
        lambda: particles.source(scale=np.ones(70)), lambda s: run_pass(s, np.arange(70), model, space)
    )
    np.testing.assert_array_equal(one.scale, two.scale)
    groups = particles.source(scale=np.ones(70), group=np.arange(70) % 2)
    same = replace(model, group_noise=np.ones((2, RINGS)))
    np.testing.assert_allclose(run_pass(groups, np.arange(70), same, space).scale, one.scale, rtol=1e-6)


def test_scaled_features_keep_the_type_of_their_arrays(uneven):
    features = uneven(3)[0].source(scale=np.full(3, 1.1))(np.arange(3), 6, 8)
    assert isinstance(features, ImageFeatures)
    assert features.orders.dtype == features.ctf_power.dtype == np.complex64


def test_mini_batches_leave_the_scales_alone(uneven, make_settings):
    # while references are vague, images that fit by chance would get the upper hand
    particles, _, model = uneven(40)
    settings, source = make_settings(n_batches=2, batch_size=20), particles.source(scale=np.ones(40))
    with progress(2, "batches", verbose=0) as bar:
        online_phase(source, settings, *begun(model), bar=bar)
    np.testing.assert_array_equal(source.scale, 1.0)
