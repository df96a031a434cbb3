"""View distances against the plain double loop, and what is known of random classes."""

from itertools import combinations

import numpy as np
import pytest

from sklearn_cryoem.metrics import effective_classes, fraction_within, view_distances
from sklearn_cryoem.metrics import views as views_module


def random_views(rng, n):
    directions = rng.standard_normal((n, 3))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def plain_distances(labels, directions):
    pairs = combinations(range(len(labels)), 2)
    return [
        np.degrees(np.arccos(np.clip(directions[i] @ directions[j], -1, 1)))
        for i, j in pairs
        if labels[i] == labels[j] and labels[i] >= 0
    ]


@pytest.mark.parametrize("block", [1, 3, 1024])
def test_distances_are_those_of_the_double_loop(block, rng, monkeypatch):
    monkeypatch.setattr(views_module, "_ROWS_A_BLOCK", block)
    labels, directions = rng.integers(-1, 4, 40), random_views(rng, 40)
    expected = plain_distances(labels, directions)
    observed = view_distances(labels, 5.0 * directions)  # lengths do not matter
    assert observed.dtype == np.float32
    np.testing.assert_allclose(np.sort(observed), np.sort(expected), atol=1e-3)
    for degrees in (0.0, 30.0, 90.0, 180.0):
        assert fraction_within(labels, directions, degrees) == pytest.approx(
            np.mean(np.array(expected) <= degrees)
        )


def test_known_angles():
    directions = np.array([(1, 0, 0), (0, 1, 0), (-1, 0, 0), (1, 1, 0)], dtype=float)
    np.testing.assert_allclose(
        sorted(view_distances(np.zeros(4, int), directions)), [45, 45, 90, 90, 135, 180], rtol=1e-5
    )
    assert fraction_within(np.zeros(4, int), directions, 45.0) == pytest.approx(2 / 6)


def test_random_classes_are_within_an_angle_as_often_as_chance(rng):
    labels, directions = rng.integers(0, 5, 3000), random_views(rng, 3000)
    chance = (1 - np.cos(np.radians(10.0))) / 2
    assert fraction_within(labels, directions, 10.0) == pytest.approx(chance, rel=0.1)


def test_a_sample_of_pairs_follows_the_distribution_of_all(rng):
    labels = np.repeat([0, 1, 2], [10, 60, 200])
    directions = random_views(rng, 270)
    directions[:10] += [0, 0, 50]  # a tight class, few pairs
    everything = view_distances(labels, directions)
    sample = view_distances(labels, directions, max_pairs=5000, random_state=0)
    assert len(everything) == 45 + 1770 + 19900 and len(sample) == 5000
    assert np.isin(sample, everything).all(), "a sampled pair is not a pair of distinct members of one class"
    quantiles = [0.1, 0.5, 0.9]
    np.testing.assert_allclose(np.quantile(sample, quantiles), np.quantile(everything, quantiles), atol=4.0)
    np.testing.assert_array_equal(sample, view_distances(labels, directions, max_pairs=5000, random_state=0))


def test_no_pair_gives_no_distance():
    assert view_distances([0, 1, -1], np.eye(3)).shape == (0,)
    assert np.isnan(fraction_within([0, 1, -1], np.eye(3)))
    assert view_distances([], np.empty((0, 3))).shape == (0,)


def test_junk_may_be_left_out_by_its_label_but_not_slip_in():
    directions = np.array([(1, 0, 0), (1, 0, 0), (np.nan, np.nan, np.nan)])
    assert fraction_within([0, 0, -1], directions) == 1.0
    with pytest.raises(ValueError, match="or give them the label -1"):
        fraction_within([0, 0, 0], directions)
    with pytest.raises(ValueError, match="Give one label and one view direction for each particle"):
        view_distances([0, 0], directions)


def test_effective_classes_count_and_weigh():
    assert effective_classes(np.repeat(np.arange(7), 20)) == pytest.approx((7, 7.0))
    occupied, perplexity = effective_classes([0] * 75 + [4] * 25 + [-1] * 50)
    assert occupied == 2
    assert perplexity == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))
    assert effective_classes([-1, -1]) == (0, 0.0)
    assert effective_classes([3, 3]).perplexity == pytest.approx(1.0)
