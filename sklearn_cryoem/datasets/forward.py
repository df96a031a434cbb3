"""The forward model of `make_particles`, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from sklearn_cryoem.datasets.junk import junk_image
from sklearn_cryoem.datasets.noise import draw_noise
from sklearn_cryoem.datasets.projection import shift_phase, slice_features, slice_plane
from sklearn_cryoem.datasets.volumes import Volume
from sklearn_cryoem.particles import CTFTable
from sklearn_cryoem.physics.filters import normalise_background
from sklearn_cryoem.physics.fourier import Complex64, Float32, HalfPlane, half_plane, images_from_features
from sklearn_cryoem.physics.orientation import euler_matrices

PIXELS_A_BLOCK = 2**22  # images are made in blocks of about 4 million pixels
CALIBRATION_IMAGES = 256  # particles whose signal variance sets the scale


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
    return CTFTable(
        defocus_u_angstrom=mean + 0.5 * split,
        defocus_v_angstrom=mean - 0.5 * split,
        astigmatism_angle_rad=angle,
        **{name: np.full(n_samples, value) for name, value in constants.items()},
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
        From `draw_truth`.
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

    @classmethod
    def calibrated(
        cls,
        volumes: Sequence[Volume],
        *,
        box: int,
        pixel_size: float,
        truth: pd.DataFrame,
        ctf: CTFTable | None,
        snr: float | None,
        noise: str,
    ) -> ForwardModel:
        """Set the scale so that the signal's variance is `snr` on average (1 if `snr` is None).

        The average is over the first 256 particles that are not junk (over junk that shows a particle, if
        nothing else does).
        """
        model = cls(volumes, box, pixel_size, truth, ctf, None if snr is None else noise)
        shown = truth["structure"].to_numpy() >= 0
        good = shown & ~truth["is_junk"].to_numpy()
        rows = np.flatnonzero(good if good.any() else shown)[:CALIBRATION_IMAGES]
        if rows.size == 0:
            return model
        signal = model.signal_features(rows)
        # Parseval: each coefficient (times sqrt 2) stands for itself and its conjugate, Eq. (1.2)-(1.3)
        variance = (np.abs(signal.astype(np.complex128)) ** 2).sum(axis=1).mean() / box**2
        return replace(model, scale=float(np.sqrt((1.0 if snr is None else snr) / variance)))

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
        return images_from_features(features, self.plane)

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
        off_centre = kinds == "off_centre"
        images = np.zeros((len(numbers), self.box, self.box), dtype=np.float32)
        if not is_junk.all():
            images[~is_junk] = self.signal(numbers[~is_junk])
        if off_centre.any():
            # in a box twice as large and then cropped: what leaves the box must not come in on the far side
            margin = self.box - self.box // 2
            wide = replace(self, box=2 * self.box).signal(numbers[off_centre])
            images[off_centre] = wide[:, margin : margin + self.box, margin : margin + self.box]
        noisy = is_junk if self.noise is None else np.ones(len(images), dtype=bool)
        images[noisy] += draw_noise(rng, np.count_nonzero(noisy), self.box, self.noise or "white")
        for row in np.flatnonzero(is_junk):
            images[row] += junk_image(kinds[row], self.box, rng)
        contaminated = np.isin(kinds, ["ice", "edge"])
        if contaminated.any():
            images[contaminated] = normalise_background(images[contaminated], 0.375 * self.box)
        return images
