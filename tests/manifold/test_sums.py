"""Sparse and dense sums are one, totals grow in place, and float32 gives way where its digits end."""

import dataclasses

import numpy as np
import pytest
from scipy import sparse

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.manifold.blocks import ArrayBlocks, FeatureLayout
from sklearn_cryoem.manifold.classes import class_statistics
from sklearn_cryoem.manifold.expectation import Matcher, e_step
from sklearn_cryoem.manifold.sums import (
    COLUMNS_AT_ONCE,
    FEWEST_COLUMNS,
    add_product,
    sum_in_place,
    transposed,
)


def few_nodes(rng, n=64, n_nodes=50, n_each=2):
    """Responsibilities (n, K) of a few nodes for each image."""
    weights = np.zeros((n, n_nodes), dtype=np.float32)
    for row in weights:
        row[rng.choice(n_nodes, n_each, replace=False)] = rng.dirichlet(np.ones(n_each))
    return weights


@pytest.mark.parametrize("n_each", [1, 2, 40])
def test_sparse_sums_are_dense_sums(rng, n_each):
    weights = few_nodes(rng, n_each=n_each)
    values = rng.standard_normal((64, COLUMNS_AT_ONCE + 300)).astype(np.float32)
    left = transposed(weights, values.shape[1])
    assert sparse.issparse(left) == (n_each < 5)
    total = np.ones((50, values.shape[1]))
    add_product(total, left, values)
    expected = 1.0 + weights.T.astype(float) @ values
    np.testing.assert_allclose(total, expected, atol=1e-5)


def test_prefixes_of_rows_are_summed_without_the_rest(rng):
    weights, values = few_nodes(rng), rng.standard_normal((64, 900)).astype(np.float32)
    left = transposed(weights, 600)
    total = np.zeros((50, 600))
    add_product(total, left, values[:, :600])
    np.testing.assert_allclose(total, weights.T @ values[:, :600], atol=1e-5)


def test_few_columns_are_not_worth_a_sparse_matrix(rng):
    weights = few_nodes(rng, n_each=1)
    assert not sparse.issparse(transposed(weights, FEWEST_COLUMNS - 1))
    assert sparse.issparse(transposed(weights, FEWEST_COLUMNS))


def sharp_setting(rng, dtype=np.float32, n=300, n_nodes=40):
    """Images that are noisy copies of the templates, through CTFs; wide enough for sparse sums."""
    layout = FeatureLayout(np.repeat([0, 1, 2], 256), np.arange(768) // 2)
    templates = rng.standard_normal((n_nodes, 768))
    ctf = rng.uniform(0.2, 1, (n, 384)).astype(dtype)
    y = ctf[:, layout.norm_index] * templates[rng.integers(0, n_nodes, n)] + rng.standard_normal((n, 768))
    blocks = ArrayBlocks(y.astype(dtype), ctf=ctf, layout=layout, block_size=64)
    return blocks, Matcher.of(templates, np.ones(3), layout, dtype=dtype)


@pytest.mark.parametrize("sums_of", [e_step, class_statistics])
def test_statistics_with_sparse_sums_equal_dense_ones_within_float32(rng, monkeypatch, sums_of):
    blocks, matcher = sharp_setting(rng)
    weights = matcher.posterior(blocks.load(0, 3)).responsibilities
    assert np.count_nonzero(weights) < 0.1 * weights.size, "responsibilities are nearly one-hot"
    sparse_sums = sums_of(blocks, matcher)
    monkeypatch.setattr("sklearn_cryoem.manifold.sums.SPARSE_SHARE", 0.0)
    dense = sums_of(blocks, matcher)
    for name in ("cross", "gram", "node_mass"):
        mine, theirs = getattr(sparse_sums, name), getattr(dense, name)
        np.testing.assert_allclose(mine, theirs, atol=3e-7 * np.abs(theirs).max(), err_msg=name)


def test_responsibilities_that_count_for_nothing_are_zero_and_the_rest_still_sum_to_one(rng):
    for dtype in (np.float32, np.float64):
        blocks, matcher = sharp_setting(rng, dtype)
        weights = matcher.posterior(blocks.load(0, 3)).responsibilities
        assert weights.dtype == dtype
        assert weights[weights > 0].min() >= np.finfo(dtype).eps / weights.shape[1]
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=4 * np.finfo(dtype).eps)


def test_halves_of_the_data_add_up_to_the_whole(rng):
    blocks, matcher = sharp_setting(rng)
    parts = [
        ArrayBlocks(blocks._values[rows], ctf=blocks._ctf[rows], layout=blocks.layout, block_size=64)
        for rows in (slice(0, 128), slice(128, None))  # cut where a block ends
    ]
    for sums_of in (e_step, class_statistics):
        whole = sums_of(blocks, matcher)
        first, second = (sums_of(part, matcher) for part in parts)
        added = first + second
        first += second  # in place, the same
        for field in dataclasses.fields(whole):
            expected = getattr(whole, field.name)
            np.testing.assert_allclose(getattr(added, field.name), expected, rtol=1e-6, atol=1e-6)
            np.testing.assert_array_equal(getattr(first, field.name), getattr(added, field.name))


def test_sums_over_nothing_are_refused():
    with pytest.raises(ValueError, match="nothing to add"):
        sum_in_place(abs, [])


def test_single_precision_gives_way_where_it_would_lose_nats(rng):
    blocks, matcher = sharp_setting(rng)
    block = blocks.load(0, 3)
    assert matcher.in_enough_digits(block) is block
    exact_blocks = ArrayBlocks(
        blocks._values.astype(float), ctf=blocks._ctf.astype(float), layout=blocks.layout, block_size=64
    )
    near_floor = np.full(3, 1e-6)
    low = Matcher.of(matcher.templates, near_floor, blocks.layout)
    exact = Matcher.of(matcher.templates, near_floor, blocks.layout, dtype=np.float64)
    assert low.in_enough_digits(block).data.dtype == np.float64
    found, expected = low.posterior(block), exact.posterior(exact_blocks.load(0, 3))
    scale = np.abs(expected.log_evidence).max()
    assert scale > 1e7
    # c y is rounded once, to float32: a part in 1e8 of the evidence, but of no difference between nodes
    np.testing.assert_allclose(found.log_evidence, expected.log_evidence, rtol=1e-6)
    np.testing.assert_array_equal(
        found.responsibilities.argmax(axis=1), expected.responsibilities.argmax(axis=1)
    )


@pytest.mark.parametrize("as_images", [False, True])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_duplicates_never_lower_the_objective(rng, as_images):
    shape = (5, 16, 16) if as_images else (6, 40)
    originals = 10.0 * rng.standard_normal(shape).astype(np.float32)
    model = SMLClusterer((4, 3), n_folds=1, max_iter=40, tol=0, random_state=0)
    model.fit(np.repeat(originals, 25, axis=0))
    same = model.stage_[1:] == model.stage_[:-1]
    steps = np.diff(model.log_posterior_)[same]
    assert steps.min() > -1e-3, f"fell by {-steps.min():.3g} nats an image"
