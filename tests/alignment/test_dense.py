"""Whole tables of posteriors against lists of cells, which are themselves tested against direct sums."""

from dataclasses import fields, replace

import numpy as np
import pytest

from sklearn_cryoem.alignment import dense, passes, prepared
from sklearn_cryoem.alignment.dense import dense_statistics, dense_sums
from sklearn_cryoem.alignment.expectation import LogPrior, expect
from sklearn_cryoem.alignment.maximisation import Statistics, accumulate
from sklearn_cryoem.alignment.products import reference_bank
from sklearn_cryoem.physics.polar import polar_transform

NAMES = [field.name for field in fields(Statistics)]


def assert_same_sums(one, other, rtol):
    for name in NAMES:
        a, b = getattr(one, name), getattr(other, name)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max(initial=0), err_msg=name)


@pytest.fixture
def setting(rng, make_particles, make_settings, references):
    """Build the arguments of a search, and the source of its images."""

    def build(k_max=7.0, *, noise=3.0, split_angstrom=3000.0, n_images=9):
        source = make_particles(rng, n_images, noise=noise, split_angstrom=split_angstrom).source()
        space = make_settings().space(32, k_max)
        features = source(np.arange(n_images), space.n_rings, space.n_orders)
        precision = np.full(space.n_rings, 1.0 / noise**2, np.float32)
        precision *= rng.uniform(0.5, 1.5, precision.shape).astype(np.float32)
        bank = reference_bank(polar_transform(references, space.grid), space, source.n_even)
        prior = LogPrior(np.log([0.5, 0.2, 0.3]), space.log_shift_prior(1.2))
        return source, (features, precision, bank, space, prior)

    return build


@pytest.mark.parametrize("split_angstrom", [None, 3000.0])
@pytest.mark.parametrize("k_max", [6.0, 7.0, 9.5])  # odd and even numbers of orders
@pytest.mark.parametrize("columns", [1, 10**6])
def test_tables_give_the_sums_and_the_best_cells_of_lists(
    setting, monkeypatch, split_angstrom, k_max, columns
):
    source, arguments = setting(k_max, split_angstrom=split_angstrom)
    features, _, _, space, _ = arguments
    monkeypatch.setattr(dense, "COLUMNS_PER_PRODUCT", columns)
    posterior = expect(*arguments, floor=1e-30)
    expected = accumulate(features, posterior, space, 3, source.n_even)
    sums = dense_sums(*arguments)
    assert_same_sums(dense_statistics(sums, space, source.n_even), expected, rtol=1e-5)
    np.testing.assert_array_equal(sums.row[0], posterior.best_row)
    np.testing.assert_array_equal(sums.angle[0], posterior.best_angle)
    np.testing.assert_allclose(sums.log_evidence[0], posterior.log_evidence, atol=1e-4)


def test_occupancy_counts_the_cells_of_lists(setting):
    _, arguments = setting(noise=2.0, n_images=40)
    n_cells = len(expect(*arguments).weight)
    assert dense_sums(*arguments).n_cells == pytest.approx(n_cells, rel=0.1)


def test_sums_of_blocks_add_up_to_those_of_all_images(setting):
    source, (features, precision, bank, space, prior) = setting()
    whole = dense_sums(features, precision, bank, space, prior)
    parts = [
        dense_sums(features.take(rows, space.n_rings, space.n_orders), precision, bank, space, prior)
        for rows in (slice(0, 4), slice(4, 9))
    ]
    added = parts[0]
    added += parts[1]
    one, two = (dense_statistics(sums, space, source.n_even) for sums in (added, whole))
    assert_same_sums(one, two, rtol=1e-5)
    np.testing.assert_array_equal(np.concatenate(added.row), whole.row[0])
    np.testing.assert_array_equal(np.concatenate(added.angle), whole.angle[0])


@pytest.fixture
def noisy(one_rng, make_particles, make_settings, make_model, references):
    source = make_particles(one_rng, 30, noise=3.0).source()
    return source, make_model(references, noise=9.0), make_settings().space(32, 7.0)


def test_a_broad_pass_is_a_pass(noisy):
    source, model, space = noisy
    rows = np.arange(3, 27)
    lists, tables = (source.run_pass(rows, model, space, broad=broad) for broad in (False, True))
    assert min(lists.share_of_cells(space), tables.share_of_cells(space)) > passes.BROAD
    assert tables.n_cells == pytest.approx(lists.n_cells, rel=0.1)
    assert_same_sums(tables.statistics, lists.statistics, rtol=0.02)  # the floor is all that differs
    np.testing.assert_allclose(tables.log_evidence, lists.log_evidence, atol=0.02)
    for name in ("label", "angle_rad", "shift_px"):
        np.testing.assert_array_equal(getattr(tables, name), getattr(lists, name))


def test_a_broad_pass_has_the_same_bits_for_two_workers(
    noisy, one_rng, make_particles, monkeypatch, by_one_and_two
):
    _, model, space = noisy
    monkeypatch.setattr(passes, "IMAGES_PER_TASK", (8, 8))
    particles = make_particles(one_rng, 30, noise=3.0)
    one, two = by_one_and_two(particles.source, lambda s: s.run_pass(np.arange(30), model, space, broad=True))
    np.testing.assert_array_equal(one.log_evidence, two.log_evidence)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(one.statistics, name), getattr(two.statistics, name))


@pytest.mark.parametrize("reason", ["memory", "bank"])
def test_lists_serve_where_tables_cannot(noisy, monkeypatch, reason):
    source, model, space = noisy
    monkeypatch.setattr(prepared, {"memory": "TABLE_BYTES", "bank": "BANK_BYTES"}[reason], 1.0)
    monkeypatch.setattr(passes, "_dense_pass", None)  # would fail
    one, two = (source.run_pass(np.arange(30), model, space, broad=broad) for broad in (False, True))
    np.testing.assert_array_equal(one.log_evidence, two.log_evidence)


def test_narrow_posteriors_are_not_broad(noisy):
    source, model, space = noisy
    sharp = replace(model, noise=0.01 * model.noise)
    for broad in (False, True):
        assert source.run_pass(np.arange(30), sharp, space, broad=broad).share_of_cells(space) < passes.BROAD
