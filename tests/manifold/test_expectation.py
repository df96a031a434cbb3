import dataclasses

import numpy as np
import pytest
from scipy import sparse
from scipy.special import logsumexp
from scipy.stats import norm as gaussian

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.estimators import sml_clusterer
from sklearn_cryoem.manifold.blocks import ArrayBlocks, FeatureLayout
from sklearn_cryoem.manifold.expectation import Matcher, sweep
from sklearn_cryoem.manifold.products import COLUMNS_AT_ONCE, MIN_SPARSE_COLUMNS, add_product, transposed

FIELDS = ("numerator", "denominator", "power", "mass", "log_evidence", "log_noise", "n_samples")


def naive_log_likelihood(y, ctf, templates, variance, layout):
    """log p(y_i | node k) as Eq. (1.3) writes it, feature by feature."""
    table = np.empty((len(y), len(templates)))
    for k, template in enumerate(templates):
        table[:, k] = gaussian.logpdf(y, ctf * template, np.sqrt(variance[layout.shell])).sum(axis=1)
    return layout.information * table


def setting(make_blocks, rng, **options):
    blocks, y, ctf = make_blocks(rng, **options)
    templates = rng.standard_normal((7, blocks.layout.n_features))
    variance = rng.uniform(0.3, 2.0, blocks.layout.n_shells)
    return blocks, y, ctf, templates, variance


@pytest.mark.parametrize("uncertainty", [0.0, 0.3])
def test_posterior_and_evidence_are_bayes_rule(make_blocks, rng, uncertainty):
    """With a variance of its own for the template of each node and shell, Eq. (3.17), or without."""
    blocks, y, ctf, templates, variance = setting(make_blocks, rng, block_size=100)
    layout = blocks.layout
    spread = uncertainty * rng.uniform(size=(len(templates), layout.n_shells))  # (K, S)
    naive = np.stack(
        [naive_log_likelihood(y, ctf, templates[[k]], variance + own, layout)[:, 0]
         for k, own in enumerate(spread)],
        axis=1,
    )  # fmt: skip
    given = {"spread": spread} if uncertainty else {}
    matcher = Matcher.of(templates, variance, layout, dtype=np.float64, **given)
    posterior = matcher.posterior(blocks.load(0, layout.n_shells))
    total = logsumexp(naive, axis=1, keepdims=True)
    np.testing.assert_allclose(posterior.responsibilities, np.exp(naive - total), atol=1e-12)
    np.testing.assert_allclose(posterior.log_evidence, total[:, 0] - np.log(len(templates)), rtol=1e-10)


@pytest.mark.parametrize("uncertainty", [0.0, 0.3])
def test_likelihoods_do_not_count_the_first_shells(make_blocks, rng, uncertainty):
    """Eq. (3.31): as if those shells were not there."""
    blocks, y, ctf, templates, variance = setting(make_blocks, rng, block_size=100)
    layout = dataclasses.replace(blocks.layout, n_ignored=blocks.layout.n_shells - 1)
    kept = layout.shell >= layout.n_ignored
    spread = uncertainty * rng.uniform(size=(len(templates), layout.n_shells)) if uncertainty else None
    posterior = Matcher.of(templates, variance, layout, dtype=np.float64, spread=spread).posterior(
        blocks.load(0, layout.n_shells)
    )
    table = np.zeros((len(y), len(templates)))
    for k, template in enumerate(templates):
        total = (variance if spread is None else variance + spread[k])[layout.shell]
        log = gaussian.logpdf(y, ctf * template, np.sqrt(total))
        table[:, k] = layout.information * log[:, kept].sum(axis=1)
    total = logsumexp(table, axis=1, keepdims=True)
    np.testing.assert_allclose(posterior.responsibilities, np.exp(table - total), atol=1e-12)
    np.testing.assert_allclose(posterior.log_evidence, total[:, 0] - np.log(len(templates)), rtol=1e-10)


def test_statistics_are_sums_over_images(make_blocks, rng):
    blocks, y, ctf, templates, variance = setting(make_blocks, rng)
    layout = blocks.layout
    statistics = sweep(blocks, [Matcher.of(templates, variance, layout, dtype=np.float64)]).total()
    naive = naive_log_likelihood(y, ctf, templates, variance, layout)
    weights = np.exp(naive - logsumexp(naive, axis=1, keepdims=True))
    np.testing.assert_allclose(statistics.numerator, weights.T @ (ctf * y), atol=1e-9)
    np.testing.assert_allclose(statistics.denominator[:, layout.norm_index], weights.T @ ctf**2, atol=1e-9)
    np.testing.assert_allclose(statistics.mass, weights.sum(axis=0), atol=1e-9)
    np.testing.assert_allclose(statistics.power, layout.sum_shells((y**2).sum(axis=0)))
    evidence = (logsumexp(naive, axis=1) - np.log(len(templates))).sum()
    assert statistics.log_evidence == pytest.approx(evidence, rel=1e-10)
    alone = naive_log_likelihood(y, ctf, np.zeros_like(templates[:1]), variance, layout).sum()
    assert statistics.log_noise == pytest.approx(alone, rel=1e-10)
    assert statistics.n_samples == len(y)


def test_new_shells_enter_the_statistics_before_they_enter_the_match(make_blocks, rng):
    blocks, _, _, templates, variance = setting(make_blocks, rng)
    first, n_shells = blocks.layout.truncate(1), blocks.layout.n_shells
    matcher = Matcher.of(templates[:, : first.n_features], variance[:1], first, dtype=np.float64)
    wide, narrow = (sweep(blocks, [matcher], n_shells=n).total() for n in (n_shells, None))
    assert wide.numerator.shape == templates.shape
    np.testing.assert_allclose(wide.numerator[:, : first.n_features], narrow.numerator)
    assert wide.log_evidence == pytest.approx(narrow.log_evidence, rel=1e-12)


def test_single_precision_agrees_with_double(make_blocks, rng):
    blocks, y, ctf, templates, variance = setting(make_blocks, rng, dtype=np.float32)
    naive = naive_log_likelihood(y.astype(float), ctf.astype(float), templates, variance, blocks.layout)
    weights = np.exp(naive - logsumexp(naive, axis=1, keepdims=True))
    statistics = sweep(blocks, [Matcher.of(templates, variance, blocks.layout, dtype=np.float32)]).total()
    assert statistics.numerator.dtype == np.float64
    np.testing.assert_allclose(statistics.mass, weights.sum(axis=0), rtol=1e-4, atol=1e-3)


def test_thousands_of_nats_between_nodes_neither_overflow_nor_become_nan(rng, make_blocks):
    blocks, *_ = setting(make_blocks, rng)
    layout = blocks.layout
    templates = np.stack([np.zeros(layout.n_features), np.full(layout.n_features, 1e3)])
    matcher = Matcher.of(templates, np.full(layout.n_shells, 1e-3), layout, dtype=np.float64)
    posterior = matcher.posterior(blocks.load(0, layout.n_shells))
    assert np.isfinite(posterior.log_evidence).all()
    np.testing.assert_allclose(posterior.responsibilities.sum(axis=1), 1.0)


@pytest.mark.parametrize("split", ["all", "folds", "halves"])
def test_the_same_bits_for_any_number_of_workers(make_blocks, rng, split):
    blocks, _, _, templates, variance = setting(make_blocks, rng, n=200, dtype=np.float32)
    matchers = [Matcher.of(templates, variance, blocks.layout)] * (3 if split == "folds" else 1)
    alone, together = (sweep(blocks, matchers, split, n_jobs=n) for n in (1, 3))
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name))


@pytest.mark.parametrize("split", ["folds", "halves"])
def test_parts_are_sums_over_their_rows_and_add_up_to_those_of_all_images(make_blocks, rng, split):
    n_parts = 3 if split == "folds" else 2
    blocks, y, ctf, templates, variance = setting(make_blocks, rng, n=48, block_size=6)
    part_of = np.concatenate([blocks.load(i, 2).folds(3) for i in range(8)])
    if split == "halves":
        part_of = np.arange(48) % 2
    matcher = Matcher.of(templates, variance, blocks.layout, dtype=np.float64)
    found = sweep(blocks, [matcher] * (n_parts if split == "folds" else 1), split)
    naive = naive_log_likelihood(y, ctf, templates, variance, blocks.layout)
    weights = np.exp(naive - logsumexp(naive, axis=1, keepdims=True))
    for part in range(n_parts):
        rows = part_of == part
        np.testing.assert_allclose(found.part(part).numerator, weights[rows].T @ (ctf * y)[rows], atol=1e-9)
        np.testing.assert_allclose(found.part(part).mass, weights[rows].sum(axis=0), atol=1e-9)
    whole = sweep(blocks, [matcher]).total()
    for name in FIELDS:
        np.testing.assert_allclose(getattr(found.total(), name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    labels = np.concatenate(found.labels) if split == "halves" else found.labels
    np.testing.assert_array_equal(labels, weights.argmax(axis=1) if split == "halves" else [])


def test_an_image_and_its_copies_are_in_one_fold_wherever_they_stand(make_blocks, rng):
    blocks, *_ = make_blocks(rng, n=2000, block_size=2000)
    block = blocks.load(0, 2)
    order = rng.integers(2000, size=3000)
    folds = block.folds(10)
    np.testing.assert_array_equal(block.take(order).folds(10), folds[order])
    assert 150 < np.bincount(folds).min() and np.bincount(folds).max() < 250
    # what neighbouring rows get is independent
    assert abs(np.mean(folds[1:] == folds[:-1]) - 0.1) < 0.03


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


def test_few_columns_are_not_worth_a_sparse_matrix(rng):
    weights = few_nodes(rng, n_each=1)
    assert not sparse.issparse(transposed(weights, MIN_SPARSE_COLUMNS - 1))
    assert sparse.issparse(transposed(weights, MIN_SPARSE_COLUMNS))


def sharp_setting(rng, dtype=np.float32, n=300, n_nodes=40):
    """Images that are noisy copies of the templates, through CTFs; wide enough for sparse sums."""
    layout = FeatureLayout(np.repeat([0, 1, 2], 256), np.arange(768) // 2)
    templates = rng.standard_normal((n_nodes, 768))
    ctf = rng.uniform(0.2, 1, (n, 384)).astype(dtype)
    y = ctf[:, layout.norm_index] * templates[rng.integers(0, n_nodes, n)] + rng.standard_normal((n, 768))
    blocks = ArrayBlocks(y.astype(dtype), ctf=ctf, layout=layout, block_size=64)
    return blocks, Matcher.of(templates, np.ones(3), layout, dtype=dtype)


@pytest.mark.parametrize("split", ["all", "halves"])
def test_statistics_with_sparse_sums_equal_dense_ones_within_float32(rng, monkeypatch, split):
    blocks, matcher = sharp_setting(rng)
    weights = matcher.posterior(blocks.load(0, 3)).responsibilities
    assert np.count_nonzero(weights) < 0.1 * weights.size, "responsibilities are nearly one-hot"
    sparse_sums = sweep(blocks, [matcher], split)
    monkeypatch.setattr("sklearn_cryoem.manifold.products.SPARSE_SHARE", 0.0)
    dense = sweep(blocks, [matcher], split)
    for name in ("numerator", "denominator", "mass"):
        mine, theirs = getattr(sparse_sums, name), getattr(dense, name)
        np.testing.assert_allclose(mine, theirs, atol=3e-7 * np.abs(theirs).max(), err_msg=name)


def test_responsibilities_that_count_for_nothing_are_zero_and_the_rest_still_sum_to_one(rng):
    for dtype in (np.float32, np.float64):
        blocks, matcher = sharp_setting(rng, dtype)
        weights = matcher.posterior(blocks.load(0, 3)).responsibilities
        assert weights.dtype == dtype
        assert weights[weights > 0].min() >= np.finfo(dtype).eps / weights.shape[1]
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=4 * np.finfo(dtype).eps)


def test_statistics_of_parts_of_the_data_add_up_and_in_place_too(rng):
    blocks, matcher = sharp_setting(rng)
    parts = [
        ArrayBlocks(blocks._values[rows], ctf=blocks._ctf[rows], layout=blocks.layout, block_size=64)
        for rows in (slice(0, 128), slice(128, None))  # cut where a block ends
    ]
    whole = sweep(blocks, [matcher], "halves")
    first, second = (sweep(part, [matcher], "halves") for part in parts)
    added = first + second
    arrays = first.numerator
    first += second
    assert first.numerator is arrays, "no third array of their size is made"
    for field in dataclasses.fields(whole):
        expected, found, in_place = (getattr(sums, field.name) for sums in (whole, added, first))
        if field.name == "labels":
            expected, found, in_place = map(np.concatenate, (expected, found, in_place))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(in_place, found)


def test_nothing_to_compare_is_refused(rng):
    blocks, matcher = sharp_setting(rng)
    with pytest.raises(ValueError, match="give at least one row"):
        sweep(ArrayBlocks(blocks._values[:0], layout=blocks.layout), [matcher])


def test_single_precision_gives_way_where_it_would_lose_nats(rng):
    blocks, matcher = sharp_setting(rng)
    block = blocks.load(0, 3)
    assert matcher.in_sufficient_precision(block) is block
    exact_blocks = ArrayBlocks(
        blocks._values.astype(float), ctf=blocks._ctf.astype(float), layout=blocks.layout, block_size=64
    )
    near_floor = np.full(3, 1e-6)
    low = Matcher.of(matcher.templates, near_floor, blocks.layout)
    exact = Matcher.of(matcher.templates, near_floor, blocks.layout, dtype=np.float64)
    assert low.in_sufficient_precision(block).data.dtype == np.float64
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
def test_duplicates_never_lower_the_objective(rng, as_images, monkeypatch):
    monkeypatch.setattr(sml_clusterer, "MANY_FOLDS", 1)  # ordinary EM alone, which has this law
    monkeypatch.setattr(sml_clusterer, "FEW_FOLDS", 1)
    shape = (5, 16, 16) if as_images else (6, 40)
    originals = 10.0 * rng.standard_normal(shape).astype(np.float32)
    model = SMLClusterer((4, 3), max_iter=40, tol=0, random_state=0)
    model.fit(np.repeat(originals, 25, axis=0))
    same = model.stage_[1:] == model.stage_[:-1]
    steps = np.diff(model.log_posterior_)[same]
    assert steps.min() > -1e-3, f"fell by {-steps.min():.3g} nats an image"
