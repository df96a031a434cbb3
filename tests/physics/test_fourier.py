"""Half-plane features: each conjugate pair once, in the right place, with the right scale."""

import numpy as np
import pytest

from sklearn_cryoem.physics.fourier import (
    fourier_features,
    fourier_resize,
    half_plane,
    images_from_features,
    resample,
)

BOXES = [8, 9, 16, 21]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("k_max", [None, 1, 2.9, 3.0, 100])
def test_every_conjugate_pair_is_kept_once_and_nothing_else(box, k_max):
    plane = half_plane(box, k_max)
    limit = (box - 1) // 2 if k_max is None else min(k_max, (box - 1) // 2)
    everything = {
        (kx, ky) for kx in range(-box, box) for ky in range(-box, box) if 0 < kx**2 + ky**2 <= limit**2
    }
    kept = set(zip(plane.kx.tolist(), plane.ky.tolist(), strict=True))
    mirrored = {(-kx, -ky) for kx, ky in kept}
    assert len(kept) == plane.n_coefficients, "a coefficient is listed twice"
    assert not kept & mirrored, "both members of a pair are kept"
    assert kept | mirrored == everything
    assert max(abs(plane.kx).max(), abs(plane.ky).max()) < box / 2, "Nyquist is kept"


@pytest.mark.parametrize("box", BOXES)
def test_coefficients_ascend_in_radius_so_that_a_limit_is_a_prefix(box):
    plane = half_plane(box)
    assert (np.diff(plane.radius) >= 0).all()
    for k_max in (1.0, 2.0, 2.5, 3.0):
        smaller = half_plane(box, k_max)
        n_kept = smaller.n_coefficients
        assert n_kept == (plane.radius <= k_max).sum()
        np.testing.assert_array_equal(smaller.kx, plane.kx[:n_kept])
        np.testing.assert_array_equal(smaller.ky, plane.ky[:n_kept])
    np.testing.assert_array_equal(plane.shell, np.rint(np.hypot(plane.kx, plane.ky)))
    np.testing.assert_allclose(
        np.tan(plane.azimuth[plane.kx > 0]), (plane.ky / np.maximum(plane.kx, 1))[plane.kx > 0]
    )


@pytest.mark.parametrize("box", BOXES)
def test_features_are_the_direct_sum_about_the_centre_pixel(box, rng, direct_transform):
    images = rng.standard_normal((3, box, box)).astype(np.float32)
    plane = half_plane(box)
    k = (
        np.broadcast_to(plane.kx, (3, plane.n_coefficients)),
        np.broadcast_to(plane.ky, (3, plane.n_coefficients)),
    )
    features = fourier_features(images, plane)
    assert features.dtype == np.complex64
    np.testing.assert_allclose(features, np.sqrt(2.0) * direct_transform(images, *k), atol=2e-5)


@pytest.mark.parametrize("box", BOXES)
def test_a_symmetric_image_about_the_centre_pixel_has_real_features(box):
    images = np.zeros((1, box, box), dtype=np.float32)
    images[0, box // 2, box // 2] = 1.0
    features = fourier_features(images, half_plane(box))
    np.testing.assert_allclose(features, np.sqrt(2.0) / box, atol=1e-6)


def test_white_noise_has_its_variance_in_every_real_feature(rng):
    variance, n_images = 2.5, 4000
    images = rng.normal(0.0, np.sqrt(variance), (n_images, 9, 9)).astype(np.float32)
    features = fourier_features(images, half_plane(9))
    observed = features.view(np.float32).var(axis=0)  # (2 J,), real and imaginary parts
    standard_error = variance * np.sqrt(2.0 / n_images)
    assert np.abs(observed - variance).max() < 5.0 * standard_error
    correlation = np.corrcoef(features.view(np.float32).T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 6.0 / np.sqrt(n_images)


@pytest.mark.parametrize("box", BOXES)
def test_features_and_images_are_inverse_and_keep_the_sum_of_squares(box, rng):
    plane = half_plane(box)
    shape = (2, plane.n_coefficients)
    features = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    images = images_from_features(features, plane)
    np.testing.assert_allclose(fourier_features(images, plane), features, atol=1e-5)
    np.testing.assert_allclose((images**2).sum(axis=(1, 2)), (np.abs(features) ** 2).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(images.mean(axis=(1, 2)), 0.0, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(16, 12), (16, 11), (15, 11), (15, 8), (12, 16), (11, 16), (9, 9)])
def test_resizing_keeps_mean_and_low_frequencies(old, new, rng):
    images = (rng.standard_normal((2, old, old)) + 3.0).astype(np.float32)
    resized = fourier_resize(images, new)
    assert resized.shape == (2, new, new)
    np.testing.assert_allclose(resized.mean(axis=(1, 2)), images.mean(axis=(1, 2)), rtol=1e-5)
    k_max = (min(old, new) - 1) // 2
    before = fourier_features(images, half_plane(old, k_max))
    after = fourier_features(resized, half_plane(new, k_max))
    # pixel values keep their scale, so the orthonormal transform scales with the box
    np.testing.assert_allclose(after, before * (new / old), atol=2e-5)


@pytest.mark.parametrize(("old", "new"), [(32, 20), (33, 20), (32, 21), (20, 32), (21, 32)])
def test_resizing_leaves_the_centre_pixel_in_the_centre(old, new, blob_image):
    resized = fourier_resize(blob_image(old, width=2.0)[None], new)[0]
    np.testing.assert_allclose(resized, blob_image(new, width=2.0), atol=0.03)  # heights are up to 2


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="Ask for a finer resolution"):
        half_plane(16, 0.5)


# ---------------------------------------------------------------- resampling by any ratio
def wave(box, pixel_size, period, angle):
    """A plane wave of a period in Angstrom, its crest on the centre pixel."""
    axis = (np.arange(box) - box // 2) * pixel_size
    return np.cos(2 * np.pi / period * (np.cos(angle) * axis + np.sin(angle) * axis[:, None]))


def blob(box, pixel_size, width=12.0, shift=(4.0, -7.0)):
    axis = (np.arange(box) - box // 2) * pixel_size
    squared = (axis - shift[0]) ** 2 + (axis[:, None] - shift[1]) ** 2
    return np.exp(-squared / (2 * width**2))


@pytest.mark.parametrize(
    ("old", "size", "box", "new_size"), [(64, 3.0, 48, 3.9), (65, 3.0, 40, 4.7), (64, 3.0, 33, 5.1)]
)
def test_what_both_hold_is_the_same_picture(old, size, box, new_size):
    images = blob(old, size)[None].astype(np.float32)
    resampled = resample(images, box, new_size / size)
    np.testing.assert_allclose(resampled[0] * size / new_size, blob(box, new_size), atol=2e-3)


@pytest.mark.parametrize("box", [32, 64])
def test_a_whole_ratio_is_a_crop_of_the_transform(rng, box):
    images = rng.normal(size=(3, 64, 64)).astype(np.float32)
    if box == 64:
        np.testing.assert_array_equal(resample(images, 64, 1.0), images)
        np.testing.assert_array_equal(resample(images, 40, 1.0), images[:, 12:52, 12:52])
        return
    expected = 2.0 * fourier_resize(images, 32)
    np.testing.assert_allclose(resample(images, 32, 2.0), expected, atol=2e-5)


def test_detail_that_the_new_pixels_cannot_hold_is_gone():
    image = wave(96, 2.0, 192.0 / 40, 0.0)[None].astype(np.float32)  # 4.8 A; 3 A pixels end at 6 A
    assert np.abs(resample(image, 64, 1.5)).max() < 1e-4
    kept = wave(96, 2.0, 192.0 / 20, 0.0)[None].astype(np.float32)
    np.testing.assert_allclose(resample(kept, 64, 1.5)[0] / 1.5, wave(64, 3.0, 9.6, 0.0), atol=1e-4)


@pytest.mark.parametrize("ratio", [1.0, 1.13, 1.5, 2.2])
def test_white_noise_keeps_its_variance(rng, ratio):
    images = rng.normal(size=(60, 64, 64)).astype(np.float32)
    assert resample(images, int(64 / ratio), ratio).std() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(("box", "ratio"), [(16, 0.9), (0, 1.0)])
def test_what_does_not_fit_is_refused(box, ratio):
    with pytest.raises(ValueError, match="Use larger pixels"):
        resample(np.zeros((1, 64, 64), np.float32), box, ratio)
