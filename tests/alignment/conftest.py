"""Small particles whose references, poses and CTFs are known exactly."""

from dataclasses import dataclass

import numpy as np
import pytest

from sklearn_cryoem._core.parallel import TaskPool, task_pool
from sklearn_cryoem.alignment.features import AlignmentImages, FeatureCache, SharedFeatures
from sklearn_cryoem.alignment.frames import KnownPoses
from sklearn_cryoem.alignment.model import AlignmentModel
from sklearn_cryoem.alignment.passes import run_pass
from sklearn_cryoem.alignment.search import AlignmentSettings
from sklearn_cryoem.particles import CTFTable

BOX, PIXEL_SIZE = 32, 4.0
MASK_RADIUS, MASK_EDGE, MAX_SHIFT = 11.0, 2.0, 2.0
RINGS = 13

# x, y, standard deviation (pixels), height. The heights times sd^2 of each class sum to zero (None is what
# makes them do so), so that F(0) is zero: the quadrature over rings and the sum over Cartesian frequencies
# treat the centre differently. With sd >= 1.7 nothing is left beyond ring 13 (exp(-2 pi^2 sd^2 r^2 / D^2) is
# below 1e-4), so both see the same disc.
FLAT = [
    [(5.0, 0.0, 1.7, 2.0), (-3.0, 3.5, 1.7, 1.5), (0.0, -4.0, 2.0, 1.0), (0.0, 0.0, 3.0, None)],
    [(5.5, 1.0, 1.8, 1.5), (-3.5, -0.5, 1.7, 2.5), (0.0, 0.0, 3.0, None)],
    [(0.0, 5.0, 1.7, 2.0), (1.5, -4.5, 1.7, 2.0), (-4.5, 0.0, 1.7, 1.0), (0.0, 0.0, 3.2, None)],
]
# Positive density with its centre at the centre pixel, as the re-centring of an alignment takes for granted.
DENSE = [
    [
        (-5.5, -1.5, 1.7, 1.0),
        (-2.5, -1.5, 1.7, 1.0),
        (0.5, -1.5, 1.7, 1.0),
        (3.5, 0.0, 1.7, 1.3),
        (3.5, 4.0, 1.9, 1.3),
    ],
    [(2.5, 0.5, 2.2, 1.8), (-4.5, 4.5, 1.7, 1.3), (-4.0, -4.0, 1.9, 1.5)],
    [(-1.5, -1.0, 3.2, 1.5), (6.0, -1.0, 1.7, 1.4), (0.5, 5.5, 1.7, 1.2)],
]
BLOBS = FLAT + DENSE


def _blob_image(kind, turn_rad=0.0, move_px=(0.0, 0.0)):
    """Image of a class: turned about the centre pixel from x towards y, then moved by (x, y) pixels."""
    axis = np.arange(BOX) - BOX // 2
    cos, sin = np.cos(turn_rad), np.sin(turn_rad)
    volume = -sum(height * sd**2 for *_, sd, height in BLOBS[kind] if height is not None)
    image = np.zeros((BOX, BOX))
    for x, y, sd, given in BLOBS[kind]:
        height = volume / sd**2 if given is None else given
        px, py = cos * x - sin * y + move_px[0], sin * x + cos * y + move_px[1]
        image += height * np.exp(-((axis[None, :] - px) ** 2 + (axis[:, None] - py) ** 2) / (2.0 * sd**2))
    return image.astype(np.float32)


def _ctf_table(rng, n_images, split_angstrom):
    """Defocus round 8000 Angstrom, astigmatism of the given size in any direction."""
    mean = rng.uniform(7e3, 9e3, n_images)
    return CTFTable(
        defocus_u_angstrom=mean + split_angstrom / 2,
        defocus_v_angstrom=mean - split_angstrom / 2,
        astigmatism_angle_rad=rng.uniform(0, np.pi, n_images),
        voltage_volts=300e3,
        cs_angstrom=2.7e7,
        amplitude_contrast=0.1,
    )


def _ctf_times(images, table):
    """Multiply the Fourier transforms of `images` by their CTFs."""
    k = np.fft.fftfreq(BOX) * BOX
    radius = np.hypot(k[:, None], k[None, :]).ravel()
    azimuth = np.arctan2(k[:, None], k[None, :]).ravel()
    ctf = table.evaluate(radius / (BOX * PIXEL_SIZE), azimuth).reshape(images.shape)
    return np.fft.ifft2(np.fft.fft2(images) * ctf).real.astype(np.float32)


@dataclass
class Particles:
    """Simulated images, their CTFs (None without), and what they were made of."""

    images: np.ndarray
    table: CTFTable | None
    kind: np.ndarray
    angle_rad: np.ndarray
    shift_px: np.ndarray

    def ctf(self, rows, radius, azimuth):
        return self.table[rows].evaluate(radius / (BOX * PIXEL_SIZE), azimuth)

    def read(self, rows):
        return self.images[rows]

    def source(self, *, pool=None, cache_bytes=256e6, **options):
        """Features of the images as the alignment asks for them."""
        options = {
            "known": KnownPoses.identity(len(self.images)),
            "mask_radius_px": MASK_RADIUS + MAX_SHIFT,
            "mask_edge_px": MASK_EDGE,
            "reference_radius_px": MASK_RADIUS + MASK_EDGE,
            "k_limit": float(RINGS),
            **options,
        }
        ctf = None if self.table is None else self.ctf
        images = AlignmentImages(len(self.images), BOX, self.read, ctf, **options)
        return Source(images, TaskPool() if pool is None else pool, cache_bytes)


class Source(SharedFeatures):
    """Features at the known shifts, in the short words of a test."""

    def __init__(self, images, pool, cache_bytes):
        super().__init__(images, pool, cache_bytes)
        self.known, self.n_even, self.noise_fraction = images.known, images.n_even, images.noise_fraction
        self.cache = FeatureCache(images, cache_bytes)

    def __call__(self, rows, n_rings, n_orders):
        return self.cache(rows, self.known.shift_px[rows], n_rings, n_orders)

    def masked(self, rows):
        return self.images.masked(rows, self.known.shift_px[rows])

    def run_pass(self, rows, model, space, **options):
        return run_pass(self, rows, self.known.shift_px, model, space, **options)


def _make_particles(
    rng,
    n_images,
    *,
    noise=0.5,
    split_angstrom=3000.0,
    kinds=(0, 1, 2),
    max_shift=1.5,
    poses=None,
    off_centre=(0.0, 0.0),
):
    """Draw particles, at given poses (angle_rad, shift_px) or random ones; classes moved by `off_centre`."""
    kind = rng.choice(kinds, size=n_images)
    if poses is None:
        poses = rng.uniform(0, 2 * np.pi, n_images), rng.uniform(-max_shift, max_shift, (n_images, 2))
    angle, shift = poses
    cos, sin, (x, y) = np.cos(angle), np.sin(angle), off_centre
    turned = np.column_stack([cos * x + sin * y, cos * y - sin * x])  # R_-psi off_centre
    # the image at azimuth theta is the class at theta + psi: content turned by -psi, and displaced by -shift
    images = np.stack(
        [_blob_image(z, -psi, u) for z, psi, u in zip(kind, angle, turned - shift, strict=True)]
    )
    table = None if split_angstrom is None else _ctf_table(rng, n_images, split_angstrom)
    if table is not None:
        images = _ctf_times(images, table)
    images = images + noise * rng.standard_normal(images.shape).astype(np.float32)
    return Particles(images.astype(np.float32), table, kind, angle, shift)


def _make_settings(**options):
    options = {
        "n_references": 3,
        "mask_radius_px": MASK_RADIUS,
        "mask_edge_px": MASK_EDGE,
        "max_shift_px": MAX_SHIFT,
        "k_start": 6.0,
        "k_limit": float(RINGS),
        **options,
    }
    return AlignmentSettings(**options)


def _make_model(references, *, noise=0.25, k_max=RINGS, **options):
    n = len(references)
    options = {
        "weight": np.full(n, 1.0 / n),
        "balance": np.zeros(n),
        "shift_sigma_px": 1.0,
        "resolution": np.zeros(n, dtype=np.int64),
        **options,
    }
    return AlignmentModel(references=references, noise=np.full(RINGS, noise), k_max=float(k_max), **options)


@pytest.fixture
def one_rng():
    """A generator of one seed, for what does not depend on the draw: same bits, shapes, finite numbers."""
    return np.random.default_rng(0)


@pytest.fixture
def blob_image():
    return _blob_image


@pytest.fixture
def references():
    """The classes 0 to 2, upright."""
    return np.stack([_blob_image(kind) for kind in range(3)])


@pytest.fixture
def by_one_and_two():
    """What a function of features returns where one worker does the passes, and two."""

    def found(make_source, function):
        results = []
        for n_jobs in (1, 2):
            with task_pool(n_jobs) as pool:
                results.append(function(make_source(pool=pool)))
        return results

    return found


@pytest.fixture
def make_particles():
    return _make_particles


@pytest.fixture
def make_settings():
    return _make_settings


@pytest.fixture
def make_model():
    return _make_model
