import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import LinAlgWarning

from sklearn_cryoem.manifold import maximisation
from sklearn_cryoem.manifold.expectation import Matcher, sweep
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.maximisation import (
    conjugate_gradients,
    solve_systems,
    solve_weights,
    update_noise,
)
from sklearn_cryoem.manifold.prior import log_prior

SMALL, LARGE = LatentBasis((6, 5), (4, 3), 0.75), LatentBasis((12, 10), (9, 8), 0.75)


def setting(make_blocks, rng):
    blocks, y, ctf = make_blocks(rng)
    basis, layout = LatentBasis((4, 3), (3, 2), 1.0), blocks.layout
    templates = rng.standard_normal((12, layout.n_features))
    variance = rng.uniform(0.3, 2.0, layout.n_shells)
    matcher = Matcher.of(templates, variance, layout, dtype=np.float64)
    weights = np.concatenate(
        [matcher.posterior(blocks.load(i, layout.n_shells)).responsibilities for i in range(len(blocks))]
    )
    return blocks, y, ctf, basis, variance, weights, sweep(blocks, [matcher]).total()


def expected_log_posterior(solution, y, ctf, basis, variance, weights, alpha, layout):
    """What the M-step maximises, image by image: Eq. [paper 10] as a plain sum."""
    templates = basis.phi @ solution
    misfit = (y[:, None, :] - ctf[:, None, :] * templates) ** 2 / variance[layout.shell]
    prior = (alpha[layout.shell] * solution[:-1] ** 2).sum()
    return -0.5 * layout.information * (weights[:, :, None] * misfit).sum() - 0.5 * prior


def test_weights_are_the_maximum_of_the_expected_log_posterior(make_blocks, rng):
    blocks, y, ctf, basis, variance, weights, statistics = setting(make_blocks, rng)
    layout = blocks.layout
    alpha = rng.uniform(0.1, 3.0, layout.n_shells)
    solution = solve_weights(statistics.numerator, statistics.denominator, basis, variance, alpha, layout)
    given = (y, ctf, basis, variance, weights, alpha, layout)
    best = expected_log_posterior(solution, *given)
    step = 1e-3
    for _ in range(20):
        direction = rng.standard_normal(solution.shape)
        sides = [expected_log_posterior(solution + sign * step * direction, *given) for sign in (-1, 1)]
        # a stationary point of a quadratic: both sides fall, by as much
        assert max(sides) < best
        assert sides[0] - best == pytest.approx(sides[1] - best, rel=1e-5)


def test_the_bias_is_free_of_the_prior_unless_it_has_one(make_blocks, rng):
    blocks, y, ctf, basis, variance, _, statistics = setting(make_blocks, rng)
    huge = np.full(blocks.layout.n_shells, 1e12)
    solution, none = (
        solve_weights(statistics.numerator, statistics.denominator, each, variance, huge, blocks.layout)
        for each in (basis, replace(basis, has_paper_prior=True))
    )
    assert np.abs(none).max() < 1e-8
    mean = (ctf * y).sum(axis=0) / (ctf**2).sum(axis=0)
    assert np.abs(solution[:-1]).max() < 1e-8
    np.testing.assert_allclose(solution[-1], mean, rtol=1e-6)
    assert log_prior(np.vstack([0 * solution[:-1], solution[-1]]), huge, basis, blocks.layout) == 0.0


def test_log_prior_is_half_alpha_times_the_squares(make_blocks, rng):
    layout, basis = make_blocks(rng)[0].layout, LatentBasis((4,), (3,), 1.0)
    weights, alpha = rng.standard_normal((4, layout.n_features)), rng.uniform(size=layout.n_shells)
    each = -0.5 * (alpha[layout.shell] * weights**2).sum(axis=1)
    assert log_prior(weights, alpha, basis, layout) == pytest.approx(each[:-1].sum())
    paper = replace(basis, has_paper_prior=True)
    assert log_prior(weights, alpha, paper, layout) == pytest.approx(each.sum())


@pytest.mark.parametrize("noise", ["white", "shell"])
def test_noise_from_statistics_is_the_residual_image_by_image(make_blocks, rng, noise):
    blocks, y, ctf, _, _, weights, statistics = setting(make_blocks, rng)
    layout = blocks.layout
    templates = rng.standard_normal((12, layout.n_features))
    misfit = weights[:, :, None] * (y[:, None, :] - ctf[:, None, :] * templates) ** 2  # (n, K, P)
    if noise == "white":
        expected = np.full(layout.n_shells, misfit.sum() / y.size)
    else:
        groups = [layout.shell == shell for shell in range(layout.n_shells)]
        expected = [misfit[:, :, group].sum() / (len(y) * group.sum()) for group in groups]
    floor = np.zeros(layout.n_shells)
    np.testing.assert_allclose(update_noise(statistics, templates, layout, noise, floor), expected)
    high = np.full(layout.n_shells, 1e6)
    np.testing.assert_array_equal(update_noise(statistics, templates, layout, noise, high), high)


def test_a_singular_system_gets_its_least_norm_solution_and_a_warning_with_numbers(make_blocks, rng):
    blocks, *_, statistics = setting(make_blocks, rng)
    layout = blocks.layout
    basis = LatentBasis((4, 3), (6, 6), 2.0)  # 37 functions on 12 nodes
    ones, zeros = np.ones(layout.n_shells), np.zeros(layout.n_shells)
    with pytest.warns(LinAlgWarning, match=r"alpha down to 0; they got .*or raise alpha"):
        solution = solve_weights(statistics.numerator, statistics.denominator, basis, ones, zeros, layout)
    assert np.isfinite(solution).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held = solve_weights(
            statistics.numerator, statistics.denominator, basis, ones, np.full(layout.n_shells, 0.1), layout
        )
    assert np.isfinite(held).all()


def test_workers_change_no_bit_of_the_weights(make_blocks, rng):
    blocks, _, _, basis, variance, _, statistics = setting(make_blocks, rng)
    alpha, sums = np.ones(blocks.layout.n_shells), (statistics.numerator, statistics.denominator)
    given = (*sums, basis, variance, alpha, blocks.layout)
    alone, together = (solve_weights(*given, n_jobs=n) for n in (1, 2))
    np.testing.assert_array_equal(alone, together)


def systems(rng, n_systems=30, spread=1.0, basis=SMALL):
    """Systems as CTFs make them: every node has a few images, each seen through its own CTF."""
    phi = basis.phi
    images = rng.poisson(5.0, len(phi))
    denominator = np.stack([(rng.uniform(1 - spread, 1, (n, n_systems)) ** 2).sum(axis=0) for n in images])
    column = np.repeat(np.arange(n_systems), 2)
    return phi, denominator, rng.standard_normal((phi.shape[1], len(column))), column


def free_bias(phi, ridge):
    """Ridge of all weights but the last."""
    return np.append(np.full(phi.shape[1] - 1, ridge), 0.0)


def naive(phi, denominator, ridge, right, column):
    prior = np.diag(free_bias(phi, ridge))
    pairs = [
        np.linalg.solve(phi.T * denominator[:, q] @ phi + prior, right[:, i]) for i, q in enumerate(column)
    ]  # fmt: skip
    return np.stack(pairs, axis=1)


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
def test_both_ways_are_the_plain_solution(rng, ridge, spread):
    phi, denominator, right, column = systems(rng, spread=spread)
    expected = naive(phi, denominator, ridge, right, column)
    scale = np.abs(expected).max()
    together = conjugate_gradients(phi, denominator, free_bias(phi, ridge), right, column)
    one_by_one = maximisation._one_by_one(phi, denominator, free_bias(phi, ridge), right, column)
    np.testing.assert_allclose(together, expected, atol=1e-7 * scale)
    np.testing.assert_allclose(one_by_one.weights, expected, atol=1e-7 * scale)
    assert one_by_one.n_singular == 0


def test_the_cheaper_way_is_taken(rng, monkeypatch):
    calls = []
    monkeypatch.setattr(
        maximisation, "conjugate_gradients", lambda *given: calls.append(given) or conjugate_gradients(*given)
    )
    for n_systems, expected in ((1, 0), (3, 0), (200, 1)):
        calls.clear()
        phi, denominator, right, column = systems(rng, n_systems, basis=LARGE)
        if n_systems == 3:  # a shell without astigmatism: few systems of many features
            column = np.repeat(np.arange(3), 40)
            right = rng.standard_normal((phi.shape[1], 120))
        solution = solve_systems(phi, denominator, free_bias(phi, 0.5), right, column)
        assert len(calls) == expected
        np.testing.assert_allclose(solution.weights, naive(phi, denominator, 0.5, right, column), atol=1e-8)


def test_nodes_without_images_and_right_sides_of_zero_are_solved_together(rng):
    phi, denominator, right, column = systems(rng, 200)
    denominator[::2] = 0.0
    right[:, 4:7] = 0.0
    solution = solve_systems(phi, denominator, free_bias(phi, 0.5), right, column)
    np.testing.assert_allclose(solution.weights, naive(phi, denominator, 0.5, right, column), atol=1e-9)


def test_singular_systems_are_solved_one_by_one(rng):
    phi, denominator, right, column = systems(rng, 200)
    denominator[3:] = 0.0  # three nodes with images, thirteen functions, no prior
    assert conjugate_gradients(phi, denominator, free_bias(phi, 0.0), right, column) is None
    right = phi.T @ (denominator[:, column] * 1.0)
    solution = solve_systems(phi, denominator, free_bias(phi, 0.0), right, column)
    assert solution.n_singular > 0 and np.isfinite(solution.weights).all()
    np.testing.assert_allclose((phi @ solution.weights)[:3], 1.0, atol=1e-4)


def test_systems_that_have_nothing_in_common_are_left_to_the_direct_way(rng):
    phi, denominator, right, column = systems(rng, 200)
    denominator *= 10.0 ** rng.uniform(-9, 9, denominator.shape)
    assert conjugate_gradients(phi, denominator, free_bias(phi, 1e-6), right, column) is None
    solution = solve_systems(phi, denominator, free_bias(phi, 1e-6), right, column)
    residual = phi.T @ (denominator[:, column] * (phi @ solution.weights)) - right
    assert np.isfinite(residual).all()
