from functools import partial

import numpy as np
import pytest

from sklearn_cryoem.manifold import derived_blocks
from sklearn_cryoem.manifold import stream as module
from sklearn_cryoem.manifold.blocks import ArrayBlocks, FeatureLayout
from sklearn_cryoem.manifold.classes import class_averages
from sklearn_cryoem.manifold.derived_blocks import ShellNorms, admit
from sklearn_cryoem.manifold.em import MStep, Schedule, em
from sklearn_cryoem.manifold.expectation import sweep
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.prior import (
    measure_moments,
    power_of,
    power_of_stream,
    prior_precision,
    spread_moments,
)
from sklearn_cryoem.manifold.state import first_state, pca_start
from sklearn_cryoem.manifold.stream import advance, begin_stream, resume_stream

BASIS = LatentBasis((5,), (4,), 1.0)
SHELLS = {"noise": "shell", "dtype": np.float64}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def fitted(blocks, rng):
    moments = measure_moments(blocks)
    power = power_of(moments, blocks.layout)
    n_shells, alpha = blocks.layout.n_shells, prior_precision("auto", BASIS, power, blocks.layout)
    start = pca_start(blocks, BASIS, power, n_shells, rng=rng)
    m_step = MStep(basis=BASIS, alpha=alpha, layout=blocks.layout, **SHELLS, n_jobs=None)
    schedule = Schedule.ordinary(n_shells, n_shells, 30, 1e-6)
    *_, state = em(partial(sweep, blocks), m_step, schedule, first_state(start, BASIS, n_shells, 1))
    return state.manifold(BASIS, alpha, blocks.layout), moments


def sums_of(blocks, matcher):
    return sweep(blocks, [matcher]).total()


@pytest.fixture
def begun(make_blocks, rng):
    blocks = make_blocks(rng)[0]
    manifold, moments = fitted(blocks, rng)
    return begin_stream(blocks, manifold, moments, n_folds=2, **SHELLS), manifold, blocks


@pytest.fixture
def small_window(monkeypatch):
    monkeypatch.setattr(derived_blocks, "MAX_IMAGES", 40)
    monkeypatch.setattr(derived_blocks, "MAX_PER_NODE", 0)


def rows_of(blocks):
    return np.concatenate([blocks.load(i, blocks.layout.n_shells).data for i in range(len(blocks))])


def test_the_window_keeps_the_newest_rows_and_lets_every_row_go_once(make_blocks, rng, small_window):
    chunks = [ShellNorms(make_blocks(rng, n=n)[0]) for n in (25, 31, 1, 700, 8, 16)]
    held, gone = None, []
    for chunk in chunks:
        leaving, held = admit(held, chunk, n_nodes=5)
        gone += [rows_of(part) for part in leaving]
        assert 1 <= held.n_samples <= 40
        assert not sum(part.n_samples for part in leaving) % 2 or len(chunk) > 1
    everything = np.concatenate([rows_of(chunk) for chunk in chunks])
    np.testing.assert_array_equal(np.concatenate([*gone, rows_of(held)]), everything)


def test_without_decay_sums_are_those_of_all_images(begun, make_blocks, rng, monkeypatch, small_window):
    _, manifold, first = begun
    monkeypatch.setattr(module, "DECAY", 1.0)
    monkeypatch.setattr(module, "N_ORDINARY_SWEEPS", 1)
    begun = begin_stream(first, manifold, measure_moments(first), n_folds=1, **SHELLS)
    chunk = make_blocks(rng, n=25)[0]
    assert begun.window.n_samples == 40 and begun.past_sums.n_samples == begun.n_past == 20
    done = advance(begun, chunk, manifold, alpha="auto", **SHELLS).stream
    assert done.past_sums.n_samples == done.n_past == 46 and done.window.n_samples == 39 and done.n_seen == 85
    matcher = manifold.matcher(begun.layout, dtype=np.float64)
    expected = sums_of(ShellNorms(first), matcher) + sums_of(ShellNorms(chunk), matcher)
    np.testing.assert_allclose(
        done.window_sums.numerator, sums_of(done.window, matcher).numerator, rtol=1e-10, atol=1e-12
    )
    found = done.past_sums + done.window_sums
    for name in ("numerator", "denominator", "power", "mass", "n_samples"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-10, atol=1e-12)
    assert done.class_counts.sum() == 85


@pytest.mark.parametrize("n_folds", [1, 3])
def test_old_chunks_count_less_and_the_manifold_follows_the_new(
    begun, make_blocks, rng, small_window, n_folds
):
    _, manifold, first = begun
    stream = begin_stream(first, manifold, measure_moments(first), n_folds=n_folds, **SHELLS)
    n_sweeps = module.N_SWEEPS if n_folds > 1 else module.N_ORDINARY_SWEEPS
    for _ in range(4):
        done = advance(stream, make_blocks(rng)[0], manifold, alpha="auto", **SHELLS)
        assert len(done.trace.objective) == n_sweeps and np.isfinite(done.trace.objective).all()
        stream, manifold = done.stream, done.manifold
    assert stream.n_seen == 300 and stream.n_past == 300 - stream.window.n_samples
    assert 60 < stream.past_sums.n_samples < stream.n_past
    np.testing.assert_allclose(stream.past_sums.mass.sum(), stream.past_sums.n_samples, rtol=1e-6)
    n_worth = stream.past_sums.n_samples + stream.window.n_samples
    np.testing.assert_allclose(done.halves.mass.sum(), n_worth, rtol=1e-6)
    assert len(done.labels) == 60
    assert np.isfinite(manifold.weights).all() and (manifold.noise_variance > 0).all()


def test_templates_of_a_fold_hear_nothing_of_its_own_images(begun, make_blocks, rng, monkeypatch):
    stream, manifold, _ = begun
    monkeypatch.setattr(module, "measure_moments", lambda *args, **kwargs: stream.moments)
    monkeypatch.setattr(module, "N_SWEEPS", 2)
    used = []

    def watched(blocks, matchers, split, **options):
        if split == "folds":
            used.append([matcher.templates for matcher in matchers])
        return sweep(blocks, matchers, split, **options)

    monkeypatch.setattr(module, "sweep", watched)
    chunk = ShellNorms(make_blocks(rng, n=40)[0])
    changed = admit(None, chunk, 5)[1].owned()
    own = changed.held.folds(2) == 0  # by the power, which stays
    changed.held.data[own] += rng.standard_normal(changed.held.data[own].shape)
    for blocks in (chunk, changed):
        advance(stream, blocks, manifold, alpha=0.1, **SHELLS)
    (_, before), (_, after) = used[:2], used[2:]
    np.testing.assert_allclose(after[0], before[0], rtol=1e-9, atol=1e-12)
    assert np.abs(after[1] - before[1]).max() > 1e-3


def test_alpha_follows_the_signal_unless_it_is_a_number(begun, make_blocks, rng):
    stream, manifold, _ = begun
    chunk = make_blocks(rng)[0]
    by_data, by_hand = (advance(stream, chunk, manifold, alpha=a, **SHELLS) for a in ("auto", 0.5))
    np.testing.assert_array_equal(by_hand.manifold.alpha, 0.5)
    both = power_of_stream(
        stream.moments + spread_moments(measure_moments(chunk), chunk.layout), stream.layout
    )
    np.testing.assert_allclose(by_data.manifold.alpha, prior_precision("auto", BASIS, both, stream.layout))


def test_chunks_with_and_without_astigmatism_share_their_sums(rng):
    shell = np.repeat([0, 1], [4, 8])
    layouts = [FeatureLayout(shell, i) for i in (np.repeat([0, 1, 2], 4), np.repeat(np.arange(6), 2), shell)]

    def chunk(layout, n=40, has_ctf=True):
        clean = np.sin(np.arange(12) * rng.uniform(-1, 1, (n, 1)))
        ctf = rng.uniform(0.2, 1, (n, layout.n_norms)) if has_ctf else np.ones((n, layout.n_norms))
        values = ctf[:, layout.norm_index] * clean + 0.2 * rng.standard_normal(clean.shape)
        return ArrayBlocks(values, ctf=ctf if has_ctf else None, layout=layout)

    first = chunk(layouts[0])
    manifold, moments = fitted(first, rng)
    stream = begin_stream(first, manifold, moments, n_folds=2, **SHELLS)
    for layout, has_ctf in ((layouts[1], True), (layouts[2], True), (layouts[2], False)):
        done = advance(stream, chunk(layout, has_ctf=has_ctf), manifold, alpha=0.1, **SHELLS)
        stream, manifold = done.stream, done.manifold
    assert stream.n_seen == 160 and np.isfinite(manifold.weights).all()
    assert stream.window.held.norm.shape == (160, 2)
    np.testing.assert_array_equal(stream.window.held.norm[120:], 1.0)


def test_what_a_fit_would_remember_follows_from_its_results(begun, kind):
    stream, manifold, blocks = begun
    layout = blocks.layout
    sums = sweep(blocks, [manifold.matcher(layout, dtype=np.float64)], "halves")
    ridge = manifold.alpha * manifold.noise_variance / layout.information
    halves = np.stack([class_averages(sums, ridge, layout, half) for half in (0, 1)])
    mass, counts = sums.total().mass, np.bincount(np.concatenate(sums.labels), minlength=5)
    again = resume_stream(manifold, measure_moments(blocks), layout, halves, mass, counts, n_folds=2)
    assert (again.n_seen, again.n_past, again.past_sums.n_samples) == (60, 60, 60) and again.window is None
    np.testing.assert_array_equal(again.class_counts, stream.class_counts)
    shells = ShellNorms(blocks)
    expected = sums_of(shells, manifold.matcher(shells.layout, dtype=np.float64))
    if kind in ("plain", "no CTF"):  # then only the split into halves is not known
        np.testing.assert_allclose(again.past_sums.denominator, expected.denominator)
    difference = np.linalg.norm(again.past_sums.numerator - expected.numerator)
    assert difference < 0.25 * np.linalg.norm(expected.numerator)
    np.testing.assert_allclose(again.past_sums.power, expected.power, rtol=0.3)
    done = advance(again, blocks, manifold, alpha="auto", **SHELLS)
    assert done.stream.n_seen == 120 and done.stream.window.n_samples == 60
