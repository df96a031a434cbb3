"""Measures, ranking and suggestion: laws on simulated classes, and the figure they reach on junk."""

import numpy as np
import pandas as pd
import pytest

from sklearn_cryoem import MAPAligner, ParticleStack
from sklearn_cryoem.datasets import make_particles, true_poses
from sklearn_cryoem.quality import class_quality, suggest_classes

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
    table = class_quality(stack, label)
    assert table["class"].tolist() == [1, 2, 3] and table["size"].tolist() == np.bincount(label).tolist()
    assert table["keep"].all() and set(table["reasons"]) == {""} and sorted(table["rank"]) == [1, 2, 3]
    assert table["score"].between(0.6, 1).all()
    assert (table["resolution"] < 40).all() and (table["edge"] < 0.3).all() and (table["offset"] < 0.2).all()


def test_signal_to_noise_is_that_of_the_simulation(views):
    """snr=0.5 over the box; the mask holds 0.57 of its noise and all of the signal."""
    stack, label = views
    table = class_quality(stack, label)
    assert table["snr"].between(0.5, 1.3).all(), table["snr"].tolist()


def test_mixed_views_hold_less_than_one(views):
    stack, label = views
    pure, mixed = class_quality(stack, label), class_quality(stack, np.zeros(len(stack), int))
    assert mixed["information"][0] < 0.8 * pure["information"].min()


def test_wrong_angles_lose_the_information(views):
    stack, label = views
    wrong = stack.with_poses(None)
    assert (
        class_quality(wrong, label)["information"] < 0.7 * class_quality(stack, label)["information"]
    ).all()


def test_information_does_not_count_particles(views):
    """It is that of 100 particles: half of a class has about the same, in spite of fewer images."""
    stack, label = views
    whole, half = class_quality(stack, label), class_quality(stack[::2], label[::2])
    ratio = half["information"] / whole["information"]
    assert ratio.between(0.75, 1.1).all(), ratio.tolist()


def test_same_bits_for_any_number_of_workers(views):
    stack, label = views
    pd.testing.assert_frame_equal(class_quality(stack, label), class_quality(stack, label, n_jobs=2))


def test_noise_has_no_resolution():
    noise = np.random.default_rng(0).normal(size=(60, 24, 24)).astype(np.float32)
    table = class_quality(ParticleStack(noise), np.zeros(60, int))
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
    table = class_quality(ParticleStack(images), np.repeat([0, 1, 2], [60, 20, 60]))
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
    table = class_quality(
        ParticleStack((shown + noise).astype(np.float32)), np.zeros(80, int), max_resolution=max_resolution
    )
    assert table["spikes"][0] < 1.8 and table["lines"][0] < 0.45, table[["spikes", "lines"]].to_dict()


def test_classes_that_cannot_be_judged_say_so(views):
    stack, label = views
    few = np.where(np.arange(len(label)) < 3, 4, label)
    few[3] = 3
    table = class_quality(stack, few, n_classes=7)
    assert table["reasons"][3:].tolist() == [
        "1 particle, too few to judge", "3 particles, too few to judge", "empty", "empty",
    ]  # fmt: skip
    assert not table["keep"][3:].any() and table["rank"][:3].max() == 3
    assert table.loc[5:, ["resolution", "information", "edge"]].isna().all(axis=None)


def test_what_the_fit_knows_is_told(views):
    stack, label = views
    place = np.column_stack([label, np.random.default_rng(0).normal(scale=0.01, size=len(label))])
    other = np.where(label == 0, np.arange(len(label)) % 2, label + 5)
    table = class_quality(
        stack, label, soft_sizes=[50.5, 60.0, 69.5], latent_positions=place,
        posterior=np.where(label == 1, 0.5, 1.0), other_labels=[label[::1] + 3, other],
    )  # fmt: skip
    assert table["soft_size"].tolist() == [50.5, 60.0, 69.5]
    assert (table["latent_spread"] < 0.05).all()
    assert table["posterior"].tolist() == [1.0, 0.5, 1.0]
    np.testing.assert_allclose(table["stability"], [0.66, 1.0, 1.0], atol=0.02)  # a chance of 0.28 taken off


def test_limits_are_the_users(views):
    stack, label = views
    table = class_quality(stack, label)
    strict = suggest_classes(table, min_size=1000)
    assert not strict["keep"].any() and strict["reasons"].str.contains("too few to judge").all()
    assert suggest_classes(strict)["keep"].all(), "a suggestion is made anew"


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ({"labels": np.zeros(5, int)}, "one label for each particle"),
        ({"labels": np.full(180, -1)}, "Give labels from 0"),
        ({"n_classes": 2}, "n_classes"),
        ({"soft_sizes": [1.0]}, "Take it from the same fit"),
        ({"latent_positions": np.zeros(180)}, "Take it from transform"),
        ({"posterior": np.zeros(3)}, "Take it from the same fit"),
        ({"mask_diameter": 1e5}, "mask_diameter"),
        ({"max_resolution": 1e5}, "max_resolution"),
    ],
)
def test_arguments_must_fit(views, arguments, remedy):
    stack, label = views
    with pytest.raises(ValueError, match=remedy):
        class_quality(stack, **{"labels": label, **arguments})


def test_the_suggestion_keeps_particles_and_drops_junk():
    """A quarter is ice, edges, empty fields and particles far off, which alignment moves to the centre."""
    stack = make_particles(
        "ribosome", 800, box=32, snr=0.2, junk_fraction=0.25, max_shift=20.0, random_state=0
    )
    aligner = MAPAligner(12, n_batches=60, max_iter=2, random_state=0).fit(stack)
    table = class_quality(stack.with_poses(aligner.poses_), aligner.labels_, n_classes=12)
    kept, junk = table["keep"].to_numpy()[aligner.labels_], stack.truth["is_junk"].to_numpy()
    precision, recall = (kept & ~junk).sum() / kept.sum(), (kept & ~junk).sum() / (~junk).sum()
    assert precision > 0.95 and recall > 0.9, f"precision {precision:.3f}, recall {recall:.3f}"
