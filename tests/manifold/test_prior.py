import numpy as np
import pytest

from sklearn_cryoem.manifold.blocks import ArrayBlocks, FeatureLayout
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.prior import DataPower, measure_power, prior_precision, telling_shells

SIGNAL, NOISE = np.array([4.0, 1.0, 0.0]), np.array([3.0, 0.5, 2.0])  # coloured noise, three shells


def seen_through_ctfs(rng, n, *, constant=False, noise=NOISE):
    """Independent signal and noise of known power in each of three shells of 20 coefficients."""
    shell = np.repeat([0, 1, 2], 20)
    layout = FeatureLayout(shell, np.arange(60) // 2)
    mean = rng.standard_normal(60)
    signal = mean + np.sqrt(SIGNAL[shell]) * rng.standard_normal((n, 60))
    ctf = np.full((n, 30), 0.5) if constant else rng.uniform(-1, 1, (n, 30))
    values = ctf[:, layout.norm_index] * signal + np.sqrt(noise[shell]) * rng.standard_normal((n, 60))
    return ArrayBlocks(values, ctf=ctf, layout=layout), mean


def test_signal_and_coloured_noise_are_told_apart_by_the_ctf(rng):
    blocks, mean = seen_through_ctfs(rng, 4000)
    power = measure_power(blocks)
    np.testing.assert_allclose(power.mean, mean, atol=0.35)
    np.testing.assert_allclose(power.signal, SIGNAL, rtol=0.1, atol=0.1)
    np.testing.assert_allclose(power.noise, NOISE, rtol=0.1)


def test_a_shell_without_signal_gets_no_less_than_the_error_of_its_estimate(rng):
    few, many = (measure_power(seen_through_ctfs(rng, n)[0]).signal[2] for n in (200, 5000))
    # error = sqrt(2 / (n values x variance of c^2)) x noise; c^2 of a uniform c has variance 4 / 45
    floor = [NOISE[2] * np.sqrt(2 / (n * 20 * 4 / 45)) for n in (200, 5000)]
    assert few >= 0.9 * floor[0] and 0.9 * floor[1] <= many <= 5 * floor[1]


def test_without_a_spread_of_ctfs_the_quietest_shell_is_the_white_noise(rng):
    blocks, _ = seen_through_ctfs(rng, 4000, constant=True, noise=np.full(3, 2.0))
    power = measure_power(blocks)
    np.testing.assert_allclose(power.signal[:2], SIGNAL[:2], rtol=0.2)
    assert 0 < power.signal[2] < 0.2


def test_all_variance_of_plain_vectors_is_signal(rng):
    values = 5.0 + 3.0 * rng.standard_normal((5000, 4))
    power = measure_power(ArrayBlocks(values))
    np.testing.assert_allclose(power.signal, [9.0], rtol=0.05)
    np.testing.assert_allclose(power.noise, [0.0], atol=1e-12)


def test_constant_data_still_have_a_finite_prior():
    blocks = ArrayBlocks(np.full((10, 3), 2.0))
    power = measure_power(blocks)
    assert np.isfinite(prior_precision("auto", LatentBasis((3,), (2,), 1.0), power, blocks.layout)).all()


def test_automatic_alpha_gives_templates_the_variance_of_the_signal(rng):
    blocks = seen_through_ctfs(rng, 2000)[0]
    power, layout, basis = measure_power(blocks), blocks.layout, LatentBasis((6, 6), (4, 4), 1.0)
    alpha = prior_precision("auto", basis, power, layout)
    draws = rng.standard_normal((20000, 16)) / np.sqrt(alpha[0])
    assert (draws @ basis.phi[:, :-1].T).var() == pytest.approx(power.signal[0], rel=0.05)
    np.testing.assert_array_equal(prior_precision(0.3, basis, power, layout), [0.3, 0.3, 0.3])
    mean = np.average(power.signal, weights=layout.shell_sizes)  # the paper has one for all
    one = prior_precision("auto", LatentBasis((6, 6), (4, 4), 1.0, has_paper_prior=True), power, layout)
    np.testing.assert_allclose(one, basis.mean_square / mean)


def test_workers_change_no_bit(rng):
    blocks, _ = seen_through_ctfs(rng, 2000)
    np.testing.assert_array_equal(measure_power(blocks).signal, measure_power(blocks, n_jobs=2).signal)


def power_with(ratio, noise=2.0, error=1e-6):
    """Power of shells with this signal-to-noise ratio."""
    ratio = np.asarray(ratio, dtype=float)
    signal, noise = noise * ratio, np.full(len(ratio), noise)
    return DataPower(np.zeros(0), signal + noise, signal, noise, np.full(len(ratio), error))


def shells_of(sizes):
    shell = np.repeat(np.arange(len(sizes)), sizes)
    return FeatureLayout(shell, shell)


def test_telling_shells_are_those_of_the_formula():
    sizes, ratio, n = np.array([4, 8, 12, 16, 20]), np.array([2.0, 0.5, 0.1, 0.02, 1e-4]), 10.0
    # Eq. (3.15), shell by shell
    telling = [
        size * (i + 1) ** 2 * min(r, 1.0) * n * min(r, 1.0) / (1.0 + n * min(r, 1.0))
        for i, (size, r) in enumerate(zip(sizes, ratio, strict=True))
    ]
    share = np.cumsum(telling) / np.sum(telling)
    assert share[2] < 0.99 < share[3]  # so the fourth shell is needed, and the fifth is not
    assert telling_shells(power_with(ratio), shells_of(sizes), n) == 4


def test_signal_within_its_error_tells_nothing_and_none_at_all_leaves_every_shell():
    sizes, ratio = [4, 8, 12], [0.5, 0.2, 0.2]
    assert telling_shells(power_with(ratio), shells_of(sizes), 10.0) == 3
    power = power_with(ratio)
    power.error[2] = power.signal[2]
    assert telling_shells(power, shells_of(sizes), 10.0) == 2
    power.error[:] = power.signal
    assert telling_shells(power, shells_of(sizes), 10.0) == 3
