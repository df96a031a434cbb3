"""Small moves of known poses: posterior means under a Gaussian prior of estimated widths, Eq. (4.19)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline

from sklearn_cryoem._core.parallel import row_blocks
from sklearn_cryoem.alignment.features import AlignmentImages, ImageFeatures
from sklearn_cryoem.alignment.model import log_noise_likelihood, masked_references
from sklearn_cryoem.alignment.products import (
    ReferenceBank,
    Workspace,
    correlate,
    norm_orders,
    reference_bank,
    stack_real,
    synthesise,
)
from sklearn_cryoem.alignment.search import AlignmentSettings, SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64
from sklearn_cryoem.physics.polar import polar_transform

FINER = 3  # than the steps of a search: posterior means need cells that are small beside the posterior
MIN_STEPS = 2  # of the search to each side: a cubic spline goes through four points
WIDTHS = np.array([0.0, *2.0 ** -np.arange(6.0, -1.0, -1.0)])  # of the prior that are tried, of the range
IMAGES_AT_ONCE, CELLS_AT_ONCE = 64, 4_000_000  # whose posteriors are held


@dataclass(frozen=True)
class Moves:
    """Moves of images under the priors of every pair of widths (angle, shift), Eq. (4.19).

    Attributes
    ----------
    log_evidence : ndarray of shape (n_images, n_angle_widths, n_shift_widths)
        log p(image), all moves being summed over.
    angle_rad, shift_px : ndarrays of shape (n_images, n_angle_widths, n_shift_widths) and (.., 2)
        Posterior means; shifts (x, y) in the frame of the reference.
    """

    log_evidence: Float64
    angle_rad: Float32
    shift_px: Float32

    @classmethod
    def unknown(cls, n_images: int, widths: tuple[Float64, Float64]) -> Moves:
        """Images that nothing is known of: they stay where they are, and their evidence is NaN."""
        shape = (n_images, *map(len, widths))
        return cls(np.full(shape, np.nan), np.zeros(shape, np.float32), np.zeros((*shape, 2), np.float32))

    def put(self, rows: NDArray[np.int64], part: Moves) -> None:
        """Write what was found for some of the images."""
        for name, values in vars(part).items():
            getattr(self, name)[rows] = values

    def likeliest(self, sound: NDArray[np.bool_]) -> tuple[int, int]:
        """Widths that maximise the likelihood of the `sound` images, as indices."""
        total = np.nansum(self.log_evidence[sound], axis=0)
        angle, shift = np.unravel_index(total.argmax(), total.shape)
        return int(angle), int(shift)


def move_space(settings: AlignmentSettings, box: int, k_max: float) -> SearchSpace:
    """Moves that are searched at the resolution `k_max`: a square of shifts, and a window of angles."""
    space = settings.space(box, k_max)
    n_steps = max(int(np.ceil(settings.reach_px / space.shift_step_px)), MIN_STEPS)
    axis = np.linspace(-settings.reach_px, settings.reach_px, 2 * n_steps + 1)
    y, x = (values.ravel() for values in np.meshgrid(axis, axis, indexing="ij"))
    return replace(
        space,
        n_angles=FINER * (space.n_angles - 1) + 1,  # odd, as it was: angles cost little
        shifts_px=np.column_stack([x, y]),
        shift_step_px=axis[1] - axis[0],
        coarse=None,
    )


def moves_of(
    images: AlignmentImages,
    settings: AlignmentSettings,
    reference: Float32,
    noise: Float64,
    k_max: float,
    widths: tuple[Float64, Float64],
) -> Moves:
    """Moves of images of one class against its reference, for every pair of widths, Eq. (4.19).

    Parameters
    ----------
    images : AlignmentImages
        The images in their known poses.
    settings : AlignmentSettings
        How far to search.
    reference : ndarray of shape (D, D)
        In the frame of the poses.
    noise : ndarray of shape (n_rings,)
        Noise variance per pixel of each ring that counts in the evidence.
    k_max : float
        Finest ring at which the reference holds signal.
    widths : (ndarray, ndarray)
        Standard deviations of the prior of the angle, in radians, and of each coordinate of the shift, in
        pixels.

    Notes
    -----
    One product as in Eq. (4.3) for each image; shifts between the steps of the search by cubic splines.
    """
    space = move_space(settings, images.box, k_max)
    values = polar_transform(masked_references(reference[None].astype(np.float32), settings), space.grid)
    bank = reference_bank(values, space, images.n_even)
    counts = np.arange(space.n_rings) >= settings.n_ignored  # Eq. (4.21)
    precision = (counts / noise[: space.n_rings]).astype(np.float32)
    axis = np.unique(space.shifts_px[:, 0])
    fine = np.linspace(axis[0], axis[-1], FINER * (len(axis) - 1) + 1)
    between = make_interp_spline(axis, np.eye(len(axis)))(fine).astype(np.float32)  # (n_fine, n_axis)
    priors = [gaussians(at, width) for at, width in zip((space.angles_rad, fine), widths, strict=True)]
    grid, n_limit = images.grid(settings.k_limit)[0], len(noise)
    found = []
    n_at_once = max(1, min(IMAGES_AT_ONCE, CELLS_AT_ONCE // (space.n_angles * len(fine) ** 2)))
    for block in row_blocks(images.n_images, n_at_once):
        rows = np.arange(block.start, block.stop)
        features = images.features(rows, images.known.shift_px[rows], grid, space.n_orders)
        some = features.take(slice(None), space.n_rings, space.n_orders)
        table = log_table(some, precision, bank, space)
        table = between @ table.reshape(len(rows), space.n_angles, len(axis), len(axis)) @ between.T
        part = posterior_means(table, priors, (space.angles_rad, fine))
        power, fraction = features.power[:, :n_limit], images.noise_fraction
        alone = log_noise_likelihood(power, noise, fraction, settings.n_ignored)
        found.append(replace(part, log_evidence=part.log_evidence + alone[:, None, None]))
    return Moves(*(np.concatenate([vars(part)[name] for part in found]) for name in vars(found[0])))


def gaussians(positions: Float64, widths: Sequence[float] | Float64) -> Float32:
    """Gaussian priors about 0 over equidistant positions; (n_widths, n_positions), rows sum to 1."""
    finest = 1e-3 * (positions[1] - positions[0])  # all at 0
    prior = np.exp(-0.5 * (positions / np.maximum(np.asarray(widths)[:, None], finest)) ** 2)
    return np.asarray(prior / prior.sum(axis=1, keepdims=True), dtype=np.float32)


def log_table(
    features: ImageFeatures, precision: Float32, bank: ReferenceBank, space: SearchSpace
) -> Float32:
    """Log likelihood ratio of every move of every image against one reference; (n, n_angles, n_shifts)."""
    work, n, n_shifts = Workspace(), len(features), space.n_shifts
    stacked = stack_real(features.orders, precision, space, work)
    norm: Complex64 = norm_orders(features.ctf_power, precision, bank.power)  # (n_even, n, 1)
    level = np.repeat(-norm[0].real, n_shifts, axis=1)
    c = correlate(stacked, norm[1:], level, bank.orders[0], space, work)
    same, mirrored, _ = synthesise(c, space, work)  # of psi and -psi, from 0 on
    table = np.concatenate([mirrored[:0:-1], same]).reshape(space.n_angles, n, n_shifts)
    return np.ascontiguousarray(table.transpose(1, 0, 2))


def posterior_means(table: Float32, priors: Sequence[Float32], at: tuple[Float64, Float64]) -> Moves:
    """Evidence and mean moves from log likelihoods (n, n_angles, n_y, n_x), Eq. (4.19).

    Parameters
    ----------
    table : ndarray
        Overwritten.
    priors : two ndarrays of shape (n_widths, n_angles) and (n_widths, n_x)
        Of the angle, and of each coordinate of the shift.
    at : (ndarray, ndarray)
        Angles and coordinates.
    """
    (of_angle, of_shift), (angle, shift) = priors, at
    top = table.max(axis=(1, 2, 3), keepdims=True)
    table = np.exp(np.subtract(table, top, out=table), out=table)
    along_x = table @ of_shift.T  # (n, A, n_y, G): x is summed over
    along = (of_shift * shift).astype(np.float32)
    mass = np.einsum("nayg,gy->nag", along_x, of_shift)
    x = np.einsum("nayg,gy->nag", table @ along.T, of_shift)
    y = np.einsum("nayg,gy->nag", along_x, along)
    total = np.maximum(of_angle @ mass, np.finfo(np.float32).tiny)  # (n, H, G)
    turn = (of_angle * angle).astype(np.float32) @ mass
    moved = np.stack([of_angle @ x, of_angle @ y], axis=-1)
    return Moves(np.log(total, dtype=np.float64) + top[..., 0], turn / total, moved / total[..., None])
