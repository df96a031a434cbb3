import numpy as np
import pytest

from sklearn_cryoem.manifold import stream as module
from sklearn_cryoem.manifold.blocks import ArrayBlocks, FeatureLayout
from sklearn_cryoem.manifold.classes import class_statistics
from sklearn_cryoem.manifold.expectation import e_step
from sklearn_cryoem.manifold.fit import fit_manifold
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.maximisation import solve_weights
from sklearn_cryoem.manifold.prior import measure_moments, power_of, prior_precision
from sklearn_cryoem.manifold.schedule import Schedule
from sklearn_cryoem.manifold.start import pca_start
from sklearn_cryoem.manifold.stream import advance, begin_stream, common_layout, resume_stream

BASIS = LatentBasis((5,), (4,), 1.0)


def fitted(blocks, rng):
    moments = measure_moments(blocks)
    power = power_of(moments, blocks.layout)
    n_shells = blocks.layout.n_shells
    start = pca_start(blocks, BASIS, power, n_shells, rng=rng)
    fit = fit_manifold(
        blocks, BASIS, start, prior_precision("auto", BASIS, power), Schedule.of(n_shells, n_shells, 1.0, 30),
        max_iter=30, tol=1e-6, dtype=np.float64,
    )  # fmt: skip
    return fit.manifold, moments


@pytest.fixture
def begun(make_blocks, rng):
    blocks = make_blocks(rng)[0]
    manifold, moments = fitted(blocks, rng)
    return begin_stream(blocks, manifold, moments, dtype=np.float64), manifold, blocks


def test_without_decay_sums_are_those_of_all_images(begun, make_blocks, rng, monkeypatch):
    stream, manifold, first = begun
    chunk = make_blocks(rng, n=25)[0]
    monkeypatch.setattr(module, "DECAY", 1.0)
    monkeypatch.setattr(module, "SWEEPS", 1)
    done = advance(stream, chunk, manifold, alpha="auto", dtype=np.float64)
    expected = [
        e_step(blocks, manifold.matcher(blocks.layout, dtype=np.float64)) for blocks in (first, chunk)
    ]
    for name in ("cross", "gram", "power", "node_mass", "log_evidence", "n_samples"):
        total = getattr(expected[0], name) + getattr(expected[1], name)
        np.testing.assert_allclose(getattr(done.stream.statistics, name), total, rtol=1e-10, atol=1e-12)
    assert done.stream.n_seen == done.stream.n_effective == 85
    assert len(done.objective) == 1 and done.stream.class_counts.sum() == 85


def test_old_chunks_count_less_and_the_manifold_follows_the_new(begun, make_blocks, rng):
    stream, manifold, _ = begun
    for _ in range(4):
        chunk = make_blocks(rng)[0]
        done = advance(stream, chunk, manifold, alpha="auto", dtype=np.float64)
        assert len(done.objective) == module.SWEEPS and np.isfinite(done.objective).all()
        stream, manifold = done.stream, done.manifold
    assert stream.n_seen == 300 and 60 < stream.n_effective < 300
    np.testing.assert_allclose(stream.statistics.node_mass.sum(), stream.n_effective, rtol=1e-6)
    np.testing.assert_allclose(stream.classes.node_mass.sum(), stream.n_effective, rtol=1e-6)
    assert np.isfinite(manifold.weights).all() and (manifold.noise_variance > 0).all()


def test_alpha_follows_the_signal_unless_it_is_a_number(begun, make_blocks, rng):
    stream, manifold, _ = begun
    chunk = make_blocks(rng)[0]
    by_data, by_hand = (advance(stream, chunk, manifold, alpha=a, dtype=np.float64) for a in ("auto", 0.5))
    np.testing.assert_array_equal(by_hand.manifold.alpha, 0.5)
    both = power_of(stream.moments + measure_moments(chunk), chunk.layout)
    np.testing.assert_allclose(by_data.manifold.alpha, prior_precision("auto", BASIS, both))


def test_chunks_with_and_without_astigmatism_share_their_sums(rng):
    shell = np.repeat([0, 1], [4, 8])
    plain, isotropic, full = (
        FeatureLayout(shell, index) for index in (shell, np.repeat([0, 1, 2], 4), np.repeat(np.arange(6), 2))
    )
    assert common_layout(plain, full).n_norms == 6 and common_layout(isotropic, full).n_norms == 6
    assert common_layout(plain, plain).n_norms == 2

    def chunk(layout, n=40):
        clean = np.sin(np.arange(12) * rng.uniform(-1, 1, (n, 1)))
        ctf = rng.uniform(0.2, 1, (n, layout.n_norms))
        values = ctf[:, layout.norm_index] * clean + 0.2 * rng.standard_normal(clean.shape)
        return ArrayBlocks(values, ctf=ctf, layout=layout)

    first, second = chunk(isotropic), chunk(full)
    manifold, moments = fitted(first, rng)
    done = advance(begin_stream(first, manifold, moments, dtype=np.float64), second, manifold,
                   alpha=0.1, dtype=np.float64)  # fmt: skip
    assert done.stream.layout.n_norms == 6 and done.stream.statistics.gram.shape == (5, 6)
    third = advance(done.stream, chunk(plain), done.manifold, alpha=0.1, dtype=np.float64)
    assert third.stream.n_seen == 120 and np.isfinite(third.manifold.weights).all()


def test_finer_columns_change_no_weights(begun):
    stream, manifold, blocks = begun
    finest = common_layout(
        blocks.layout, FeatureLayout(blocks.layout.shell, np.arange(blocks.layout.n_features))
    )
    refined = module._refine_statistics(stream.statistics, blocks.layout, finest)
    coarse, fine = (
        solve_weights(sums, BASIS, manifold.noise_variance, manifold.alpha, layout)
        for sums, layout in ((stream.statistics, blocks.layout), (refined, finest))
    )
    np.testing.assert_allclose(fine, coarse, rtol=1e-7, atol=1e-9)


def test_what_a_fit_would_remember_follows_from_its_results(begun, kind):
    stream, manifold, blocks = begun
    layout = blocks.layout
    classes = class_statistics(blocks, manifold.matcher(layout, dtype=np.float64))
    ridge = manifold.alpha * manifold.noise_variance / layout.information
    halves = np.stack([classes.averages(ridge, layout, half) for half in (0, 1)])
    again = resume_stream(manifold, stream.moments, layout, halves, classes.node_mass, classes.labels)
    assert (again.n_seen, again.n_effective) == (60, 60)
    np.testing.assert_array_equal(again.class_counts, stream.class_counts)
    if kind in ("plain", "no CTF"):  # then only the split into halves is not known
        np.testing.assert_allclose(again.statistics.gram, stream.statistics.gram)
    difference = np.linalg.norm(again.statistics.cross - stream.statistics.cross)
    assert difference < 0.25 * np.linalg.norm(stream.statistics.cross)
    np.testing.assert_allclose(again.statistics.power, stream.statistics.power, rtol=0.3)
