"""Fourier rings against their definition, the resolution read off them, the effective number of classes."""

import numpy as np
import pytest

from sklearn_cryoem.metrics import (
    classes,
    effective_classes,
    effective_count,
    fourier_ring_correlation,
    resolution_from_frc,
)


def plain_frc(one, other):
    box = len(one)
    k = np.fft.fftfreq(box, 1 / box)
    ring = np.rint(np.hypot(k[:, None], k))
    f, g = np.fft.fft2(one), np.fft.fft2(other)
    curve = []
    for r in range(box // 2 + 1):
        a, b = f[ring == r], g[ring == r]
        curve.append((a * b.conj()).sum().real / np.sqrt((abs(a) ** 2).sum() * (abs(b) ** 2).sum()))
    return np.array(curve)


@pytest.mark.parametrize("box", [16, 17])
def test_correlation_is_its_definition_ring_by_ring(box, rng):
    one, other = rng.standard_normal((2, 3, box, box))
    other += one
    curves = fourier_ring_correlation(one, other)
    assert curves.shape == (3, box // 2 + 1)
    for curve, a, b in zip(curves, one, other, strict=True):
        np.testing.assert_allclose(curve, plain_frc(a, b), atol=1e-12)


def test_limits(rng):
    image = rng.standard_normal((32, 32))
    np.testing.assert_allclose(fourier_ring_correlation(image, 7.0 * image), 1.0)
    np.testing.assert_allclose(fourier_ring_correlation(image, -image), -1.0)
    np.testing.assert_array_equal(fourier_ring_correlation(image, np.zeros_like(image)), 0.0)
    noise = fourier_ring_correlation(rng.standard_normal((200, 32, 32)), rng.standard_normal((200, 32, 32)))
    assert np.abs(noise.mean(axis=0)[3:]).max() < 0.05


def test_half_set_correlation_is_snr_over_one_plus_snr(rng):
    signal = rng.standard_normal((300, 32, 32))
    halves = [signal + np.sqrt(1 / 3) * rng.standard_normal(signal.shape) for _ in range(2)]
    curve = fourier_ring_correlation(*halves).mean(axis=0)
    np.testing.assert_allclose(curve[4:], 3.0 / 4.0, atol=0.02)


def test_resolution_is_interpolated_at_the_first_crossing():
    curve = [1.0, 1.0, 0.9, 0.543, 0.143 - 0.1, 0.8, 0.0]
    # between rings 3 and 4, four fifths of the way from 0.543 to 0.043
    assert resolution_from_frc(curve, 2.0, 12) == pytest.approx(12 * 2.0 / 3.8)
    assert resolution_from_frc(curve, 2.0, 12, threshold=0.9 - 0.357 / 2) == pytest.approx(12 * 2.0 / 2.5)


def test_resolution_at_the_ends():
    assert resolution_from_frc(np.ones(9), 3.0, 16) == 6.0  # Nyquist: nothing finer can be told
    assert resolution_from_frc([1.0, 0.1, 0.9, 0.9], 3.0, 6) == np.inf
    many = resolution_from_frc([[1, 1, 1, 0.0], [1, 0, 0, 0], [1, 1, 0.0, 1]], 1.0, 6, threshold=0.5)
    np.testing.assert_allclose(many, [6 / 2.5, np.inf, 6 / 1.5])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="Bring both to one box first"):
        fourier_ring_correlation(np.zeros((8, 8)), np.zeros((9, 9)))


def test_effective_classes_count_and_weigh():
    assert effective_classes(np.repeat(np.arange(7), 20)) == pytest.approx((7, 7.0))
    occupied, perplexity = effective_classes([0] * 75 + [4] * 25 + [-1] * 50)
    assert occupied == 2
    assert perplexity == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))
    assert effective_classes([-1, -1]) == (0, 0.0)
    assert effective_classes([3, 3]).perplexity == pytest.approx(1.0)


def test_effective_count_is_the_number_of_equal_classes():
    assert effective_count([5, 5, 5, 0]) == pytest.approx(3.0)
    assert effective_count([8, 0, 0]) == pytest.approx(1.0)
    assert 1.0 < effective_count([99, 1]) < 1.1
    assert effective_count([]) == 0.0


def test_resolutions_of_classes_are_computed_for_a_few_at_once(rng, monkeypatch):
    first = rng.standard_normal((5, 12, 12)).astype(np.float32)
    second = first + 0.3 * rng.standard_normal((5, 12, 12)).astype(np.float32)
    whole = classes.class_resolution(first, second, 2.0, 5)
    monkeypatch.setattr(classes, "FRC_PIXELS", 2 * 12**2)
    np.testing.assert_array_equal(classes.class_resolution(first, second, 2.0, 5), whole)
    curve = fourier_ring_correlation(first[3], second[3])[:6]
    assert whole[3] == resolution_from_frc(curve, 2.0, 12)
