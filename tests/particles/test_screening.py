"""One look at every image: what is measured, what is an outlier, what is normalised."""

import pickle

import joblib
import numpy as np
import pytest

from sklearn_cryoem import ParticleStack, check_particles
from sklearn_cryoem._core.validation import ParticleDataError, ParticleDataWarning
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.particles import concatenate
from sklearn_cryoem.particles.screening import find_outliers, look_at, usual_limits

BOX, N = 32, 300


@pytest.fixture(scope="module")
def clean():
    return make_particles("ribosome", N, box=BOX, snr=0.1, random_state=0)


def spoilt(stack, change, rows=(7, 40, 299)):
    images = stack.read().copy()
    for row in rows:
        change(images[row])
    return ParticleStack(images, pixel_size=stack.pixel_size, noise_group=stack.noise_group)


def bright(image):
    image *= 3.0


def faint(image):
    image *= 0.3


def hot(image):
    image[20, 11] += 25.0


def striped(image):
    image[:, 9] -= 5.0


def torn(image):
    image[:10] = image[10]  # repeated, not constant


def zeroed(image):
    image[:, 22:] = 0.0


def lifted(image):
    image += 12.0


def sloped(image):
    image += np.linspace(-40, 40, BOX, dtype=np.float32)


KINDS = {
    bright: ("too bright", r"has \d+(\.\d+)? times the power of most"),
    faint: ("too faint", r"has 0\.\d+ times the power of most"),
    hot: ("with hot pixels", r"has a pixel \d+(\.\d+)? standard deviations off"),
    striped: ("striped", r"has a line \d+(\.\d+)? standard deviations off its neighbours"),
    torn: ("torn", r"is blank in 31% of its lines"),
    zeroed: ("torn", r"is blank in 31% of its lines"),
    lifted: ("of another grey level", r"has a background of 1[12]\.\d"),
    sloped: ("too bright", r"has [\d.e+]+ times the power of most"),
}


@pytest.mark.parametrize("change", list(KINDS), ids=lambda change: change.__name__)
def test_each_kind_is_found_and_named_with_its_rows(clean, change):
    kind, problem = KINDS[change]
    stack = spoilt(clean, change)
    with pytest.warns(
        ParticleDataWarning, match=rf"3 of 300 .*3 {kind} \(rows 7, 40, 299\).*marks in"
    ) as said:
        screened = stack.screen()
    assert [warning.message.name for warning in said] == ["outliers"]
    assert np.flatnonzero(screened.outlier).tolist() == [7, 40, 299]
    listed = stack.check()
    assert listed["row"].tolist() == [7, 40, 299]
    assert listed["problem"].str.fullmatch(problem).all(), listed["problem"].tolist()


@pytest.mark.parametrize("factor", [1e-25, 2.0**-40, 1.0, 1e8, 1e25])
def test_the_unit_of_grey_values_does_not_matter(clean, factor):
    images = (spoilt(clean, bright).read() * factor).astype(np.float32)
    with pytest.warns(ParticleDataWarning, match="3 too bright"):
        outlier = ParticleStack(images).screen().outlier
    assert np.flatnonzero(outlier).tolist() == [7, 40, 299]


def test_real_differences_of_contrast_are_let_pass(clean):
    """Ice of half the thickness: twice the contrast, or grey values times two."""
    rng = np.random.default_rng(0)
    images = clean.read() * rng.choice([1.0, 1.2, 1.4], N)[:, None, None].astype(np.float32)
    images[::50] *= 2.0 / 1.4
    assert not ParticleStack(images).screen().outlier.any()


@pytest.mark.parametrize(
    "settings", [{"snr": 0.005}, {"snr": 2.0}, {"snr": 0.02, "junk_fraction": 0.3}], ids=str
)
@pytest.mark.parametrize("phantom", ["ribosome", "ring-11"])
def test_sound_sets_have_nothing_far_out(phantom, settings):
    stack = make_particles(phantom, 200, box=BOX, random_state=1, **settings)
    assert not stack.screen().outlier.any()
    assert stack.check().empty


def test_few_images_say_nothing_of_usual_power_and_are_judged_by_themselves(clean):
    assert not spoilt(clean, bright)[:15].screen().outlier.any()
    for change in (hot, striped, torn):
        with pytest.warns(ParticleDataWarning, match=r"1 of 15 .*\(row 7\)"):
            spoilt(clean, change)[:15].screen()


@pytest.mark.parametrize(("change", "remedy"), [(hot, "clip_hot_pixels=True"), (striped, "extract again")])
def test_a_fault_that_most_images_share_is_told_and_none_is_left_out(clean, change, remedy):
    stack = spoilt(clean, change, rows=range(200))
    with pytest.warns(
        ParticleDataWarning, match=rf"2\d\d of 300 images have .*defect of the detector.*{remedy}"
    ):
        assert not stack.screen().outlier.any()
    assert [finding.name for finding in check_particles(stack, warn=False)] == ["shared-fault"]


def test_images_without_noise_have_no_fault_for_it():
    assert not make_particles("ribosome", 60, box=BOX, snr=None, random_state=0).screen().outlier.any()


def test_an_image_is_compared_with_its_micrograph_and_with_all(clean):
    group = np.arange(N) // 100
    images = clean.read().copy()
    images[group == 1] *= 1.3
    images[[5, 150]] *= 2.7  # 7.3 times the power of their own groups, 12 and 7.3 times that of all
    stack = ParticleStack(images, noise_group=group)
    with pytest.warns(ParticleDataWarning, match=r"2 too bright \(rows 5, 150\)"):
        stack.screen()
    images[group == 2] *= 5.0
    stack = ParticleStack(images, noise_group=group).with_outliers(None)
    limits = usual_limits(look_at(stack[:100]).measures, BOX)
    measures = look_at(stack).measures
    whole = find_outliers(measures, limits, stack.noise_group, BOX)
    assert set(range(200, 300)) < set(whole["row"])  # a group of outliers as a whole is marked
    own = find_outliers(measures, limits, stack.noise_group, BOX, groups_differ=True)
    assert own["row"].tolist() == [5, 150]  # unless groups may differ


def test_images_that_differ_in_scale_are_normalised_and_bright_ones_are_not_missed_before(clean):
    scale = np.exp(np.random.default_rng(0).normal(size=N)).astype(np.float32)
    raw = ParticleStack(clean.read() * scale[:, None, None], pixel_size=clean.pixel_size)
    with pytest.warns(ParticleDataWarning, match=r"not normalised: .*from 0\.\d+ to \d\.\d+.*extract again"):
        screened = raw.screen(0.75 * BOX * clean.pixel_size)
    assert not screened.outlier.any()
    np.testing.assert_allclose(screened.read(), clean.normalise().read(), rtol=1e-3, atol=1e-4)
    assert not clean.screen().images.is_in_memory or clean.screen().images is clean.images  # left as they are
    assert raw.screen(noise="group").images is raw.images  # their noise is taken care of


@pytest.mark.parametrize("share", [0.12, 0.25])
@pytest.mark.parametrize(
    "factors", [(10.0, 10.0), (4.0, 1000.0), (0.001, 0.2)], ids=["equal", "any", "faint"]
)
@pytest.mark.parametrize("group_size", [1, 30])
def test_many_images_of_another_scale_are_named_where_most_have_one(clean, share, factors, group_size):
    rng = np.random.default_rng(0)
    rows = np.sort(rng.permutation(N)[: round(share * N)])
    images = clean.read().copy()
    images *= np.exp(0.08 * rng.normal(size=(N, 1, 1))).astype(np.float32)
    images[rows] *= np.exp(rng.uniform(*np.log(factors), size=(len(rows), 1, 1))).astype(np.float32)
    with pytest.warns(ParticleDataWarning) as said:
        screened = ParticleStack(images, noise_group=np.arange(N) // group_size).screen()
    assert [warning.message.name for warning in said] == ["outliers"]
    np.testing.assert_array_equal(np.flatnonzero(screened.outlier), rows)


@pytest.mark.parametrize("grouped", [False, True])
def test_scales_that_go_by_session_or_are_of_all_kinds_are_normalised(clean, grouped):
    rng = np.random.default_rng(0)
    group = np.arange(N) // 30
    scale = np.where(group >= 8, 10.0, 1.0) if grouped else np.exp(rng.normal(0.0, rng.choice([0.3, 1.0], N)))
    stack = ParticleStack(clean.read() * scale[:, None, None].astype(np.float32), noise_group=group)
    with pytest.warns(ParticleDataWarning, match="not normalised") as said:
        assert not stack.screen().outlier.any()
    assert [warning.message.name for warning in said] == ["not-normalised"]


def test_a_level_that_all_share_is_no_reason_to_normalise(clean):
    stack = ParticleStack(clean.read() + 100.0).screen()
    assert stack.images.is_in_memory and not stack.outlier.any()


def test_constant_and_non_finite_images_are_errors_before_anything_else(clean):
    stack = spoilt(clean, lambda image: image.fill(np.nan), rows=[11])
    with pytest.raises(ParticleDataError, match=r"Particle row 11 .*holds NaN or infinity.*Drop it"):
        stack.screen()
    assert stack.check()[["row", "problem"]].values.tolist() == [[11, "holds NaN or infinity"]]
    images = clean.read().copy()
    images[11], images[20] = np.inf, 4.0 * images[20]
    stack = ParticleStack(images)
    assert stack.check()["row"].tolist() == [11, 20]
    constant = spoilt(clean, lambda image: image.fill(2.0), rows=[3])
    with pytest.raises(ParticleDataError, match=r"Particle row 3 .*is constant"):
        constant.screen()


# ---------------------------------------------------------------- the marks
def test_marks_go_with_the_particles_until_their_images_change(clean):
    outlier = np.arange(N) % 7 == 0
    stack = clean.with_outliers(outlier)
    assert clean.outlier is None
    np.testing.assert_array_equal(stack[5:50:3].outlier, outlier[5:50:3])
    np.testing.assert_array_equal(stack.with_poses(None).outlier, outlier)
    for again in (pickle.loads(pickle.dumps(stack)), stack.with_metadata(a=1)):
        np.testing.assert_array_equal(again.outlier, outlier)
    for other in (stack.clip_hot_pixels(), stack.normalise(), stack.invert_contrast(), stack.downsample(24)):
        assert other.outlier is None
    assert concatenate([stack, stack]).outlier is None  # they say nothing of how it lies among others
    assert joblib.hash(stack) != joblib.hash(clean)
    assert joblib.hash(stack[:9]) == joblib.hash(clean[:9].with_outliers(outlier[:9]))
    with pytest.raises(ValueError, match="one for each image"):
        clean.with_outliers(outlier[:5])


def test_clipped_hot_pixels_are_not_far_out(clean):
    stack = spoilt(clean, hot).clip_hot_pixels()
    assert not stack.screen().outlier.any()
    assert "hot pixels clipped" in repr(stack)


def test_screening_depends_on_no_number_of_threads(clean):
    stack = spoilt(clean, bright)
    one, two = (look_at(stack, n_jobs=n_jobs).measures.values for n_jobs in (1, 2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.filterwarnings(r"ignore:(?s).*\[(outliers|not-normalised)\]$")
def test_one_constant_background_does_not_stop_the_normalisation_of_others(clean):
    images = clean.read() * np.exp(np.random.default_rng(0).normal(size=(N, 1, 1))).astype(np.float32)
    outside = np.hypot(*(np.mgrid[:BOX, :BOX] - BOX // 2)) > 11
    images[7][outside] = 0.0
    screened = ParticleStack(images).screen()
    assert np.flatnonzero(screened.outlier).tolist() == [7]
    assert np.isfinite(screened.read()).all()


def test_images_whose_backgrounds_hold_no_noise_have_nothing_far_out():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(N, BOX, BOX)) * rng.uniform(0.002, 0.015, size=(N, 1, 1))
    inside = np.hypot(*(np.mgrid[:BOX, :BOX] - BOX // 2)) < 8
    images[:, inside] += rng.normal(3.0, 1.0, size=(N, np.count_nonzero(inside)))
    stack = ParticleStack(images.astype(np.float32))
    assert not stack.screen().outlier.any()
    assert check_particles(stack, warn=False) == []


def test_no_image_and_nothing_but_unusable_ones_can_be_looked_at(clean):
    assert clean[:0].screen().outlier.shape == (0,)
    stack = ParticleStack(np.zeros((30, 8, 8), np.float32))
    assert len(stack.check()) == 30
    assert [finding.name for finding in check_particles(stack, warn=False)] == ["unusable-images"]
