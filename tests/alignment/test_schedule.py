"""Laws of the schedule; its constants may be tuned without touching these."""

from dataclasses import replace

import numpy as np
import pytest

from sklearn_cryoem.alignment.em import next_k_max, online_step, random_batches
from sklearn_cryoem.alignment.start import rebalanced


@pytest.mark.parametrize(
    ("n_images", "size", "n_batches"), [(100, 10, 25), (103, 10, 33), (7, 3, 1), (5, 5, 4)]
)
def test_every_image_comes_once_before_any_comes_again(rng, n_images, size, n_batches):
    batches = random_batches(n_images, size, n_batches, np.random.RandomState(rng.integers(99)))
    assert [len(rows) for rows in batches] == [size] * n_batches
    drawn = np.zeros(n_images, dtype=int)
    for rows in batches:
        assert np.all(np.diff(rows) >= 0), "rows must be sorted, for reading files in order"
        np.add.at(drawn, rows, 1)
        # a batch may straddle two rounds: a round that is not over yet differs by one, plus that one batch
        assert np.ptp(drawn) <= 2
    assert drawn.sum() == size * n_batches and np.ptp(drawn) <= 1


def test_batches_are_no_larger_than_the_set_and_may_be_none():
    assert [len(rows) for rows in random_batches(4, 10, 3, np.random.RandomState(0))] == [4, 4, 4]
    assert random_batches(4, 2, 0, np.random.RandomState(0)) == []


def test_batches_come_from_the_seed_alone():
    one, again, other = (random_batches(60, 7, 20, np.random.RandomState(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert np.any(np.concatenate(one) != np.concatenate(other))


@pytest.mark.parametrize("n_batches", [1, 2, 60])
def test_step_falls_and_stays_a_weight(n_batches):
    steps = [online_step(batch, n_batches) for batch in range(n_batches)]
    assert all(0.0 < step <= 1.0 for step in steps)
    assert np.all(np.diff(steps) < 0) and steps[0] > 0.8  # the first batch replaces nearly everything


@pytest.fixture
def model_resolved_to(make_model, references):
    def build(*rings):
        return replace(make_model(references), resolution=np.array(rings))

    return build


@pytest.mark.parametrize("progress", [0.01, 0.5, 1.0, None])
def test_resolution_stays_between_start_and_limit(make_settings, model_resolved_to, progress):
    settings = make_settings(k_start=5.0, k_limit=11.0)
    assert next_k_max(model_resolved_to(0, 0, 0), settings, progress) == 5.0
    assert 5.0 <= next_k_max(model_resolved_to(0, 13, 2), settings, progress) <= 11.0


def test_full_passes_use_a_little_more_than_the_best_reference_resolves(make_settings, model_resolved_to):
    settings = make_settings(k_start=3.0, k_limit=13.0)
    wanted = [next_k_max(model_resolved_to(0, ring, 1), settings, None) for ring in range(14)]
    assert np.all(np.diff(wanted) >= 0) and wanted[-1] == 13.0
    assert all(k > ring or k == 13.0 for ring, k in enumerate(wanted)), "it could never grow"


def test_mini_batches_let_the_resolution_grow_bit_by_bit(make_settings, model_resolved_to):
    settings, model = make_settings(k_start=4.0), model_resolved_to(13, 13, 13)
    growth = [next_k_max(model, settings, progress) for progress in (0.02, 0.25, 0.5, 0.75, 1.0)]
    assert np.all(np.diff(growth) >= 0) and growth[0] < 5.0 < growth[-1]
    assert growth[-1] <= next_k_max(model, settings, None)


def test_balance_pushes_against_large_classes_and_has_mean_zero(make_model, references):
    model = make_model(references)
    for mass in ([50.0, 30.0, 20.0], [98.0, 2.0, 0.0]):
        balance = rebalanced(model, np.array(mass)).balance
        assert balance[0] < balance[1] < balance[2]
        assert balance.sum() == pytest.approx(0.0, abs=1e-12) and np.isfinite(balance).all()
    fair = rebalanced(model, np.full(3, 33.0)).balance
    np.testing.assert_allclose(fair, 0.0, atol=1e-12)


def test_balance_accumulates_and_depends_on_shares_only(make_model, references):
    mass = np.array([60.0, 30.0, 10.0])
    once = rebalanced(make_model(references), mass)
    twice = rebalanced(once, mass)
    np.testing.assert_allclose(twice.balance, 2 * once.balance)
    np.testing.assert_allclose(rebalanced(make_model(references), 7 * mass).balance, once.balance)
