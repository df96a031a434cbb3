"""A class is judged by its own signal: aligned noise is none, hollow particles are, blurred ones too."""

import numpy as np
import pytest

from sklearn_cryoem import ParticleStack
from sklearn_cryoem.quality import class_quality

BOX = 48
AXIS = np.arange(BOX) - BOX // 2
NOISE = 1.5


def classes_of(pictures, n_images=60, seed=0):
    noise = np.random.default_rng(seed).normal(scale=NOISE, size=(len(pictures), n_images, BOX, BOX))
    images = (np.asarray(pictures)[:, None] + noise).astype(np.float32).reshape(-1, BOX, BOX)
    return np.repeat(np.arange(len(pictures)), n_images), ParticleStack(images)


def shell(dx=0.0, lumps=0.4):
    """A hollow particle of 30 pixels, dark in the middle, with six lumps."""
    x, y = AXIS[None, :] - dx, AXIS[:, None]
    ring = np.exp(-(((np.hypot(x, y) - 13) / 2) ** 2))
    return 1.2 * ring * (1 + lumps * np.cos(6 * np.arctan2(y, x))) - 0.3 * (np.hypot(x, y) < 9)


def wedge(dx=0.0):
    """An asymmetric particle, dense at one end; the centre of its outline is that of the box."""
    x, y = AXIS[None, :] - dx, AXIS[:, None]
    body = np.exp(-((x / 12) ** 6) - (y / 8) ** 6)
    return body * (1.5 + x / 32) * (1 + 0.7 * np.cos(0.9 * x) * np.cos(0.9 * y))


@pytest.mark.parametrize("diameter", [33.0, 36.0, 40.0])
def test_a_hollow_particle_in_a_tight_mask_is_kept(diameter):
    """The mask's edge lies close to the shell, far from the dark middle."""
    table = class_quality(*classes_of([shell()]), mask_diameter=diameter)
    assert table["keep"][0], table["reasons"][0]
    assert table["edge"][0] < 0.3 and table["contrast"][0] > 0.5 and table["offset"][0] < 0.05


@pytest.mark.parametrize("particle", [shell, wedge])
def test_a_class_off_centre_is_told_by_how_far(particle):
    """15 A of a particle of 200 A are 0.14 of a mask of 220 A."""
    table = class_quality(*classes_of([particle(0.0), particle(-4.0), particle(5.0)]), mask_diameter=36.0)
    assert table["offset"][0] < 0.1
    np.testing.assert_allclose(table["offset"][1:], [4 / 18, 5 / 18], atol=0.06)
    assert table["keep"].tolist() == [True, False, False]


@pytest.mark.parametrize("n_images", [60, 200])
def test_noise_that_is_aligned_to_itself_is_not_significant(n_images):
    """Einstein from noise: each image is moved to where it fits the sum of all others best."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(n_images, 32, 32))
    aligned = images.copy()
    for _ in range(5):
        for row, image in enumerate(images):
            others = np.fft.rfft2(aligned.sum(axis=0) - aligned[row])
            match = np.fft.irfft2(np.fft.rfft2(image).conj() * others, s=(32, 32))
            aligned[row] = np.roll(image, np.unravel_index(match.argmax(), (32, 32)), (0, 1))
    table = class_quality(np.zeros(n_images, int), ParticleStack(aligned.astype(np.float32)))
    assert table["information"][0] > 100  # its halves agree
    assert table["significance"][0] < 1 and not table["keep"][0]


def test_an_outline_alone_is_no_signal():
    """Whatever is bright, alignment moves to the centre, and it has a blob there; a smooth shell has more."""
    blob = 1.2 * np.exp(-(AXIS[None, :] ** 2 + AXIS[:, None] ** 2) / 12**2)
    table = class_quality(*classes_of([blob, 0.5 * shell(lumps=0.0)], n_images=200))
    assert table["snr"][0] > 2 * table["snr"][1]
    assert table["significance"][0] < 1 < table["significance"][1]
    assert table["keep"].tolist() == [False, True]


def test_a_rare_blurred_view_is_kept_beside_a_sharp_common_one():
    """It holds less than half of the information of the common view, and more signal than aligned noise."""
    x, y = AXIS[None, :], AXIS[:, None]
    body = np.exp(-((x / 12) ** 6) - (y / 12) ** 6)
    sharp = 3.0 * body * (1 + np.cos(1.2 * x) * np.cos(1.0 * y))
    dim = 1.0 * body * (1 + np.cos(0.7 * x) * np.cos(0.9 * y))
    label, stack = classes_of([sharp] * 6 + [dim])
    table = class_quality(np.where(label < 6, 0, 1), stack)
    assert table["information"][1] < 0.5 * table["information"][0]
    assert table["keep"].all(), table["reasons"].tolist()


def test_particles_unlike_each_other_are_told_by_the_power_that_no_average_explains():
    """Clumps of two, each at places of its own round one middle, in a class beside 240 alike particles."""
    rng = np.random.default_rng(0)
    x, y = AXIS[None, :], AXIS[:, None]
    places = rng.uniform(-16, 16, size=(30, 2, 2))
    lumps = [
        sum(4 * np.exp(-(((x - a) / 5) ** 2) - ((y - b) / 5) ** 2) for a, b in clump) for clump in places
    ]
    clumps = np.array(lumps) + 0.5 * np.exp(-((x / 9) ** 2) - (y / 9) ** 2)
    _, particles = classes_of([2 * shell()] * 4)
    others = clumps + rng.normal(scale=NOISE, size=clumps.shape)
    images = np.concatenate([particles.images.read(), others.astype(np.float32)])
    table = class_quality(np.repeat([0, 1], [240, 30]), ParticleStack(images))
    assert table["keep"][0] and table["coherence"][0] > 0.9 and table["coherence"][1] < 0.45
    assert "particles unlike each other: " in table["reasons"][1]
