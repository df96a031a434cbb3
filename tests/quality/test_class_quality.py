"""Measures, ranking and suggestion: laws on simulated classes, and the figure they reach on junk."""

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline

from sklearn_cryoem import MAPAligner, ParticleStack, Poses, RealigningClusterer, SMLClusterer
from sklearn_cryoem.datasets import make_particles, true_poses
from sklearn_cryoem.quality import class_quality, suggest_classes
from sklearn_cryoem.quality.table import as_classified

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def views():
    """Three views, 60 particles of each or so, at their true poses."""
    stack = make_particles(
        "ribosome", 180, box=32, snr=0.5, n_views=3, max_shift=20.0, astigmatism=2000.0, random_state=0
    )
    return stack.with_poses(true_poses(stack)), stack.truth["view"].to_numpy()


def test_true_classes_are_all_good(views):
    stack, label = views
    table = class_quality(label, stack)
    assert table["class"].tolist() == [1, 2, 3] and table["size"].tolist() == np.bincount(label).tolist()
    assert table["keep"].all() and set(table["reasons"]) == {""} and sorted(table["rank"]) == [1, 2, 3]
    assert table["score"].between(0.6, 1).all()
    assert (table["resolution"] < 40).all() and (table["edge"] < 0.3).all() and (table["offset"] < 0.2).all()


def test_signal_to_noise_is_that_of_the_simulation(views):
    """snr=0.5 over the box; the mask holds 0.57 of its noise and all of the signal."""
    stack, label = views
    table = class_quality(label, stack)
    assert table["snr"].between(0.5, 1.3).all(), table["snr"].tolist()


def test_mixed_views_hold_less_than_one(views):
    stack, label = views
    pure, mixed = class_quality(label, stack), class_quality(np.zeros(len(stack), int), stack)
    assert mixed["information"][0] < 0.8 * pure["information"].min()


def test_wrong_angles_lose_the_information(views):
    stack, label = views
    wrong = stack.with_poses(None)
    assert (
        class_quality(label, wrong)["information"] < 0.7 * class_quality(label, stack)["information"]
    ).all()


def test_information_does_not_count_particles(views):
    """It is that of 100 particles: half of a class has about the same, in spite of fewer images."""
    stack, label = views
    whole, half = class_quality(label, stack), class_quality(label[::2], stack[::2])
    ratio = half["information"] / whole["information"]
    assert ratio.between(0.75, 1.1).all(), ratio.tolist()


def test_same_bits_for_any_number_of_workers(views):
    stack, label = views
    pd.testing.assert_frame_equal(class_quality(label, stack), class_quality(label, stack, n_jobs=2))


def test_noise_has_no_resolution():
    noise = np.random.default_rng(0).normal(size=(60, 24, 24)).astype(np.float32)
    table = class_quality(np.zeros(60, int), ParticleStack(noise))
    assert table["resolution"][0] > 10 and table["information"][0] < 30 and table["snr"][0] < 0.02


def picture(kind, n_images, rng):
    """A class of one kind of picture with noise: where it is, is known."""
    axis = np.arange(32) - 16
    x, y = axis[None, :], axis[:, None]
    shown = {
        "particle": 2.0 * np.exp(-((x / 6) ** 4 + (y / 8) ** 4))
        - 2.0 * np.exp(-(((x - 2) / 2) ** 2 + ((y - 3) / 2) ** 2))
        - 1.6 * np.exp(-(((x + 3) / 1.5) ** 2 + ((y + 2) / 3) ** 2)),
        "off centre": np.exp(-(((x - 9) / 3) ** 2 + (y / 3) ** 2)),
        "edge": 0.6 * np.tanh((x - 2.0) / 2),
        "dark": -np.exp(-((x / 5) ** 2 + (y / 7) ** 2)),
        "ice": 12 * np.exp(-((x / 6) ** 2 + (y / 6) ** 2)),
        "empty": np.zeros((32, 32)),
        "lump": 2.5 * np.exp(-((x / 3) ** 2 + (y / 3) ** 2)),
        "hot pixel": 12.0 * ((x == 3) & (y == -5)),
        "stripes": np.sin(2 * np.pi * 5 * (x + 0.5 * y) / 32),
        "bad column": 2.0 * (x == 4) + 0.0 * y,
    }[kind]
    return (shown + rng.normal(scale=0.7, size=(n_images, 32, 32))).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("off centre", r"off centre by 0\.\d+ of the mask's radius"),
        ("edge", r"signal at the mask's edge"),
        ("dark", r"darker than what is around it"),
        ("ice", r"times as strong at low resolution as others: ice or carbon"),
        ("lump", r"0\.\d+ times as large as others: a lump of ice"),
        ("hot pixel", r"power in a single point \(\S+\): hot pixels"),
        ("stripes", r"\d+% of its power along one direction: stripes or bad rows"),
        ("bad column", r"\d+% of its power along one direction: stripes or bad rows"),
        ("empty", r"no more signal than aligned noise: \S+ times as much"),
    ],
)
def test_each_oddity_is_found_named_and_ranked_last(kind, reason):
    rng = np.random.default_rng(0)
    images = np.concatenate(
        [picture("particle", 60, rng), picture(kind, 20, rng), picture("particle", 60, rng)]
    )
    table = class_quality(np.repeat([0, 1, 2], [60, 20, 60]), ParticleStack(images))
    assert table["keep"].tolist() == [True, False, True]
    assert table["rank"][1] == 3
    assert pd.Series(table["reasons"][1]).str.contains(reason).all(), table["reasons"][1]


@pytest.mark.parametrize("max_resolution", [None, 4.0])
@pytest.mark.parametrize("shape", ["rod", "hollow", "barrel"])
def test_long_and_hollow_particles_are_no_stripes(shape, max_resolution):
    axis = np.arange(48) - 24
    x, y = axis[None, :], axis[:, None]
    shown = {
        "rod": np.exp(-((x / 3) ** 2) - (y / 13) ** 4),
        "hollow": np.exp(-(((np.hypot(x, y) - 12) / 2) ** 2)),
        "barrel": np.exp(-((x / 9) ** 6)) * sum(np.exp(-(((y - at) / 1.5) ** 2)) for at in (-10, -3, 4, 11)),
    }[shape]
    noise = np.random.default_rng(0).normal(scale=1.5, size=(80, 48, 48))
    stack = ParticleStack((shown + noise).astype(np.float32))
    table = class_quality(np.zeros(80, int), stack, max_resolution=max_resolution)
    assert table["spikes"][0] < 1.8 and table["lines"][0] < 0.45, table[["spikes", "lines"]].to_dict()


def test_classes_that_cannot_be_judged_say_so(views):
    stack, label = views
    few = np.where(np.arange(len(label)) < 3, 4, label)
    few[3] = 3
    few[-1] = 6
    table = class_quality(few, stack)
    assert table["reasons"][3:].tolist() == [
        "1 particle, too few to judge", "3 particles, too few to judge", "empty",
        "1 particle, too few to judge",
    ]  # fmt: skip
    assert not table["keep"][3:].any() and table["rank"][:3].max() == 3
    assert table.loc[5:, ["resolution", "information", "edge"]].isna().all(axis=None)


def test_other_labels_tell_which_classes_come_out_again(views):
    stack, label = views
    other = np.where(label == 0, np.arange(len(label)) % 2, label + 5)
    table = class_quality(label, stack, other_labels=[label + 3, other])
    np.testing.assert_allclose(table["stability"], [0.66, 1.0, 1.0], atol=0.02)  # a chance of 0.28 taken off


def test_what_an_estimator_knows_is_in_the_table(views):
    stack, _ = views
    fitted = SMLClusterer((2, 3), max_iter=8, max_resolution=40.0, mask_diameter=300.0).fit(stack)
    table = class_quality(fitted, stack)
    assert table["size"].tolist() == fitted.class_sizes_.tolist()
    np.testing.assert_array_equal(table["soft_size"], fitted.soft_class_sizes_)
    found = fitted.assign(stack)
    means = [found.posterior[fitted.labels_ == k].mean() for k in range(6) if fitted.class_sizes_[k]]
    np.testing.assert_allclose(table["posterior"].dropna(), means)
    assert table["latent_spread"].dropna().between(0, 1).all()
    pd.testing.assert_frame_equal(class_quality(fitted, stack, assignment=found), table)
    alone = class_quality(fitted.labels_, stack, max_resolution=40.0, mask_diameter=300.0)
    measured = ["size", "resolution", "information", "edge"]
    pd.testing.assert_frame_equal(alone[measured], table[measured][: len(alone)])


def test_latent_spread_is_measured_across_the_seam_of_a_ring(views):
    stack, _ = views
    fitted = SMLClusterer(4, topology="ring", max_iter=3, tol=100.0, max_resolution=40.0).fit(stack)
    label = np.arange(len(stack)) % 4
    fitted.labels_ = label
    middle = np.array([1.0, 0.5, -0.5, 0.0])[label]
    positions = middle + np.where(np.arange(len(stack)) // 4 % 2, 0.02, -0.02)
    positions[positions > 1.0] -= 2.0  # half of class 0 lies at -0.98, the other half at 0.98
    spread = class_quality(fitted, stack, assignment=(label, label, positions[:, None]))["latent_spread"]
    np.testing.assert_allclose(spread, np.sin(0.02 * np.pi), rtol=0.01)  # that of all particles is 1


def test_a_realigned_classification_is_judged_in_its_own_poses(views):
    stack, _ = views
    clusterer = SMLClusterer((2, 2), max_iter=6, max_resolution=40.0, mask_diameter=300.0)
    fitted = RealigningClusterer(clusterer, n_rounds=1).fit(stack)
    table = class_quality(fitted, stack)
    alone = class_quality(fitted.clusterer_, stack.with_poses(fitted.poses_))
    pd.testing.assert_frame_equal(table, alone)


def test_poses_are_those_of_the_last_step_and_as_a_mirrored_map_saw_them(views):
    stack, label = views
    mirrored = np.arange(len(stack)) % 2 == 0
    poses = Poses(stack.poses.angle_rad, stack.poses.shift, mirrored)
    aligner, realigning, mirror = MAPAligner(), RealigningClusterer(), SMLClusterer(mirror=True)
    aligner.poses_, realigning.poses_, realigning.clusterer_ = poses[::-1], poses, mirror
    for step in (realigning, mirror):
        step.labels_ = label
    mirror.soft_class_sizes_ = np.bincount(label)
    found = as_classified(stack, make_pipeline(aligner, realigning)).poses
    assert not found.mirrored.any()
    np.testing.assert_array_equal(found.angle_rad, poses.unmirrored().angle_rad)
    np.testing.assert_array_equal(
        as_classified(stack.with_poses(poses), mirror).poses.angle_rad, found.angle_rad
    )
    mirror.mirror = False
    np.testing.assert_array_equal(as_classified(stack, realigning).poses.mirrored, mirrored)


def test_an_aligner_gives_its_poses_and_posteriors(views):
    stack, _ = views
    aligner = MAPAligner(3, n_batches=5, max_iter=2, tol=10.0, random_state=0).fit(stack)
    table = class_quality(aligner, stack.with_poses(None))
    aligned = stack.with_poses(aligner.poses_).with_outliers(aligner.outlier_)
    pd.testing.assert_series_equal(
        class_quality(aligner.labels_, aligned)["information"], table["information"]
    )
    means = [aligner.class_posterior_[aligner.labels_ == k].mean() for k in range(3)]
    np.testing.assert_allclose(table["posterior"], means)


def test_limits_are_the_users(views):
    stack, label = views
    table = class_quality(label, stack)
    strict = suggest_classes(table, min_size=1000)
    assert not strict["keep"].any() and strict["reasons"].str.contains("too few to judge").all()
    assert suggest_classes(strict)["keep"].all(), "a suggestion is made anew"


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ({"classification": np.zeros(5, int)}, "one label for each particle"),
        ({"classification": np.full(180, -1)}, "Give labels from 0"),
        ({"mask_diameter": 1e5}, "mask_diameter"),
        ({"max_resolution": 1e5}, "max_resolution"),
    ],
)
def test_arguments_must_fit(views, arguments, remedy):
    stack, label = views
    with pytest.raises(ValueError, match=remedy):
        class_quality(**{"classification": label, "stack": stack, **arguments})


def test_the_stack_is_that_of_the_labels(views):
    stack, _ = views
    model = SMLClusterer((2, 2), max_iter=3).partial_fit(stack[:100]).partial_fit(stack[100:])
    with pytest.raises(ValueError, match=r"180 particles, expected 80.*the last chunk\. .*predict"):
        class_quality(model, stack)
    assert class_quality(model.predict(stack), stack)["size"].sum() == 180


def test_arguments_in_the_wrong_order_are_told(views):
    stack, label = views
    with pytest.raises(TypeError, match=r"particles second: class_quality\(estimator, stack\)"):
        class_quality(stack, label)
    with pytest.raises(TypeError, match="a ndarray as its second argument, expected a ParticleStack"):
        class_quality(label, stack.read())
    with pytest.raises(TypeError, match=r"a SMLClusterer without labels_.*Give a fitted"):
        class_quality(SMLClusterer(), stack)


def test_the_suggestion_keeps_particles_and_drops_junk():
    """A quarter is ice, edges, empty fields and particles far off, which alignment moves to the centre."""
    stack = make_particles(
        "ribosome", 500, box=32, snr=0.3, junk_fraction=0.25, max_shift=20.0, random_state=0
    )
    aligner = MAPAligner(8, n_batches=30, max_iter=2, random_state=0).fit(stack)
    table = class_quality(aligner, stack)
    kept, junk = table["keep"].to_numpy()[aligner.labels_], stack.truth["is_junk"].to_numpy()
    precision, recall = (kept & ~junk).sum() / kept.sum(), (kept & ~junk).sum() / (~junk).sum()
    assert precision > 0.95 and recall > 0.9, f"precision {precision:.3f}, recall {recall:.3f}"


@pytest.mark.parametrize(
    ("lines", "contrast", "keep"),
    [(0.33, 1.25, False), (0.34, 1.42, False), (0.33, 1.84, True), (0.15, 0.6, True), (0.45, 2.4, True)],
)
def test_a_step_across_the_mask_is_an_edge_of_carbon(views, lines, contrast, keep):
    """As of two classes of edges, a view of beta-galactosidase, a shell in a tight mask, and a rod."""
    stack, label = views
    table = class_quality(label, stack)
    table.loc[0, ["lines", "contrast"]] = lines, contrast
    judged = suggest_classes(table)
    assert judged["keep"].tolist() == [keep, True, True]
    assert ("edge of carbon" in judged["reasons"][0]) is not keep


@pytest.mark.parametrize("shape", ["rod", "hollow"])
def test_long_and_hollow_particles_are_no_edges(shape):
    axis = np.arange(48) - 24
    x, y = axis[None, :], axis[:, None]
    shown = (
        np.exp(-((x / 3) ** 2) - (y / 13) ** 4)
        if shape == "rod"
        else np.exp(-(((np.hypot(x, y) - 12) / 2) ** 2))
    )
    noise = np.random.default_rng(0).normal(scale=1.5, size=(80, 48, 48))
    table = class_quality(np.zeros(80, int), ParticleStack((shown + noise).astype(np.float32)))
    assert "edge of carbon" not in table["reasons"][0], table[["lines", "contrast"]].to_dict()
