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
    assert found.correlation[own, own].min() > 0.9
    assert found.mirrored[own, own].tolist() == [mirrored] * 4
    turn, move = found.angle_rad[own, own], found.shift_px[own, own]
    back = aligned_images(moved, turn, move, found.mirrored[own, own])
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(views, back, strict=True)]
    assert min(alike) > 0.93
    if mirrored:
        assert similarity(views, moved, mirror=False).correlation[own, own].max() < 0.9


def test_it_is_the_correlation_of_the_images(views):
    """In the pose that was found, and in no other is it larger."""
    one, other = views[:1], views[1:2]
    found = similarity(one, other, n_rings=10)
    rings = np.rint(np.hypot(*np.meshgrid(np.fft.fftfreq(40, 1 / 40), np.fft.fftfreq(40, 1 / 40)))).astype(
        int
    )

    def power(images):
        square = np.abs(np.fft.fft2(images[0])) ** 2
        return np.bincount(rings.ravel(), square.ravel())[:11] / np.bincount(rings.ravel())[:11]

    def unit(values):
        return values / (values[1:] * np.arange(1, 11)).sum()

    spectrum = (unit(power(one)) + unit(power(other))) / 2
    weight = np.where((rings > 0) & (rings < 11), 1 / np.sqrt(spectrum)[np.minimum(rings, 10)], 0)

    def low(images):
        return np.fft.ifft2(np.fft.fft2(images) * weight).real

    def alike(pose):
        a, b = low(one), low(aligned_images(other, *pose))
        return (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())

    best = (found.angle_rad[0], found.shift_px[0], found.mirrored[0])
    assert found.correlation[0, 0] == pytest.approx(alike(best), abs=0.03)
    rng = np.random.default_rng(1)
    tried = [([rng.uniform(0, 6.28)], [rng.uniform(-1, 1, 2)], [rng.random() < 0.5]) for _ in range(60)]
    assert max(alike(pose) for pose in tried) < found.correlation[0, 0] + 0.03


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
