from dataclasses import replace

import numpy as np
import pytest

from sklearn_cryoem.manifold.blocks import ArrayBlocks, FeatureLayout
from sklearn_cryoem.manifold.derived_blocks import ShellNorms
from sklearn_cryoem.manifold.em import MStep, Schedule, cross_fitted_iterations
from sklearn_cryoem.manifold.expectation import Statistics
from sklearn_cryoem.manifold.fit import FitPlan, fit_states, occupants, with_moves
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.maximisation import Coupling
from sklearn_cryoem.manifold.prior import TURN, DataPower, measure_power, prior_precision, turn_of
from sklearn_cryoem.manifold.state import Start, first_state, random_start

BASIS = LatentBasis((5, 4), (4, 3), 0.75)
SHELL = np.repeat([0, 1, 2], [4, 6, 10])


def noise_blocks(rng, n=160):
    layout = FeatureLayout(SHELL, SHELL)
    return ArrayBlocks(rng.standard_normal((n, 20)), layout=layout, block_size=32)


def states_of(blocks, rng, *, n_cross=15, n_ordinary=0, n_folds=4, n_jobs=1, begun=None):
    """States of cross-fitted EM, and of ordinary EM after it, from a random start."""
    power = measure_power(blocks)
    alpha, n_shells = prior_precision(1.0, BASIS, power, blocks.layout), blocks.layout.n_shells
    m_step = MStep(
        basis=BASIS, alpha=alpha, layout=blocks.layout, noise="shell", dtype=np.float64, n_jobs=n_jobs
    )
    plan = FitPlan(
        m_step=m_step, ordinary=Schedule(n_shells, n_shells, 0, n_ordinary, tol=0.0), n_folds=n_folds,
        crossed=Schedule(n_shells, n_shells, 0, n_cross), mean=power.mean, blur=1.0,
    )  # fmt: skip
    start = first_state(random_start(BASIS, power, blocks.layout, rng=rng), BASIS, n_shells, n_folds)
    return list(fit_states(blocks, plan, start if begun is None else begun))


def test_norms_are_means_over_the_coefficients_of_a_shell(make_blocks, rng):
    blocks, _, ctf = make_blocks(rng)
    pooled, layout = ShellNorms(blocks), blocks.layout
    block = pooled.load(0, layout.n_shells)
    np.testing.assert_array_equal(pooled.layout.norm_index, layout.shell)
    expected = layout.sum_shells(ctf[: len(block)] ** 2) / layout.shell_sizes
    np.testing.assert_allclose(block.norm, expected, rtol=1e-5)
    np.testing.assert_allclose(pooled.load(0, 1).norm, expected[:, :1], rtol=1e-5)


def test_noise_alone_explains_nothing_of_held_out_images(rng):
    blocks = noise_blocks(rng)
    trace = states_of(blocks, np.random.default_rng(0))[14].trace
    ordinary = states_of(blocks, np.random.default_rng(0), n_folds=1, n_ordinary=30)[-1].trace
    entropy = -0.5 * 20 * (1 + np.log(2 * np.pi))  # of white noise of variance 1, per image
    assert trace.objective[-1] < entropy + 1.0  # there are 160 images, so within its error
    # templates that hold the noise of their own images seem to explain it
    assert ordinary.objective[-1] > trace.objective[-1] + 0.2


def test_the_same_bits_for_any_number_of_workers_and_from_any_state(make_blocks, rng):
    blocks = make_blocks(rng)[0]
    if blocks.layout.n_shells == 1:
        blocks = noise_blocks(rng)
    one, two = (
        states_of(blocks, np.random.default_rng(0), n_cross=3, n_ordinary=6, n_jobs=n) for n in (1, 2)
    )
    assert any(state.n_moved is not None for state in one[:-2]) and one[-1].converged is not None
    for begun in one:
        two += states_of(blocks, rng, n_cross=3, n_ordinary=6, begun=begun)[-1:]
    for state in two[len(one) - 1 :]:
        np.testing.assert_array_equal(state.weights, one[-1].weights)
        np.testing.assert_array_equal(state.noise_variance, one[-1].noise_variance)
        assert state.trace == one[-1].trace


def test_every_cross_fitted_iteration_is_a_stage_and_ordinary_ones_follow_in_one(rng):
    trace = states_of(noise_blocks(rng), rng, n_cross=5, n_ordinary=4)[-1].trace
    assert trace.is_held_out == [True] * 5 + [False] * 4
    np.testing.assert_array_equal(trace.stage, [0, 1, 2, 3, 4, 5, 5, 5, 5])
    assert (np.diff(trace.objective)[5:] >= -1e-9).all()


def test_a_node_that_another_could_replace_goes_where_images_are_many():
    # two nodes at 0, one each at 5, 6 and 9; most images at 9, whose heaviest near node is that at 6
    templates = np.array([[0.0], [0.1], [5.0], [6.0], [9.0]])
    mass, chain = np.array([2.0, 6.0, 5.0, 7.0, 20.0]), np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
    found = with_moves([templates, templates + 1.0], mass, np.ones(1), chain, 1)
    expected = np.array([[0.075], [5.0], [6.0], [8.25], [9.75]])  # in the order of the chain
    np.testing.assert_allclose(found, [expected, expected + 1.0])
    np.testing.assert_array_equal(occupants([(1, 3), (0, 1)], chain, 5), [2, 0, 1, 3, 4])
    one = np.array([[0, 1]])  # with two nodes there is nowhere to go
    np.testing.assert_array_equal(with_moves([templates[:2]], mass[:2], np.ones(1), one, 1)[0], templates[:2])


@pytest.mark.parametrize("blur", [1.0, 2.0])  # faint images cannot tell where to go
def test_a_view_without_a_node_of_its_own_gets_that_of_two_in_one_view(rng, blur):
    layout, basis = FeatureLayout(SHELL, SHELL), LatentBasis((4,), (4,), 0.5)
    views = 5.0 * np.array([1.0, 1.2, -1.0, -1.2])[:, None] * np.resize([1.0, -1.0, 1.0], (4, 20))
    views[1::2, :10] *= -1.0
    blocks = ArrayBlocks(np.repeat(views, 40, axis=0) + rng.standard_normal((160, 20)), layout=layout)
    begun = np.stack([views[0], views[0] + 0.1, views[1], 0.5 * (views[2] + views[3])])
    power = measure_power(blocks)
    alpha = prior_precision("auto", basis, power, layout)
    m_step = MStep(basis=basis, alpha=alpha, layout=layout, noise="shell", dtype=np.float64, n_jobs=1)
    plan = FitPlan(
        m_step=m_step, ordinary=Schedule(3, 3, 0, 20, tol=0.0), n_folds=4, crossed=Schedule(3, 3, 0, 5),
        mean=power.mean, blur=blur,
    )  # fmt: skip
    start = Start(np.linalg.lstsq(basis.phi, begun, rcond=None)[0], np.full(3, 30.0))
    end = list(fit_states(blocks, plan, first_state(start, basis, 3, 4)))[-1]
    nearest = np.square((basis.phi @ end.weights)[:, None] - views).sum(axis=2).min(axis=0)
    assert (nearest < 20 * 0.2).all() == (blur == 1.0)


def test_a_state_of_cross_fitted_em_has_templates_near_those_of_its_folds(rng):
    blocks = noise_blocks(rng)
    state = states_of(blocks, rng)[3]
    reached = state.manifold(BASIS, np.ones(3), blocks.layout).templates
    assert state.weights is None
    np.testing.assert_allclose(reached.mean(axis=0), np.mean(state.templates, axis=(0, 1)), atol=0.1)


def test_neighbours_are_alike_at_low_frequency_and_independent_at_high_frequency(rng):
    layout = FeatureLayout(np.arange(40), np.arange(40))
    basis = LatentBasis((15, 15), (12, 12), 0.5)
    coupling = Coupling.of(basis, np.full(40, 2.0), layout, np.zeros(40), TURN)
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
    coupling = Coupling.of(basis, np.full(60, alpha * basis.mean_square), layout, mean, TURN)
    numerator, denominator = rng.standard_normal((3, 60)), rng.uniform(1, 2, (3, 60))
    denominator[2], numerator[2] = 0.0, 0.0  # a node without images
    zeros = Statistics.zeros(1, 3, layout, np.float64).part(0)
    known = replace(zeros, numerator=numerator, denominator=denominator)
    (templates,) = coupling.templates(known, [known], np.full(60, 0.5), layout)
    assert coupling.bases[-1] is None
    np.testing.assert_allclose(templates[2, -1], mean[-1])
    expected = mean[-1] + (numerator[0, -1] - denominator[0, -1] * mean[-1]) / (
        denominator[0, -1] + alpha * 0.5
    )
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


# ---------------------------------------------------------------- the schedule
@pytest.mark.parametrize("max_iter", [1, 2, 3, 10, 100])
def test_shells_grow_until_all_are_in_and_a_short_run_ends_with_them(max_iter):
    schedule = Schedule.ordinary(6, 31, max_iter, 0.0)
    shells = [schedule.shells_at(i) for i in range(max_iter)]
    assert shells == sorted(shells) and shells[-1] == 31 and set(shells[schedule.n_marching :]) == {31}
    assert shells[0] == 6 or max_iter == 1


def test_nothing_to_march_takes_no_iterations():
    assert Schedule.ordinary(1, 1, 100, 0.0).n_marching == 0
    assert Schedule.ordinary(40, 31, 100, 0.0).shells_at(0) == 31


@pytest.mark.parametrize("max_iter", [5, 6, 10, 30, 100, 1000])
def test_cross_fitted_iterations_march_to_their_last_and_leave_room_for_ordinary_ones(max_iter):
    n_cross = cross_fitted_iterations(max_iter)
    assert 0 < n_cross <= 60 and max_iter - n_cross >= max(4, max_iter // 5)
    schedule = Schedule.cross_fitted(3, 90, n_cross)
    shells = [schedule.shells_at(i) for i in range(n_cross)]
    assert shells[-1] == 90 and shells[:-1].count(90) == 0
    assert shells[0] == 3 or n_cross == 1


def test_too_few_iterations_have_none_that_are_cross_fitted():
    assert [cross_fitted_iterations(max_iter) for max_iter in (1, 2, 3, 4)] == [0, 0, 0, 0]
