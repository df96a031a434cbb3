"""Soft masks: where they are one, where zero, and around which pixel."""

import numpy as np
import pytest

from sklearn_cryoem.physics.fourier import fourier_features, half_plane
from sklearn_cryoem.physics.masks import (
    BAND_EDGE,
    Support,
    check_mask_diameter,
    mask_background,
    mask_disc,
    pixel_radius,
    soft_disc,
)


@pytest.mark.parametrize("box", [16, 17])
def test_radius_is_zero_at_the_centre_pixel_and_x_runs_along_columns(box):
    c = box // 2
    assert pixel_radius(box)[c, c] == 0
    assert pixel_radius(box, (3.0, -2.0))[c - 2, c + 3] == 0
    assert pixel_radius(box)[c, c + 5] == pixel_radius(box)[c + 5, c] == 5


@pytest.mark.parametrize("edge", [0.0, 3.0])
def test_disc_is_one_inside_zero_outside_and_falls_between(edge):
    disc, radius = soft_disc(32, 8.0, edge), pixel_radius(32)
    assert disc.dtype == np.float32
    assert (disc[radius <= 8.0] == 1).all()
    assert (disc[radius >= 8.0 + max(edge, 1e-9)] == 0).all()
    inside_out = disc.ravel()[np.argsort(radius.ravel(), kind="stable")]
    assert (np.diff(inside_out) <= 1e-7).all()
    if edge:
        np.testing.assert_allclose(disc[16, 16 + 8], 1.0)
        np.testing.assert_allclose(soft_disc(32, 8.5, 3.0)[16, 16 + 10], 0.5, atol=1e-6)  # half way down


@pytest.mark.parametrize(
    ("diameter", "box", "pixel_size", "radius", "edge"),
    [
        (160.0, 64, 4.0, 20.0, 3.2),  # the edge lies outside of the diameter
        (16.8, 24, None, 8.4, 2.0),  # pixels where the pixel size is unknown; no edge below 2
        (None, 64, 4.0, 28.8, 3.2),  # 0.9 of the box
        (64.0, 64, None, 28.8, 3.2),  # the edge ends within the box
    ],
)
def test_the_disc_of_a_mask_diameter(diameter, box, pixel_size, radius, edge):
    np.testing.assert_allclose(mask_disc(diameter, box, pixel_size), (radius, edge))
    along = soft_disc(box, radius, edge)[box // 2, box // 2 :]
    assert (along[: int(radius) + 1] == 1).all()
    outside = np.arange(int(radius) + 1, box // 2) - radius
    expected = 0.5 * (1.0 + np.cos(np.pi * np.minimum(outside / edge, 1.0)))
    np.testing.assert_allclose(along[int(radius) + 1 :], expected, atol=1e-6)


@pytest.mark.parametrize("diameter", [15.9, 256.1, -1.0, 0, np.nan, np.inf, "wide"])
def test_a_mask_that_does_not_go_with_the_box_is_refused(diameter):
    expected = rf"mask_diameter is {diameter} Angstrom, expected 16 \(4 pixels\) to 256 \(the box\)\. Give"
    with pytest.raises(ValueError, match=expected):
        check_mask_diameter(diameter, 64, 4.0)


def test_a_batch_of_centres_is_one_disc_after_the_other():
    centres = np.array([[0.0, 0.0], [4.0, -3.0], [-2.5, 6.0]])
    batch = soft_disc(24, 5.0, 2.0, centres)
    assert batch.shape == (3, 24, 24)
    for disc, centre in zip(batch, centres, strict=True):
        np.testing.assert_allclose(disc, soft_disc(24, 5.0, 2.0, centre), atol=1e-6)
    np.testing.assert_allclose(batch[1], np.roll(batch[0], (-3, 4), axis=(0, 1)), atol=1e-6)


def test_background_mean_is_removed_and_outside_is_zero(rng):
    images = rng.standard_normal((3, 24, 24)).astype(np.float32) + np.array([5, -2, 0], "f4")[:, None, None]
    masked = mask_background(images, 7.0, 2.0)
    disc = soft_disc(24, 7.0, 2.0)
    for image, result in zip(images, masked, strict=True):
        outside_mean = np.average(image, weights=1.0 - disc)
        np.testing.assert_allclose(result, (image - outside_mean) * disc, atol=1e-5)
    assert masked.dtype == np.float32
    assert (masked[:, disc == 0] == 0).all()


def test_filling_with_the_background_mean_gives_the_same_features(rng):
    # what RELION does: the two differ by a constant, which only DC sees
    images = rng.standard_normal((2, 24, 24)).astype(np.float32) + 3
    disc = soft_disc(24, 7.0, 2.0)
    mean = np.array([np.average(image, weights=1 - disc) for image in images])[:, None, None]
    filled = (images * disc + mean * (1 - disc)).astype(np.float32)
    plane = half_plane(24)
    np.testing.assert_allclose(
        fourier_features(mask_background(images, 7.0, 2.0), plane), fourier_features(filled, plane), atol=1e-4
    )


def test_each_image_may_have_its_own_centre(rng):
    images = rng.standard_normal((2, 24, 24)).astype(np.float32)
    centres = [[2.0, 1.0], [-3.0, 0.0]]
    both = mask_background(images, 6.0, 2.0, centres)
    for row in range(2):
        np.testing.assert_allclose(
            both[row], mask_background(images[[row]], 6.0, 2.0, centres[row : row + 1])[0]
        )


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="Choose a mask diameter larger than its edge"):
        soft_disc(16, -1.0, 2.0)
    with pytest.raises(ValueError, match=r"Give \(x, y\) in pixels"):
        soft_disc(16, 4.0, 2.0, (1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="Use a radius below 8 pixels"):
        mask_background(np.zeros((1, 16, 16), np.float32), 20.0, 0.0)


@pytest.mark.parametrize("k_max", [6.0, 15.0])
def test_features_are_masked_as_their_images_are(rng, k_max):
    box, plane = 32, half_plane(32)
    images = rng.standard_normal((3, box, box)).astype(np.float32)
    features = fourier_features(images, plane)  # (3, J)
    features[:, plane.radius > k_max] = 0
    n_kept = int((plane.radius <= k_max).sum())
    given = np.ascontiguousarray(features[:, :n_kept]).view(np.float32).astype(np.float64)
    disc = soft_disc(box, 9.0, 3.0)
    grid = np.arange(box) - box // 2
    phase = np.exp(
        2j * np.pi * (plane.ky[:, None, None] * grid[:, None] + plane.kx[:, None, None] * grid) / box
    )
    band = np.sqrt(2.0) / box * np.einsum("nj,jyx->nyx", features, phase).real  # Eq. (1.1)-(1.3)
    background = (band * (1 - disc)).sum(axis=(1, 2)) / (1 - disc).sum()
    naive = fourier_features(((band - background[:, None, None]) * disc).astype(np.float32), plane)
    masked = Support(plane, 9.0, 3.0).masked(given).view(np.complex128)
    inner = plane.radius[:n_kept] <= plane.radius[n_kept - 1] - BAND_EDGE
    scale = np.abs(features).max()
    np.testing.assert_allclose(masked[:, inner], naive[:, :n_kept][:, inner], atol=0.02 * scale)
    np.testing.assert_array_equal(masked[:, ~inner], given.view(np.complex128)[:, ~inner])
