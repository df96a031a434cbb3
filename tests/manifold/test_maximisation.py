import warnings

import numpy as np
import pytest
from scipy.linalg import LinAlgWarning

from sklearn_cryoem.manifold.expectation import Matcher, e_step
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.maximisation import log_prior, solve_weights, update_noise


def setting(make_blocks, rng):
    blocks, y, ctf = make_blocks(rng)
    basis, layout = LatentBasis((4, 3), (3, 2), 1.0), blocks.layout
    templates = rng.standard_normal((12, layout.n_features))
    variance = rng.uniform(0.3, 2.0, layout.n_shells)
    matcher = Matcher.of(templates, variance, layout, dtype=np.float64)
    weights = np.concatenate(
        [matcher.posterior(blocks.load(i, layout.n_shells)).responsibilities for i in range(len(blocks))]
    )
    return blocks, y, ctf, basis, variance, weights, e_step(blocks, matcher)


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
    solution = solve_weights(statistics, basis, variance, alpha, layout)
    given = (y, ctf, basis, variance, weights, alpha, layout)
    best = expected_log_posterior(solution, *given)
    step = 1e-3
    for _ in range(20):
        direction = rng.standard_normal(solution.shape)
        sides = [expected_log_posterior(solution + sign * step * direction, *given) for sign in (-1, 1)]
        # a stationary point of a quadratic: both sides fall, by as much
        assert max(sides) < best
        assert sides[0] - best == pytest.approx(sides[1] - best, rel=1e-5)


def test_the_bias_is_free_of_the_prior(make_blocks, rng):
    blocks, y, ctf, basis, variance, _, statistics = setting(make_blocks, rng)
    huge = np.full(blocks.layout.n_shells, 1e12)
    solution = solve_weights(statistics, basis, variance, huge, blocks.layout)
    mean = (ctf * y).sum(axis=0) / (ctf**2).sum(axis=0)
    assert np.abs(solution[:-1]).max() < 1e-8
    np.testing.assert_allclose(solution[-1], mean, rtol=1e-6)
    assert log_prior(np.vstack([0 * solution[:-1], solution[-1]]), huge, blocks.layout) == 0.0


def test_log_prior_is_half_alpha_times_the_squares(make_blocks, rng):
    layout = make_blocks(rng)[0].layout
    weights, alpha = rng.standard_normal((4, layout.n_features)), rng.uniform(size=layout.n_shells)
    expected = -0.5 * (alpha[layout.shell] * weights[:-1] ** 2).sum()
    assert log_prior(weights, alpha, layout) == pytest.approx(expected)


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
    with pytest.warns(LinAlgWarning, match=r"alpha down to 0 and a basis width of 2.*or raise alpha"):
        solution = solve_weights(statistics, basis, ones, zeros, layout)
    assert np.isfinite(solution).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held = solve_weights(statistics, basis, ones, np.full(layout.n_shells, 0.1), layout)
    assert np.isfinite(held).all()


def test_workers_change_no_bit_of_the_weights(make_blocks, rng):
    blocks, _, _, basis, variance, _, statistics = setting(make_blocks, rng)
    alpha = np.ones(blocks.layout.n_shells)
    alone, together = (
        solve_weights(statistics, basis, variance, alpha, blocks.layout, n_jobs=n) for n in (1, 2)
    )
    np.testing.assert_array_equal(alone, together)
