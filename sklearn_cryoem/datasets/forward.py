"""From volumes to images: projections, and the forward model of `make_particles`, block by block.

Projections are central slices of the volume's Fourier transform, in RELION's Euler angles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import finufft
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sklearn_cryoem.datasets.draws import coloured_power, draw_noise, junk_image
from sklearn_cryoem.datasets.volumes import Volume
from sklearn_cryoem.particles import CTFTable
from sklearn_cryoem.particles.preprocess import BACKGROUND_SHARE
from sklearn_cryoem.physics.fourier import (
    Complex64,
    Float32,
    Float64,
    HalfPlane,
    half_plane,
    images_from_features,
)
from sklearn_cryoem.physics.images import normalise_background
from sklearn_cryoem.physics.rotation import NUFFT_TOLERANCE, euler_matrices

PIXELS_A_BLOCK = 2**22  # images are made in blocks of about 4 million pixels
CALIBRATION_IMAGES = 256  # particles whose signal variance sets the scale


def slice_plane(volume: Volume, box: int, pixel_size: float) -> HalfPlane:
    """Coefficients of an image of side `box` on which `volume` has something to say.

    At most the Nyquist frequency of the coarser of the two samplings.
    """
    return half_plane(box, 0.5 * box * pixel_size / volume.pixel_size * (1.0 - 1e-9))


def slice_features(
    volume: Volume, plane: HalfPlane, pixel_size: float, matrices: NDArray[np.float64]
) -> Complex64:
    """Half-plane features (times sqrt(2), about the centre pixel) of projections of `volume`.

    The exact Fourier transform of the volume's samples at the rotated frequencies, by a type-2 NUFFT of
    relative tolerance 1e-4: nothing is interpolated in real space, and the volume needs no padding.

    Parameters
    ----------
    volume : Volume
        The density.
    plane : HalfPlane
        Coefficients wanted; `slice_plane` gives all that exist.
    pixel_size : float
        Of the images, in Angstrom.
    matrices : ndarray of shape (n_images, 3, 3)
        From `euler_matrices`.

    Returns
    -------
    features : ndarray of shape (n_images, J), complex64
        In units of density times Angstrom: a pixel is the integral along the viewing axis.

    Notes
    -----
    O(n_images * J * 200) after one FFT of the volume; about 4 million coefficients a second and core.
    """
    turn = 2.0 * np.pi * volume.pixel_size / (plane.box * pixel_size)  # radians a voxel and Fourier pixel
    in_plane = np.stack([plane.kx, plane.ky])  # (2, J)
    points = np.empty((3, len(matrices), plane.n_coefficients), dtype=np.float32)  # x, y, z
    for axis in range(3):
        points[axis] = turn * (matrices[:, :2, axis] @ in_plane)
    x, y, z = points.reshape(3, -1)
    features = finufft.nufft3d2(
        z, y, x, volume.array.astype(np.complex64), eps=NUFFT_TOLERANCE, isign=-1, nthreads=1, upsampfac=1.25
    ).reshape(len(matrices), -1)
    features *= np.float32(np.sqrt(2.0) / plane.box * volume.pixel_size**3 / pixel_size**2)
    return np.asarray(features, dtype=np.complex64)


def project(
    volume: Volume,
    rot_rad: ArrayLike,
    tilt_rad: ArrayLike,
    psi_rad: ArrayLike = 0.0,
    shift_px: ArrayLike = (0.0, 0.0),
    *,
    box: int | None = None,
    pixel_size: float | None = None,
) -> Float32:
    """Noise-free projections of a volume, without CTF and without their mean (DC).

    Parameters
    ----------
    volume : Volume
        The density.
    rot_rad, tilt_rad, psi_rad : array_like of shape (n_images,)
        RELION's rlnAngleRot, rlnAngleTilt and rlnAnglePsi in radians.
    shift_px : array_like of shape (n_images, 2)
        RELION's origin (x, y) in pixels: what must be *added* to the image's content to centre it.
    box : int, optional
        Side of the images in pixels; by default the volume's.
    pixel_size : float, optional
        Of the images, in Angstrom; by default the volume's. Content that reaches beyond
        ``box * pixel_size`` wraps round.

    Returns
    -------
    images : ndarray of shape (n_images, box, box), float32
    """
    box = volume.box if box is None else box
    pixel_size = volume.pixel_size if pixel_size is None else pixel_size
    plane = slice_plane(volume, box, pixel_size)
    angles = np.broadcast_arrays(*(np.atleast_1d(angle) for angle in (rot_rad, tilt_rad, psi_rad)))
    features = slice_features(volume, plane, pixel_size, euler_matrices(*angles))
    features *= shift_phase(plane, np.broadcast_to(shift_px, (len(features), 2)))
    return images_from_features(features, plane)


def shift_phase(plane: HalfPlane, shift_px: ArrayLike) -> Complex64:
    """Phase ramp (n_images, J) that takes centred content to where adding `shift_px` centres it again."""
    shift = np.asarray(shift_px, dtype=np.float64)
    turns = (shift[:, :1] * plane.kx + shift[:, 1:] * plane.ky) / plane.box
    return np.exp(2j * np.pi * turns).astype(np.complex64)


def draw_ctf(
    n_samples: int,
    rng: np.random.Generator,
    *,
    defocus: tuple[float, float] | None,
    astigmatism: float,
    **constants: float,
) -> CTFTable | None:
    """Draw the CTF of every particle; None if `defocus` is None.

    Mean defocus is uniform in the range, U - V uniform in [0, `astigmatism`], its angle uniform; all the
    `constants` of `CTFTable` are the same for all particles.
    """
    if defocus is None:
        return None
    mean = rng.uniform(*defocus, size=n_samples)
    split = rng.uniform(0.0, 1.0, size=n_samples) * astigmatism
    angle = rng.uniform(0.0, np.pi, size=n_samples)
    return ctf_of(mean, split, angle, **constants)


def ctf_of(mean: Float64, split: Float64, angle: Float64, **constants: float) -> CTFTable:
    """CTF by mean defocus, U - V (both in Angstrom) and azimuth of U (radians) of every particle."""
    return CTFTable(
        defocus_u_angstrom=mean + 0.5 * split,
        defocus_v_angstrom=mean - 0.5 * split,
        astigmatism_angle_rad=angle,
        **{name: np.full(len(mean), value) for name, value in constants.items()},
    )


@dataclass(frozen=True, eq=False)
class ForwardModel:
    """Everything needed to make any row of a simulated stack.

    Attributes
    ----------
    volumes : sequence of Volume
        One per structure.
    box : int
        Side of the images in pixels.
    pixel_size : float
        In Angstrom.
    truth : DataFrame
        From `draw_truth`. A column ``contrast``, if there is one, multiplies the density of each particle.
    ctf : CTFTable or None
        One row per particle.
    noise : str or None
        Kind of noise; None leaves it out of images that show a particle.
    scale : float
        Factor from density to units of the noise's standard deviation.
    """

    volumes: Sequence[Volume]
    box: int
    pixel_size: float
    truth: pd.DataFrame
    ctf: CTFTable | None
    noise: str | None
    scale: float = 1.0

    def scaled_to(self, snr: float | None) -> Self:
        """Set the scale so that the signal's variance is `snr` on average (1 if `snr` is None).

        The average is over the first 256 particles that are not junk (over junk that shows a particle, if
        nothing else does), at contrast 1.
        """
        box = self.box
        shown = self.truth["structure"].to_numpy() >= 0
        good = shown & ~self.truth["is_junk"].to_numpy()
        rows = np.flatnonzero(good if good.any() else shown)[:CALIBRATION_IMAGES]
        if rows.size == 0:
            return self
        signal = self.signal_features(rows)
        # Parseval: each coefficient (times sqrt 2) stands for itself and its conjugate, Eq. (1.2)-(1.3)
        variance = (np.abs(signal.astype(np.complex128)) ** 2).sum(axis=1).mean() / box**2
        return replace(self, scale=float(np.sqrt((1.0 if snr is None else snr) / variance)))

    @property
    def plane(self) -> HalfPlane:
        """All coefficients of the images below Nyquist."""
        return half_plane(self.box)

    def signal_features(self, rows: np.ndarray) -> Complex64:
        """Half-plane features (n_rows, J) of CTF times shifted projection, for rows that show a particle."""
        truth, plane = self.truth.iloc[rows], self.plane
        matrices = euler_matrices(truth["rot_rad"], truth["tilt_rad"], truth["angle_rad"])
        features = np.zeros((len(rows), plane.n_coefficients), dtype=np.complex64)
        structure = truth["structure"].to_numpy()
        for index in np.unique(structure):
            shown = np.flatnonzero(structure == index)
            # coefficients are sorted by radius, so those of a coarser volume are a prefix
            volume_plane = slice_plane(self.volumes[index], self.box, self.pixel_size)
            features[shown, : volume_plane.n_coefficients] = slice_features(
                self.volumes[index], volume_plane, self.pixel_size, matrices[shown]
            )
        features *= shift_phase(plane, truth[["shift_x", "shift_y"]].to_numpy() / self.pixel_size)
        if self.ctf is not None:
            frequency = plane.radius / (self.box * self.pixel_size)
            features *= self.ctf[rows].evaluate(frequency, plane.azimuth)
        return features

    def signal(self, rows: np.ndarray) -> Float32:
        """Noise-free images (n_rows, D, D) of rows that show a particle."""
        features = self.signal_features(rows)
        features *= np.float32(self.scale)
        if "contrast" in self.truth:
            features *= self.truth["contrast"].to_numpy(np.float32)[rows, None]
        return images_from_features(features, self.plane)

    def wide_signal(self, rows: np.ndarray) -> Float32:
        """Noise-free images in a box twice as large: what leaves the box does not come in on the far side."""
        return replace(self, box=2 * self.box).signal(rows)

    def shown(self, rows: np.ndarray) -> Float32:
        """What images (n_rows, D, D) show besides noise and contaminants, for rows that show a particle."""
        far = self.truth["junk_kind"].to_numpy()[rows] == "off_centre"
        images = np.zeros((len(rows), self.box, self.box), dtype=np.float32)
        if not far.all():
            images[~far] = self.signal(rows[~far])
        if far.any():
            images[far] = self.cropped(self.wide_signal(rows[far]))
        return images

    def cropped(self, wide: Float32) -> Float32:
        """Middle of images in a box twice as large; (n_rows, D, D)."""
        margin = self.box - self.box // 2
        return wide[:, margin : margin + self.box, margin : margin + self.box]

    def noise_power(self, rows: np.ndarray) -> Float64 | None:
        """Power of the noise for `draw_noise`, of these rows."""
        return coloured_power(self.box) if self.noise == "coloured" else None

    def contaminant(self, kind: str, rng: np.random.Generator) -> Float32:
        """What a junk image shows besides noise and particles; (D, D)."""
        return junk_image(kind, self.box, rng)

    def must_be_normalised(self, rows: np.ndarray) -> NDArray[np.bool_]:
        """Whether each of the images is normalised by its own background: what contaminants have shifted."""
        return np.isin(self.truth["junk_kind"].to_numpy()[rows], ["ice", "edge"])

    def render(self, task: tuple[slice, np.random.SeedSequence]) -> Float32:
        """Make the images of a block of rows; (n_rows, D, D).

        Parameters
        ----------
        task : (slice, SeedSequence)
            The rows, and the seed of their noise and junk.
        """
        rows, seed = task
        rng = np.random.default_rng(seed)
        numbers = np.arange(rows.start, rows.stop)
        kinds = self.truth["junk_kind"].to_numpy()[rows]
        is_junk = self.truth["is_junk"].to_numpy()[rows]
        visible = self.truth["structure"].to_numpy()[rows] >= 0
        images = np.zeros((len(numbers), self.box, self.box), dtype=np.float32)
        if visible.any():
            images[visible] = self.shown(numbers[visible])
        noisy = is_junk if self.noise is None else np.ones(len(images), dtype=bool)
        images[noisy] += draw_noise(rng, np.count_nonzero(noisy), self.box, self.noise_power(numbers[noisy]))
        for row in np.flatnonzero(is_junk):
            images[row] += self.contaminant(kinds[row], rng)
        off = self.must_be_normalised(numbers)
        if off.any():
            images[off] = normalise_background(images[off], BACKGROUND_SHARE * self.box)
        return images
