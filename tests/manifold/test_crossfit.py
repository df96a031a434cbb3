import numpy as np
import pytest

from sklearn_cryoem.manifold.blocks import ArrayBlocks, FeatureLayout
from sklearn_cryoem.manifold.coupling import Coupling, turn_of
from sklearn_cryoem.manifold.crossfit import ShellNorms, cross_fit, fold_statistics
from sklearn_cryoem.manifold.expectation import Matcher, Statistics, e_step
from sklearn_cryoem.manifold.fit import fit_manifold
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.prior import DataPower, measure_power, prior_precision
from sklearn_cryoem.manifold.schedule import Schedule
from sklearn_cryoem.manifold.start import random_start

BASIS = LatentBasis((5, 4), (4, 3), 0.75)
SHELL = np.repeat([0, 1, 2], [4, 6, 10])


def noise_blocks(rng, n=160):
    layout = FeatureLayout(SHELL, SHELL)
    return ArrayBlocks(rng.standard_normal((n, 20)), layout=layout, block_size=32)


def fitted(blocks, rng, n_iterations=15, **options):
    power = measure_power(blocks)
    alpha = prior_precision(1.0, BASIS, power)
    start = random_start(BASIS, power, blocks.layout, rng=rng)
    schedule = Schedule(3, 3, 1.0, 0)
    options = {"n_folds": 4, "dtype": np.float64, **options}
    found, trace = cross_fit(blocks, BASIS, start, power.mean, alpha, schedule, n_iterations, **options)
    return found, trace, start, alpha, schedule


def test_norms_are_means_over_the_coefficients_of_a_shell(make_blocks, rng):
    blocks, _, ctf = make_blocks(rng)
    pooled, layout = ShellNorms(blocks), blocks.layout
    block = pooled.load(0, layout.n_shells)
    np.testing.assert_array_equal(pooled.layout.norm_index, layout.shell)
    if block.norm is not None:
        expected = layout.sum_shells(ctf[: len(block)] ** 2) / layout.shell_sizes
        np.testing.assert_allclose(block.norm, expected, rtol=1e-5)
        np.testing.assert_allclose(pooled.load(0, 1).norm, expected[:, :1], rtol=1e-5)


def test_folds_with_the_same_templates_add_up_to_the_ordinary_statistics(make_blocks, rng):
    blocks = ShellNorms(make_blocks(rng)[0])
    layout = blocks.layout
    templates, variance = rng.standard_normal((7, layout.n_features)), np.ones(layout.n_shells)
    matcher = Matcher.of(templates, variance, layout, dtype=np.float64)
    total = fold_statistics(blocks, [matcher] * 3, layout.n_shells).total()
    whole = e_step(blocks, matcher)
    for name in ("cross", "gram", "power", "node_mass", "log_evidence", "n_samples"):
        np.testing.assert_allclose(getattr(total, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    assert isinstance(total, Statistics)


def test_noise_alone_explains_nothing_of_held_out_images(rng):
    blocks = noise_blocks(rng)
    _, trace, start, alpha, schedule = fitted(blocks, rng)
    ordinary = fit_manifold(blocks, BASIS, start, alpha, schedule, max_iter=30, tol=0.0, dtype=np.float64)
    entropy = -0.5 * 20 * (1 + np.log(2 * np.pi))  # of white noise of variance 1, per image
    assert trace.objective[-1] < entropy + 1.0  # there are 160 images, so within its error
    # templates that hold the noise of their own images seem to explain it
    assert ordinary.trace.objective[-1] > trace.objective[-1] + 0.3


def test_the_same_bits_for_any_number_of_workers(make_blocks, rng):
    blocks = make_blocks(rng)[0]
    if blocks.layout.n_shells == 1:
        blocks = noise_blocks(rng)
    one, two = (
        fitted(blocks, np.random.default_rng(0), n_iterations=4, n_jobs=n_jobs)[:2] for n_jobs in (1, 2)
    )
    np.testing.assert_array_equal(one[0].weights, two[0].weights)
    np.testing.assert_array_equal(one[0].noise_variance, two[0].noise_variance)
    assert one[1].objective == two[1].objective


def test_every_cross_fitted_iteration_is_a_stage_and_ordinary_ones_follow_in_one(rng):
    blocks = noise_blocks(rng)
    start, trace, _, alpha, schedule = fitted(blocks, rng, n_iterations=5)
    assert trace.is_held_out == [True] * 5
    whole = fit_manifold(
        blocks, BASIS, start, alpha, schedule, max_iter=4, tol=0.0, dtype=np.float64, trace=trace
    ).trace
    np.testing.assert_array_equal(whole.stage, [0, 1, 2, 3, 4, 5, 5, 5, 5])
    assert (np.diff(whole.objective)[5:] >= -1e-9).all()


def test_neighbours_are_alike_at_low_frequency_and_independent_at_high_frequency(rng):
    layout = FeatureLayout(np.arange(40), np.arange(40))
    basis = LatentBasis((15, 15), (12, 12), 0.5)
    coupling = Coupling.of(basis, np.full(40, 2.0), layout, np.zeros(40))
    likeness = []
    for phi in coupling.bases:
        shape = np.eye(225) if phi is None else phi[:, :-1]
        covariance = shape @ shape.T
        likeness.append(covariance[112, 113] / covariance[112, 112])
    assert likeness[0] > 0.9 and likeness[-1] == 0.0
    assert (np.diff(likeness) <= 1e-9).all()
    # templates vary as much as with the basis given and its alpha, whatever the shell
    wide = coupling.bases[0]
    assert (wide[:, :-1] ** 2).sum(axis=1).mean() / coupling.alpha[0] == pytest.approx(basis.mean_square / 2)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_independent_nodes_are_wiener_averages_about_the_mean(rng, alpha):
    layout = FeatureLayout(np.arange(60), np.arange(60))
    basis, mean = LatentBasis((3, 1), (3, 1), 0.5), rng.standard_normal(60)
    coupling = Coupling.of(basis, np.full(60, alpha * basis.mean_square), layout, mean)
    cross, gram = rng.standard_normal((3, 60)), rng.uniform(1, 2, (3, 60))
    gram[2], cross[2] = 0.0, 0.0  # a node without images
    sums = Statistics(cross, gram, np.ones(60), np.ones(3), 0.0, 3)
    templates = coupling.templates(sums, np.full(60, 0.5), layout, n_jobs=1)
    assert coupling.bases[-1] is None
    np.testing.assert_allclose(templates[2, -1], mean[-1])
    expected = mean[-1] + (cross[0, -1] - gram[0, -1] * mean[-1]) / (gram[0, -1] + alpha * 0.5)
    np.testing.assert_allclose(templates[0, -1], expected)


@pytest.mark.parametrize(
    ("nats", "turn"), [(50.0, 2.0), (6.0, 2.0), (3.0, 2.0 * 2**0.5), (1.5, 4.0), (0.1, 4.0)]
)
def test_views_of_unclear_images_must_turn_further_until_they_differ(nats, turn):
    layout = FeatureLayout(np.repeat([0, 1], [100, 300]), np.arange(400), information=0.5)
    ratio = nats / 100.0  # in both shells: 0.5 / 2 x 400 x ratio nats, Eq. (3.15)
    noise, none = np.full(2, 3.0), np.zeros(0)
    power = DataPower(none, noise * (1 + ratio), noise * ratio, noise, np.full(2, 1e-9))
    assert turn_of(power, layout) == pytest.approx(turn)
