"""Averages turned, mirrored and shifted onto each other, and classifications side by side."""

import numpy as np
import pytest

from sklearn_cryoem.datasets import make_ribosome_phantom, project
from sklearn_cryoem.physics.rotation import aligned_images
from sklearn_cryoem.quality import compare_classes, similarity


@pytest.fixture(scope="module")
def views():
    rng = np.random.default_rng(0)
    return project(
        make_ribosome_phantom(), rng.uniform(0, 6, 4), rng.uniform(0.3, 2.8, 4), box=40, pixel_size=9.0
    )


@pytest.mark.parametrize("mirrored", [False, True])
def test_turned_mirrored_and_shifted_averages_are_brought_back(views, mirrored):
    angle, shift = np.array([0.4, 2.0, 4.1, 5.9]), np.array([[2.0, 0], [0, -2.0], [-1.0, 1.0], [0, 0]])
    moved = aligned_images(views, angle, shift, np.full(4, mirrored))
    found = similarity(views, moved)
    assert found.correlation.argmax(axis=1).tolist() == [0, 1, 2, 3]
    own = np.arange(4)
    assert found.correlation[own, own].min() > 0.95
    assert found.mirrored[own, own].tolist() == [mirrored] * 4
    turn, move = found.angle_rad[own, own], found.shift_px[own, own]
    back = aligned_images(moved, turn, move, found.mirrored[own, own])
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(views, back, strict=True)]
    assert min(alike) > 0.93
    if mirrored:
        assert similarity(views, moved, mirror=False).correlation[own, own].max() < 0.95


def test_it_is_the_correlation_of_the_images(views):
    """A slow twin: turns one by one, by interpolation in Fourier space."""
    one, other = views[:1], views[1:2]
    found = similarity(one, other, n_rings=10).correlation[0, 0]
    rings = np.hypot(*np.meshgrid(np.fft.fftfreq(40, 1 / 40), np.fft.fftfreq(40, 1 / 40)))
    keep = (rings > 0.5) & (rings < 10.5)

    def low(images):
        return np.fft.ifft2(np.fft.fft2(images) * keep).real

    best = 0.0
    for mirrored in (False, True):
        for angle in np.arange(0, 2 * np.pi, 0.05):
            for move in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
                b = low(aligned_images(other, [angle], [move], [mirrored]))
                a = low(one)
                best = max(best, (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))
    assert found == pytest.approx(best, abs=0.03)


def test_boxes_have_to_agree(views):
    with pytest.raises(ValueError, match="Bring them to one pixel size and box"):
        similarity(views, views[:, 1:, 1:])


def test_classes_are_paired_and_what_moved_is_counted():
    one, other = [0, 0, 0, 1, 1, 2, -1], [4, 4, 1, 1, 1, -1, 0]
    table = compare_classes(one, other)
    assert table["partner"].tolist() == [5, 2, 0]
    assert table["shared"].tolist() == [2, 2, 0]
    assert table["moved_out"].tolist() == [1, 0, 0] and table["moved_in"].tolist() == [0, 1, 0]
    assert table["size"].tolist() == [3, 2, 0]
